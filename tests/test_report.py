import numpy as np
import pytest

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.optics import curved_disk
from fnostab.report import align_global_phase, dataset_figure, reconstruction_figure, to_rgb
from fnostab.scan import extract_patches, grid_positions, reassemble


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    return (rng.uniform(0.5, 1, (64, 64)) * np.exp(1j * rng.uniform(-1, 1, (64, 64)))).astype(np.complex64)


@pytest.fixture
def stitched(truth):
    positions = grid_positions(64, 32, 4)
    return reassemble(np.exp(2j) * extract_patches(truth, positions, 32), positions, curved_disk(32))


def _maps(figure):
    """Title -> (image, (low, high)) of every map."""
    return {
        axes.get_title(): (np.asarray(axes.images[0].get_array()), axes.images[0].get_clim())
        for axes in figure.axes
        if axes.images
    }


def test_truth_and_prediction_share_their_colour_scale_and_global_phase(stitched, truth):
    maps = _maps(reconstruction_figure(stitched, curved_disk(32), truth, "title"))
    for part in ("amplitude", "phase"):
        assert maps[f"truth: {part}"][1] == maps[f"prediction: {part}"][1]
    error, _ = maps["phase error"]
    assert np.nanmax(np.abs(error)) < 0.05  # the two radians of global phase are gone


def test_without_a_truth_the_probe_stands_beside_the_prediction(stitched):
    maps = _maps(reconstruction_figure(stitched, curved_disk(32), None, "title"))
    assert set(maps) == {"prediction: amplitude", "prediction: phase", "probe: amplitude", "probe: phase"}


def test_every_map_has_a_colour_bar_with_a_unit(stitched, truth):
    figure = reconstruction_figure(stitched, curved_disk(32), truth, "title")
    units = [axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert units.count("1") == units.count("rad") == 3


def test_the_phase_that_is_free_is_turned_away(truth):
    turned = align_global_phase(np.exp(1.3j) * truth, truth, np.ones(truth.shape))
    np.testing.assert_allclose(turned, truth, atol=1e-6)


def test_dataset_figure_shows_probe_object_and_patterns():
    maps = _maps(dataset_figure(load_or_build(resolve_config({"preset": "smoke"}).data)))
    assert {"probe: amplitude", "test object: phase", "pattern 0", "pattern 32"} <= set(maps)


def test_pixels_of_a_figure_are_a_colour_picture(stitched):
    pixels = to_rgb(reconstruction_figure(stitched, curved_disk(32), None, "title"))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.std() > 10
