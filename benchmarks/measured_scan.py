"""R-factors of a reconstructed scan: whole patterns, central crop, and what gradient descent on it still gains.

The last tells how far a network's object is from the best that its probe (and then object and probe together) could do
in the same model of the experiment: one probe mode, one object pixel a diffraction pixel, exact sub-pixel positions.

    python benchmarks/measured_scan.py SCAN.npz.bz2 object_0.npz --N 64 --steps 150
"""

import argparse

import numpy as np
import torch

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.optics import far_field_amplitude, fourier_shift
from fnostab.scan import read_windows, split_positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", help="the measured scan that the run was trained on")
    parser.add_argument("reconstruction", help="recon/object_0.npz of the run")
    parser.add_argument("--N", type=int, default=64, help="pattern size of the run")
    parser.add_argument("--crop", type=int, default=64, help="size of the central crop")
    parser.add_argument("--steps", type=int, default=150, help="steps of gradient descent; 0: none")
    arguments = parser.parse_args()

    dataset = load_or_build(resolve_config({"preset": "scan", "data": arguments.scan, "N": arguments.N}).data)
    with np.load(arguments.reconstruction, allow_pickle=False) as saved:
        field, probe = torch.from_numpy(saved["object"]), torch.from_numpy(saved["probe"])
        origin = saved["origin_px"]
    corners, remainders = split_positions(dataset.test.positions_px)
    corners, remainders = torch.from_numpy(corners - origin), torch.from_numpy(remainders)
    measured = torch.from_numpy(np.sqrt(dataset.test.counts) / dataset.scale)

    def amplitudes(field: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
        probes = fourier_shift(probe.expand(len(corners), *probe.shape), remainders)
        return far_field_amplitude(read_windows(field, corners, probe.shape[-1]), probes)

    def r_factor(field: torch.Tensor, probe: torch.Tensor, size: int) -> torch.Tensor:
        edge = (arguments.N - size) // 2
        window = (slice(None), slice(edge, edge + size), slice(edge, edge + size))
        return (amplitudes(field, probe)[window] - measured[window]).abs().sum() / measured[window].sum()

    for size in sorted({arguments.N, min(arguments.crop, arguments.N)}):
        print(f"R of the stitched object, central {size} x {size}: {r_factor(field, probe, size).item():.4f}")
    for what, learn_probe in (("the object, its probe fixed", False), ("object and probe", True)):
        if arguments.steps:
            print(f"after descent on {what}: {_descend(r_factor, field, probe, learn_probe, arguments):.4f}")


def _descend(r_factor, field, probe, learn_probe, arguments) -> float:
    field = torch.view_as_real(field).clone().requires_grad_()
    probe = torch.view_as_real(probe).clone().requires_grad_(learn_probe)
    groups = [{"params": [field], "lr": 1e-2}]
    if learn_probe:
        groups.append({"params": [probe], "lr": 1e-2 * float(probe.detach().abs().max())})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
    for _ in range(arguments.steps):
        loss = r_factor(torch.view_as_complex(field), torch.view_as_complex(probe), arguments.N)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return float(loss.detach())


if __name__ == "__main__":
    main()
