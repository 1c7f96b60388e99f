"""Figures of one run and of a dataset, drawn from arrays; every map has a colour bar with its unit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fnostab.dataset import Dataset
from fnostab.evaluation import Reconstruction
from fnostab.health import spikes
from fnostab.health.history import History
from fnostab.report.axes import label, new_grid


def _figure(rows: int, columns: int, title: str) -> tuple[Figure, NDArray[np.object_]]:
    """A figure with room for a square map and its colour bar in each place of a grid."""
    size, margins, gaps = (3.6 * columns, 3.3 * rows), (0.35, 0.4, 0.35, 0.6), (0.7, 0.65)
    figure, axes = new_grid(rows, columns, size, margins=margins, gaps=gaps)
    figure.suptitle(label(title, 100), fontsize=11)
    return figure, axes


def _show(
    axes: Axes,
    image: NDArray[np.floating],
    title: str,
    unit: str,
    limits: tuple[float, float] | None = None,
    cmap: str = "gray",
) -> None:
    picture = axes.imshow(
        image, cmap=cmap, vmin=limits and limits[0], vmax=limits and limits[1], interpolation="nearest"
    )
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=5)
    axes.set_xlabel("px", fontsize=8)
    assert axes.figure is not None
    bar = axes.figure.colorbar(picture, ax=axes, shrink=0.85, ticks=MaxNLocator(5))
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=8)


def reconstruction_figure(
    reconstruction: Reconstruction,
    probe: NDArray[np.complexfloating],
    title: str,
    deviation: NDArray[np.floating] | None = None,
) -> Figure:
    """The stitched object beside the truth and its error, on the truth's colour scale; beside the probe without truth.

    Pixels without light enough are left white: the object is free there. The `deviation` (H, W) of an ensemble's object
    is shown as it is, and over the amplitude.
    """
    shown = reconstruction.lit
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    predicted = np.where(shown, reconstruction.object, np.nan)[window]
    if reconstruction.truth is None:
        figure, axes = _figure(2, 2 if deviation is None else 3, title)
        _show_pair(axes[:, 0], predicted, "prediction", None)
        _show_pair(axes[:, -1], probe, "probe", None)
        if deviation is not None:
            map_of = np.where(shown, deviation, np.nan)[window]
            relative = map_of / np.abs(predicted)
            _show(axes[0, 1], map_of, "deviation of the members", "1", (0, _range(map_of)[1]), "magma")
            _show(axes[1, 1], relative, "deviation over amplitude", "1", (0, _range(relative)[1]), "magma")
        return figure
    figure, axes = _figure(2, 3, title)
    truth = np.where(shown, reconstruction.truth, np.nan)[window]
    limits = [_range(np.abs(truth)), _range(np.angle(truth))]
    _show_pair(axes[:, 0], truth, "truth", limits)
    _show_pair(axes[:, 1], predicted, "prediction", limits)
    for axis, error, name, unit, (low, high) in (
        (axes[0, 2], np.abs(predicted) - np.abs(truth), "amplitude error", "1", limits[0]),
        (axes[1, 2], np.angle(predicted * truth.conj()), "phase error", "rad", limits[1]),
    ):
        span = (high - low) / 2
        _show(axis, error, name, unit, (-span, span), "RdBu_r")
    return figure


def frc_figure(reconstructions: Sequence[Reconstruction], title: str) -> Figure:
    """Fourier ring correlation with the truth of every reconstruction that was compared, and its threshold, 0.5."""
    figure, axes = new_grid(1, 1, (6, 4), margins=(0.75, 0.5, 0.15, 0.35))
    figure.suptitle(label(title, 100), fontsize=11)
    axis = axes[0, 0]
    for index, reconstruction in enumerate(reconstructions):
        found = reconstruction.comparison
        if found is not None:
            told = f"object {index}: {found['frc50']:.3f} cycles/px"
            axis.plot(found["frc_frequency"], found["frc"], label=told)
    axis.axhline(0.5, color="gray", linestyle="--", linewidth=0.8)
    axis.annotate("0.5", (0.49, 0.5), ha="right", va="bottom", fontsize=8)
    axis.set(xlim=(0, 0.5), ylim=(-0.1, 1.05), xlabel="spatial frequency / (cycles/px)", ylabel="FRC with the truth")
    axis.legend(fontsize=8, title="falls under 0.5 at", title_fontsize=8)
    return figure


def training_figure(history: History, title: str) -> Figure:
    """Loss and gradient norm of every optimizer step, with spikes marked, and the R-factor on validation patches."""
    figure, axes = new_grid(2, 1, (9, 6), margins=(0.75, 0.5, 0.15, 0.35), gaps=(0, 0.15), share_x=True)
    figure.suptitle(label(title, 100), fontsize=11)
    losses, norms = axes[:, 0]
    steps = np.arange(history.steps)
    _plot_with_spikes(losses, history.loss_step, "training loss", "C0")
    if epochs := len(history.val_loss):
        ends = np.linspace(0, history.steps, epochs + 1)[1:] - 1
        losses.plot(ends, history.val_loss, "o-", color="C1", markersize=3, label="validation R-factor")
        if len(history.supervised_loss) == epochs:
            losses.plot(
                ends, history.supervised_loss, "s-", color="C4", markersize=3, label="loss on validation patches"
            )
    for value, name in ((history.val_loss_constant, "constant object"), (history.val_loss_floor, "photon noise alone")):
        if np.isfinite(value):
            losses.axhline(value, color="gray", linestyle="--", linewidth=0.8)
            losses.annotate(f"R of {name}", (0, value), fontsize=8, va="bottom")
    if any(history.clipped_fraction):
        norms.plot(steps, history.grad_norm_postclip, color="C2", linewidth=0.7, label="after clipping")
    _plot_with_spikes(norms, history.grad_norm_preclip, "before clipping", "C0")
    losses.set_ylabel("loss, R-factor")
    norms.set(xlabel="optimizer step", ylabel="gradient norm")
    for axis in (losses, norms):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="upper right")
    return figure


def _plot_with_spikes(axis: Axes, values: Sequence[float], name: str, color: str) -> None:
    """A series over its steps, logarithmic, each spike with a mark."""
    series = np.asarray(values, dtype=np.float64)
    if not (series > 0).any():
        return
    axis.set_yscale("log")
    axis.plot(series, color=color, linewidth=0.7, label=name)
    found = spikes(series)
    if found:
        axis.plot([spike.step for spike in found], [spike.value for spike in found], "rv", markersize=5, label="spikes")


def _show_pair(
    axes: Sequence[Axes] | NDArray[np.object_],
    field: NDArray[np.complexfloating],
    name: str,
    limits: Sequence[tuple[float, float]] | None,
) -> None:
    amplitude, phase = np.abs(field), np.angle(field)
    phase = np.where(np.isnan(amplitude), np.nan, phase)
    amplitude_limits, phase_limits = limits if limits is not None else (_range(amplitude), _range(phase))
    _show(axes[0], amplitude, f"{name}: amplitude", "1", amplitude_limits)
    _show(axes[1], phase, f"{name}: phase", "rad", phase_limits)


def _range(image: NDArray[np.floating]) -> tuple[float, float]:
    """The range of all but the outermost half per cent on either side, so that single pixels don't set the scale."""
    low, high = np.nanquantile(image, (0.005, 0.995))
    return float(low), float(high) if high > low else float(low) + 1e-6


def dataset_figure(dataset: Dataset) -> Figure:
    """The probe, two training patterns (logarithmic, masked pixels in grey), and the object (or a scan's positions)."""
    source = Path(dataset.config.path).name or f"{dataset.config.objects}, phase {dataset.config.phase}"
    figure, axes = _figure(2, 3, f"{source}; {len(dataset.train.counts)} training patterns, N={dataset.config.N}")
    _show_pair([axes[0, 0], axes[1, 0]], dataset.probe, "probe", None)
    if dataset.test_objects is not None:
        _show_pair([axes[0, 1], axes[1, 1]], dataset.test_objects[0], "test object", None)
    else:
        for axis, split, name in ((axes[0, 1], dataset.train, "training"), (axes[1, 1], dataset.val, "validation")):
            axis.plot(split.positions_px[:, 1], split.positions_px[:, 0], ".", markersize=2)
            axis.set_aspect("equal")
            axis.set_title(f"{name} positions", fontsize=10)
            axis.tick_params(labelsize=7)
            axis.set_xlabel("column / px", fontsize=8)
            axis.set_ylabel("row / px", fontsize=8)
        axes[0, 1].invert_yaxis()
        axes[1, 1].set(xlim=axes[0, 1].get_xlim(), ylim=axes[0, 1].get_ylim())
    for axis, place in ((axes[0, 2], 0), (axes[1, 2], len(dataset.train.counts) // 2)):
        pattern = np.log10(1 + np.asarray(dataset.train.counts[place]))
        if dataset.mask is not None:
            pattern = np.where(dataset.mask, pattern, np.nan)
            axis.set_facecolor("0.6")
        _show(axis, pattern, f"pattern {place}", "log10(1 + counts)", None, "magma")
    return figure
