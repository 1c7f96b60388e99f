"""pty-chi's forward model makes the known patterns of what is read and written here. It has no files of its own: its
users keep scans as pairs NAME_dp.hdf5 and NAME_para.hdf5, which its tests read by three lines, repeated here.
"""

import sys
from types import ModuleType

import h5py
import numpy as np
import pytest
from known_scan import PIXEL_M, WAVELENGTH_M, N, assert_same_modes, r_factor, result_of

from fnostab.dataset import import_scan
from fnostab.formats.result import write_result

pytest.importorskip("ptychi", reason="needs ptychi: make test-interop installs it")

try:
    import torchvision  # noqa: F401
except RuntimeError:  # a build for another torch (CUDA): without its compiled operators, which pty-chi does not use
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

import torch

api = pytest.importorskip("ptychi.api")
PtychographyTask = pytest.importorskip("ptychi.api.task").PtychographyTask

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor with requires_grad")


def modelled(counts, modes, object, rows_px, columns_px) -> np.ndarray:
    """The patterns that pty-chi makes; windows' middles in pixels from the object's."""
    options = api.PIEOptions()
    options.data_options.free_space_propagation_distance_m = np.inf
    options.data_options.wavelength_m = WAVELENGTH_M
    options.object_options.pixel_size_m = PIXEL_M
    # Its middle of n pixels is pixel (n - 1) / 2, and windows must lie on whole pixels.
    options.object_options.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    options.object_options.position_origin_coords = [(N - 1) / 2] * 2
    options.reconstructor_options.default_device = api.Devices.CPU
    options.reconstructor_options.num_epochs, options.reconstructor_options.batch_size = 1, 20
    corners = [p + length / 2 - N / 2 for p, length in zip((rows_px, columns_px), object.shape, strict=True)]
    task = PtychographyTask(
        options,
        diffraction_data=counts.astype(np.float32),
        object_data=torch.tensor(object[None]),
        probe_data=torch.tensor(modes[None]),
        probe_position_y_px=corners[0],
        probe_position_x_px=corners[1],
    )
    with torch.no_grad():
        patterns = task.reconstructor.forward_model.forward(torch.arange(len(counts)))
    return np.fft.fftshift(patterns.numpy(), axes=(-2, -1))


def read_pair(dp, para) -> tuple[np.ndarray, ...]:
    """As tests/test_utils.py of pty-chi reads a pair: patterns, modes, object, and pixels from the object's middle."""
    with h5py.File(dp) as file:
        patterns = file["dp"][()]
    with h5py.File(para) as file:
        pixel_m, object = file["object"].attrs["pixel_height_m"], file["object"][0]
        middles_px = [file[f"probe_position_{axis}_m"][()] / pixel_m for axis in "yx"]
        return patterns, file["probe"][()], object, *middles_px


@pytest.fixture
def pair(known, tmp_path):
    dp, para = tmp_path / "scan_ptychodus_dp.hdf5", tmp_path / "scan_ptychodus_para.hdf5"
    with h5py.File(dp, "w") as file:
        file["dp"] = known.counts
    with h5py.File(para, "w") as file:
        file["probe"], file["object"] = known.modes, known.object[None]
        file["object"].attrs["pixel_height_m"] = file["object"].attrs["pixel_width_m"] = PIXEL_M
        file["probe_position_y_m"], file["probe_position_x_m"] = known.middles_m.T
    return dp, para


def test_a_pair_that_pty_chi_understands_is_read_the_same(pair, known):
    assert r_factor(modelled(*read_pair(*pair)), known) < 0.02
    scan = import_scan(pair[0])
    np.testing.assert_array_equal(scan.counts, known.counts)
    np.testing.assert_allclose(np.diff(scan.positions_px, axis=0), np.diff(known.corners, axis=0), atol=1e-3)
    assert_same_modes(scan, known)
    middles = (scan.positions_px + N / 2 - np.array(scan.object.shape) / 2).round(3)
    assert r_factor(modelled(scan.counts, scan.modes, scan.object, *middles.T), known) < 0.02
    assert r_factor(modelled(scan.counts, scan.modes, scan.object[::-1].copy(), *middles.T), known) > 0.1


def test_it_makes_the_patterns_of_a_product_that_is_written_here(known, tmp_path):
    write_result(tmp_path / "recon.h5", "ptychodus", result_of(known))
    with h5py.File(tmp_path / "recon.h5") as file:
        object, modes = file["object"][0], file["probe"][0]
        middles_px = [
            (file[f"probe_position_{axis}_m"][()] - file["object"].attrs[f"center_{axis}_m"]) / PIXEL_M for axis in "yx"
        ]
    patterns = modelled(known.counts, modes, object, *np.round(middles_px, 3))
    assert r_factor(patterns, known) < 0.02
    assert patterns.sum() / N**2 == pytest.approx(known.counts.sum(), rel=0.01)  # its FFT is not orthonormal
