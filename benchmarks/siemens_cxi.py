"""The measured Siemens star as a CXI file, as a beamline would write it: metres, energy, distance, in two commands.

    python -m benchmarks.siemens_cxi ../shared/data/siemens-star-small.npz.bz2 star.cxi
    fnostab train --preset scan --data star.cxi --N 64
    fnostab reconstruct --model MODEL --data star.cxi

The NPZ file tells neither energy nor distance: 8.8 keV and 2 m on a detector of 75 um stand in for them. They cancel
where positions become pixels again, and the script says by how much the scan that is read back differs.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np

from fnostab.config import ReadingConfig
from fnostab.dataset import import_scan
from fnostab.formats.raw import Setup
from fnostab.formats.registry import open_scan

SETUP = Setup(energy_eV=8800.0, distance_m=2.0, detector_pixel_m=75e-6)
_JOULE_IN_EV = 1.602176634e-19


def write_cxi(scan: Path, out: Path) -> None:
    """Write a scan with positions in pixels as CXI, compressed, with links as cdtools and ptychodus do."""
    with open_scan(scan, ReadingConfig()) as (_, raw), h5py.File(out, "w") as file:
        frames = raw.frames
        entry, pixel_m = file.create_group("entry_1"), SETUP.object_pixel_m(frames.height)
        detector, source = entry.create_group("instrument_1/detector_1"), entry.create_group("instrument_1/source_1")
        shape = (frames.n, frames.height, frames.width)
        data = detector.create_dataset("data", shape, "u4", chunks=(1, *shape[1:]), compression="gzip", shuffle=True)
        for start, chunk in frames.chunks():
            data[start : start + len(chunk)] = np.fft.fftshift(chunk, axes=(1, 2)) if raw.fft_ordered else chunk
        detector["distance"] = SETUP.distance_m
        detector["x_pixel_size"] = detector["y_pixel_size"] = SETUP.detector_pixel_m
        source["energy"] = SETUP.energy_eV * _JOULE_IN_EV
        if raw.probe is not None:
            source["illumination"] = np.squeeze(raw.probe.read()).astype(np.complex64)
        xyz = np.concatenate([raw.positions[:, ::-1], np.zeros((frames.n, 1))], axis=1) * pixel_m
        entry["sample_1/geometry_1/translation"] = xyz
        for name, target in (("data", data), ("translation", entry["sample_1/geometry_1/translation"])):
            entry[f"data_1/{name}"] = h5py.SoftLink(target.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, help="siemens-star-small.npz.bz2")
    parser.add_argument("out", type=Path, help="the CXI file to write")
    parser.add_argument("--N", type=int, default=64, help="pattern size at which both are compared")
    arguments = parser.parse_args()
    write_cxi(arguments.scan, arguments.out)
    theirs, ours = import_scan(arguments.scan, arguments.N), import_scan(arguments.out, arguments.N)
    print(f"counts: {'equal' if np.array_equal(theirs.counts, ours.counts) else 'different'}")
    print(f"probe: {'equal' if np.array_equal(theirs.modes, ours.modes) else 'different'}")
    print(f"positions: at most {np.abs(theirs.positions_px - ours.positions_px).max():.1e} px apart")
    print(f"pixel of the object: {ours.pixel_size_m:.4g} m")


if __name__ == "__main__":
    main()
