import math
from dataclasses import replace

import numpy as np
import pytest

from fnostab.config import resolve_config
from fnostab.dataset import load_or_build
from fnostab.evaluation import evaluate
from fnostab.health.history import History
from fnostab.report.axes import to_rgb, try_to_draw
from fnostab.report.run import dataset_figure, frc_figure, reconstruction_figure, training_figure
from fnostab.report.watched import watched_figure


@pytest.fixture(scope="module")
def dataset():
    return load_or_build(resolve_config({"preset": "smoke", "data.stride_test_px": 4}).data)


@pytest.fixture(scope="module")
def reconstruction(dataset):
    """True patches, two radians of global phase off, put together."""
    patches = np.exp(2j) * dataset.test.patches_of(dataset.test_objects)
    return evaluate(patches.astype(np.complex64), dataset, dataset.probe, False).reconstructions[0]


def _maps(figure):
    """Title -> (image, (low, high)) of every map."""
    return {
        axes.get_title(): (np.asarray(axes.images[0].get_array()), axes.images[0].get_clim())
        for axes in figure.axes
        if axes.images
    }


def test_truth_and_prediction_share_their_colour_scale_and_global_phase(reconstruction, dataset):
    maps = _maps(reconstruction_figure(reconstruction, dataset.probe, "title"))
    for part in ("amplitude", "phase"):
        assert maps[f"truth: {part}"][1] == maps[f"prediction: {part}"][1]
    error, _ = maps["phase error"]
    assert np.nanmax(np.abs(error)) < 0.05


def test_pixels_without_light_are_left_white(reconstruction, dataset):
    maps = _maps(reconstruction_figure(reconstruction, dataset.probe, "title"))
    shown = ~np.ma.masked_invalid(maps["prediction: amplitude"][0]).mask
    assert 0.5 < shown.mean() < 1  # the corners of what the round probe lit
    assert shown.sum() == reconstruction.lit.sum()


def test_without_a_truth_the_probe_stands_beside_the_prediction(reconstruction, dataset):
    alone = replace(reconstruction, truth=None, comparison=None)
    maps = _maps(reconstruction_figure(alone, dataset.probe, "title"))
    assert set(maps) == {"prediction: amplitude", "prediction: phase", "probe: amplitude", "probe: phase"}


def test_every_map_has_a_colour_bar_with_a_unit(reconstruction, dataset):
    figure = reconstruction_figure(reconstruction, dataset.probe, "title")
    units = [axes.get_ylabel() for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert units.count("1") == units.count("rad") == 3


def test_the_frc_figure_shows_the_curve_and_says_where_it_crosses(reconstruction):
    (axes,) = frc_figure([reconstruction], "title").axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), reconstruction.comparison["frc"])
    assert f"{reconstruction.comparison['frc50']:.3f}" in axes.get_legend().get_texts()[0].get_text()


def test_the_frc_with_a_truth_has_the_one_threshold_that_belongs_to_it(reconstruction):
    (axes,) = frc_figure([reconstruction], "title").axes
    assert [line.get_ydata()[0] for line in axes.lines[1:]] == [0.5]
    assert [text.get_text() for text in axes.texts] == ["0.5"]
    assert axes.get_ylabel() == "FRC with the truth"


def _history(steps=200, **changes):
    losses = (1 / np.arange(10, steps + 10)).tolist()
    return History(loss_step=losses, grad_norm_preclip=[1.0] * steps, clipped_fraction=[0.0] * steps, **changes)


def test_the_training_figure_marks_spikes():
    history = _history()
    history.grad_norm_preclip[150] = 40.0
    losses, norms = training_figure(history, "title").axes
    (marked,) = [line for line in norms.lines if line.get_label() == "spikes"]
    assert (marked.get_xdata(), marked.get_ydata()) == ([150], [40.0])
    assert not [line for line in losses.lines if line.get_label() == "spikes"]


def test_the_training_figure_shows_validation_where_epochs_end():
    losses, _ = training_figure(_history(val_loss=[0.3, 0.2], val_loss_constant=0.4), "title").axes
    (validation,) = [line for line in losses.lines if line.get_label() == "validation R-factor"]
    np.testing.assert_array_equal(validation.get_xdata(), [99, 199])
    assert [text.get_text() for text in losses.texts] == ["R of constant object"]


def test_the_watched_figure_has_a_line_a_stage_and_says_where_the_network_died():
    history = _history()
    for place in range(6):
        alive = float(place < 3)
        stages = {f"middle_std/{name}": 1e-3 * alive if name == "b$c" else 0.1 for name in ("a", "b$c")}
        history.add_watched(
            {"step": 10 * place, "object_std_ratio": alive, "loss": 0.5, "act_std/a": 1, "act_std/b$c": 1} | stages
        )
    figure = watched_figure(history, "title")
    upper, lower = figure.axes
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["a", r"b\$c"]
    assert figure.get_suptitle() == r"title: dead from step 30 on, first in b\$c"
    assert upper.lines[1].get_ydata()[3] == pytest.approx(0.1)
    floor = upper.lines[0].get_ydata()[0]
    assert list(upper.lines[2].get_ydata()) == pytest.approx([1e-3] * 3 + [floor] * 3)
    assert upper.get_yscale() == lower.get_yscale() == "log"
    assert {tuple(axes.lines[-1].get_xdata()) for axes in figure.axes} == {(30, 30)}


def test_the_watched_figure_names_the_stages_that_were_lost_while_the_network_went_on():
    history = History()
    for place, share in enumerate((0.1, 0.1, 0.0, 0.0)):
        stages = {"act_std/ups.0": 1.0, "middle_std/ups.0": share, "act_std/out": 1.0, "middle_std/out": 0.1}
        history.add_watched({"step": 10 * place, "object_std_ratio": 0.5, "loss": 0.1, **stages})
    assert watched_figure(history, "title").get_suptitle() == "title: lost ups.0 from step 20 on"


def test_the_watched_figure_of_a_run_that_was_watched_once_can_be_drawn():
    history = _history()
    history.add_watched({"step": 0, "object_std_ratio": math.inf, "loss": math.nan, "middle_std/a": math.nan})
    assert watched_figure(history, "title").axes[0].get_legend() is None


def test_the_training_figure_of_a_supervised_run_shows_its_own_loss_on_validation_patches():
    losses, _ = training_figure(_history(val_loss=[0.3, 0.2], supervised_loss=[0.5, 0.4]), "title").axes
    (line,) = [line for line in losses.lines if line.get_label() == "loss on validation patches"]
    assert list(line.get_ydata()) == [0.5, 0.4]


def test_a_run_without_a_single_good_step_has_a_figure_too():
    assert training_figure(History(), "title").axes
    assert training_figure(History(loss_step=[float("nan")], grad_norm_preclip=[float("inf")]), "title").axes


def test_dataset_figure_shows_probe_object_and_patterns():
    maps = _maps(dataset_figure(load_or_build(resolve_config({"preset": "smoke"}).data)))
    assert {"probe: amplitude", "test object: phase", "pattern 0", "pattern 192"} <= set(maps)


def test_pixels_of_a_figure_are_a_colour_picture(reconstruction, dataset):
    pixels = to_rgb(reconstruction_figure(reconstruction, dataset.probe, "title"))
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.std() > 10


@pytest.mark.parametrize("name", ["a$_b$^{", "$", r"\$x^$ and \\$\frac{$", "two\nlines", "x" * 500])
def test_whatever_a_run_or_a_scan_is_called_is_drawn_letter_by_letter(name, reconstruction, dataset):
    title = f"{name}, seed 1"
    named = replace(dataset, config=dataset.config.model_copy(update={"path": f"scans/{name}.npz"}))
    figures = [
        reconstruction_figure(reconstruction, dataset.probe, title),
        frc_figure([reconstruction], title),
        training_figure(_history(), title),
        dataset_figure(named),
    ]
    for figure in figures:
        assert to_rgb(figure).std() > 1
        parsed, is_mathematics = figure._suptitle._preprocess_math(figure._suptitle.get_text())
        assert not is_mathematics
        assert parsed.startswith(" ".join(name.split())[:40])


def test_a_picture_that_cannot_be_drawn_is_told_of_and_raises_nothing():
    def draw():
        raise ValueError("no\nfigure")

    assert try_to_draw(draw) == (None, "ValueError: no figure")
