"""ptychodus writes files that are read here with the same content, and opens those that are written here."""

from pathlib import Path

import numpy as np
import pytest
from known_scan import (
    DETECTOR_PIXEL_M,
    DISTANCE_M,
    ENERGY_EV,
    PIXEL_M,
    N,
    assert_same,
    assert_same_modes,
    r_factor,
    result_of,
)

from fnostab.config import ReadingConfig, resolve_config
from fnostab.dataset import import_scan
from fnostab.formats.result import write_result
from fnostab.workflows.reconstruct import reconstruct_scan
from fnostab.workflows.train import train_arm

pytest.importorskip("ptychodus", reason="needs ptychodus: make test-interop installs it")

from ptychodus.api import io
from ptychodus.api.assemble import AssembledDiffractionData
from ptychodus.api.diffraction import (
    DiffractionDatasetLayoutNode,
    DiffractionMetadata,
    SimpleDiffractionArray,
    SimpleDiffractionDataset,
)
from ptychodus.api.geometry import ImageExtent, PixelGeometry
from ptychodus.api.object import Object, ObjectCenter, ObjectPosition
from ptychodus.api.probe import ProbeSequence
from ptychodus.api.probe_positions import ProbePositionSequence
from ptychodus.api.product import Product, ProductMetadata
from ptychodus.api.reconstruct import ReconstructInput
from ptychodus.api.simulate.diffraction import generate_diffraction_data
from ptychodus.plugins.cxi_file import CXIDiffractionFileWriter, CXIProductFileIO
from ptychodus.plugins.h5_product_file import H5ProductFileIO
from ptychodus.plugins.npz_diffraction_file import NPZDiffractionFileIO
from ptychodus.plugins.npz_product_file import NPZProductFileIO

DETECTOR = PixelGeometry(DETECTOR_PIXEL_M, DETECTOR_PIXEL_M)
#: The product's position 5 has index 0, its position 6 index 1, ...
SHIFT = 5


@pytest.fixture(scope="module")
def product(known):
    """The scan in ptychodus' own terms, its positions in another order than the patterns."""
    pixel = PixelGeometry(PIXEL_M, PIXEL_M)
    object = Object(known.object, pixel, ObjectCenter(3e-6, -2e-6))
    geometry = object.get_geometry()
    middles = known.corners + (N - 1) / 2
    positions = [ObjectPosition(index, float(x), float(y)) for index, (y, x) in enumerate(middles)]
    return Product(
        metadata=ProductMetadata("known", "", DISTANCE_M, ENERGY_EV, 1e6, 0.0, 0.0, 0.0),
        probe_positions=ProbePositionSequence(
            [geometry.map_coordinates_object_to_probe(position) for position in np.roll(positions, -SHIFT)]
        ),
        probes=ProbeSequence(known.modes[None], None, pixel),
        object_=object,
        losses=[],
    )


@pytest.fixture(scope="module")
def patterns(known):
    """The patterns as a dataset of ptychodus, in two parts."""
    metadata = DiffractionMetadata(
        num_patterns_per_array=[len(known.counts)],
        pattern_dtype=known.counts.dtype,
        detector_extent=ImageExtent(N, N),
        detector_distance_m=DISTANCE_M,
        detector_pixel_geometry=DETECTOR,
        photon_energy_eV=ENERGY_EV,
        file_path=Path("known"),
    )
    parts = np.array_split(np.arange(len(known.counts)), 2)
    arrays = [SimpleDiffractionArray(str(part[0]), part, known.counts[part]) for part in parts]
    return SimpleDiffractionDataset(metadata, DiffractionDatasetLayoutNode.create_root(), arrays, known.bad)


@pytest.fixture(scope="module")
def assembled(known):
    indexes = np.arange(len(known.counts))
    return AssembledDiffractionData(indexes, known.counts, DETECTOR, known.bad)


def simulated(product: Product) -> np.ndarray:
    """The patterns that ptychodus itself makes of a product, by the index of their positions."""
    made = generate_diffraction_data(product)
    return np.asarray(made._patterns)[np.argsort(made._indexes)]


def test_its_own_forward_model_makes_the_patterns_of_the_known_scan(known, product):
    assert r_factor(simulated(product), known) < 0.02
    turned = Object(
        np.ascontiguousarray(known.object[::-1]), PixelGeometry(PIXEL_M, PIXEL_M), ObjectCenter(3e-6, -2e-6)
    )
    wrong = Product(product.metadata, product.probe_positions, product.probes, turned, [])
    assert r_factor(simulated(wrong), known) > 0.1


@pytest.mark.parametrize("write", ["npz", "assembled", "cxi"])
@pytest.mark.parametrize(
    ("name", "product_io"), [("p.h5", H5ProductFileIO()), ("p.npz", NPZProductFileIO()), ("p.cxi", CXIProductFileIO())]
)
def test_its_patterns_are_read_with_its_product(write, name, product_io, known, product, patterns, assembled, tmp_path):
    path = tmp_path / {"npz": "d.npz", "assembled": "d.h5", "cxi": "d.cxi"}[write]
    if write == "npz":
        NPZDiffractionFileIO().write(path, patterns)
    elif write == "assembled":
        io.save_diffraction_data(path, assembled)
    else:
        CXIDiffractionFileWriter().write(path, patterns)
    product_io.write(tmp_path / name, product)
    scan = import_scan(path, reading=ReadingConfig(positions=str(tmp_path / name)))
    assert_same(scan, known, masked=True)
    assert_same_modes(scan, known)
    corner = np.rint(scan.positions_px[0]).astype(int)
    assert scan.object.shape == known.object.shape
    np.testing.assert_allclose(scan.object[tuple(corner)], known.object[tuple(known.corners[0])])


def test_its_training_file_is_read(known, product, assembled, tmp_path):
    ordered = sorted(product.probe_positions, key=lambda position: position.index)
    given = ReconstructInput(
        known.counts,
        known.bad,
        Product(product.metadata, ProbePositionSequence(ordered), product.probes, product.object_, []),
    )
    io.save_training_data(tmp_path / "training.h5", given)  # it fills bad pixels with guesses
    scan = import_scan(tmp_path / "training.h5")
    assert_same(scan, known, masked=True)
    assert_same_modes(scan, known)
    io.save_ptychopinn_training_data(tmp_path / "pinn.npz", given)
    pinn = import_scan(tmp_path / "pinn.npz", quantity="counts")
    np.testing.assert_array_equal(pinn.counts[:, ~known.bad], known.counts[:, ~known.bad])
    np.testing.assert_allclose(np.diff(pinn.positions_px, axis=0), np.diff(known.corners, axis=0), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "layout", "product_io"),
    [
        ("recon.h5", "ptychodus", H5ProductFileIO()),
        ("recon.npz", "ptychodus", NPZProductFileIO()),
        ("recon.cxi", "cxi", CXIProductFileIO()),
    ],
)
def test_it_opens_what_is_written_here_and_sees_the_same_object(name, layout, product_io, known, tmp_path):
    result = result_of(known)
    write_result(tmp_path / name, layout, result)
    opened = product_io.read(tmp_path / name)
    np.testing.assert_array_equal(opened.object_.get_layer(0), result.object)
    assert opened.object_.get_pixel_geometry() == PixelGeometry(PIXEL_M, PIXEL_M)
    assert opened.metadata.photon_energy_eV == pytest.approx(ENERGY_EV)
    assert opened.probes.get_array().shape == (1, 2, N, N)
    assert r_factor(simulated(opened), known) < 0.02


def test_its_scan_goes_to_a_network_and_comes_back_as_its_product(known, product, assembled, tmp_path):
    io.save_diffraction_data(tmp_path / "d.h5", assembled)
    H5ProductFileIO().write(tmp_path / "p.h5", product)
    given = {"data": str(tmp_path / "d.h5"), "data.positions": str(tmp_path / "p.h5")}
    trained = train_arm(resolve_config({"preset": "scan", "N": N, "epochs": 1, "width": 4, **given}), lambda line: None)
    model, reading = f"runs:/{trained.run_id}/model", ReadingConfig(positions=str(tmp_path / "p.h5"))
    found = reconstruct_scan(model, tmp_path / "d.h5", tmp_path / "recon.h5", layout="ptychodus", reading=reading)
    opened = H5ProductFileIO().read(tmp_path / "recon.h5")
    np.testing.assert_array_equal(opened.object_.get_layer(0), found.stitched.object)
    assert opened.metadata.photon_energy_eV == ENERGY_EV
    assert opened.metadata.detector_distance_m == DISTANCE_M
    ordered = sorted(product.probe_positions, key=lambda position: position.index)
    moved_m = [
        (there.x_m - here.x_m, there.y_m - here.y_m)
        for there, here in zip(opened.probe_positions, ordered, strict=True)
    ]
    np.testing.assert_allclose(moved_m, np.tile(moved_m[0], (len(ordered), 1)), atol=1e-3 * PIXEL_M)
