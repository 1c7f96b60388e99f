"""cdtools writes CXI files that are read here with the same content, and reads what it can of those written here."""

import h5py
import numpy as np
import pytest
from known_scan import (
    DETECTOR_PIXEL_M,
    DISTANCE_M,
    PIXEL_M,
    WAVELENGTH_M,
    N,
    assert_same,
    r_factor,
    result_of,
)

from fnostab.dataset import import_scan
from fnostab.formats.result import write_result

pytest.importorskip("cdtools", reason="needs cdtools-py: make test-interop installs it")

import torch
from cdtools.datasets import Ptycho2DDataset
from cdtools.models import FancyPtycho
from cdtools.tools import data as cxi
from cdtools.tools.interactions import pixel_to_translations, translations_to_pixel

#: Detectors by the steps from row to row and from column to column, (x, y); the first is what CXI takes for granted.
DETECTORS = {
    "standard": ((0, -1), (-1, 0)),
    "mirrored": ((0, -1), (1, 0)),
    "upside down": ((0, 1), (1, 0)),
    "rotated": ((1, 0), (0, -1)),
}


def dataset_of(known, steps) -> Ptycho2DDataset:
    """The scan as a dataset of cdtools, by its own way from pixels to metres."""
    basis = torch.tensor([[*step, 0.0] for step in steps]).T * DETECTOR_PIXEL_M
    object_basis = basis / DETECTOR_PIXEL_M * PIXEL_M
    translations = pixel_to_translations(object_basis, torch.tensor(known.corners, dtype=torch.float32))
    return Ptycho2DDataset(
        translations.numpy(),
        torch.tensor(known.counts.astype(np.float32)),
        wavelength=WAVELENGTH_M,
        detector_geometry={"distance": DISTANCE_M, "basis": basis, "corner": None},
        mask=~known.bad,
    )


@pytest.mark.parametrize("steps", DETECTORS.values(), ids=DETECTORS)
def test_its_files_are_read_however_the_detector_is_mounted(steps, known, tmp_path):
    with cxi.create_cxi(tmp_path / "scan.cxi") as file:
        dataset_of(known, steps).to_cxi(file)
    assert_same(import_scan(tmp_path / "scan.cxi", probe=known.modes[0]), known, masked=True)


@pytest.mark.parametrize("steps", DETECTORS.values(), ids=DETECTORS)
def test_its_own_forward_model_makes_the_patterns_of_the_known_scan(steps, known):
    dataset = dataset_of(known, steps)
    model = FancyPtycho.from_dataset(dataset, n_modes=2)
    first = translations_to_pixel(model.obj_basis, dataset.translations)[0] - model.min_translation
    offset = np.rint(first.detach().numpy()).astype(int) - known.corners[0]
    canvas = np.ones(model.obj.shape[-2:], np.complex64)
    rows, columns = (slice(start, start + length) for start, length in zip(offset, known.object.shape, strict=True))
    canvas[rows, columns] = known.object
    model.obj.data, model.probe.data = torch.tensor(canvas), torch.tensor(known.modes)
    with torch.no_grad():
        assert r_factor(model.forward(torch.arange(len(known.corners)), dataset.translations).numpy(), known) < 0.02
        model.obj.data = torch.tensor(canvas[::-1].copy())
        assert r_factor(model.forward(torch.arange(len(known.corners)), dataset.translations).numpy(), known) > 0.1


def test_it_finds_windows_energy_and_distance_in_what_is_written_here(known, tmp_path):
    result = result_of(known)
    write_result(tmp_path / "recon.cxi", "cxi", result)
    with h5py.File(tmp_path / "recon.cxi") as file:
        assert cxi.get_wavelength(file) == pytest.approx(WAVELENGTH_M, rel=1e-6)
        basis = torch.tensor(file["entry_1/image_2/basis_vectors"][()].T)
        translations = torch.tensor(cxi.get_ptycho_translations(file), dtype=basis.dtype)
        np.testing.assert_array_equal(file["entry_1/image_2/data"], result.object)
        assert file["entry_1/instrument_1/source_1/illumination"].shape == (2, N, N)
    pixels = translations_to_pixel(basis, translations).numpy()
    np.testing.assert_allclose(pixels - pixels[0], known.corners - known.corners[0], atol=1e-3)
