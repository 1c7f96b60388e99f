"""Figures, drawn from arrays; every map has a colour bar with its unit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fnostab.dataset import Dataset
from fnostab.scan import Reassembly

#: Light under this share of the brightest pixel is left white: the object is free there.
_SHOWN_LIGHT = 0.02


def _figure(rows: int, columns: int, title: str) -> tuple[Figure, NDArray[np.object_]]:
    """A figure outside of pyplot: no global state, no window."""
    figure = Figure(figsize=(3.6 * columns, 3.3 * rows), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, columns, squeeze=False)


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
    axes.set_xlabel("px", fontsize=8)
    assert axes.figure is not None
    bar = axes.figure.colorbar(picture, ax=axes, shrink=0.85)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(unit, fontsize=8)


def align_global_phase(
    predicted: NDArray[np.complexfloating], reference: NDArray[np.complexfloating], light: NDArray[np.floating]
) -> NDArray[np.complexfloating]:
    """`predicted` (H, W) turned by the one phase that brings it closest to `reference` (H, W), weighted by `light`."""
    overlap = (light * reference * predicted.conj()).sum()
    return np.asarray(predicted * (overlap / max(abs(overlap), np.finfo(np.float64).tiny)))


def reconstruction_figure(
    reassembly: Reassembly, probe: NDArray[np.complexfloating], truth: NDArray[np.complexfloating] | None, title: str
) -> Figure:
    """The stitched object beside the truth (same colour scale), or beside the probe where there is no truth.

    `truth` is the whole true object, in whose pixels the reassembly's origin counts.
    """
    dark = reassembly.light < _SHOWN_LIGHT * reassembly.light.max()
    rows, columns = np.flatnonzero(~dark.all(axis=1)), np.flatnonzero(~dark.all(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    predicted = reassembly.object
    if truth is None:
        predicted = align_global_phase(predicted, np.ones_like(predicted), reassembly.light)
        figure, axes = _figure(2, 2, title)
        _show_pair(axes[:, 0], np.where(dark, np.nan, predicted)[window], "prediction", None)
        _show_pair(axes[:, 1], probe, "probe", None)
        return figure
    top, left = reassembly.origin_px
    part = truth[top : top + predicted.shape[0], left : left + predicted.shape[1]]
    predicted = align_global_phase(predicted, part, reassembly.light)
    figure, axes = _figure(2, 3, title)
    shown = np.where(dark, np.nan, part)[window]
    limits = [_range(np.abs(shown)), _range(np.angle(shown))]
    _show_pair(axes[:, 0], shown, "truth", limits)
    _show_pair(axes[:, 1], np.where(dark, np.nan, predicted)[window], "prediction", limits)
    amplitude_error = (np.abs(predicted) - np.abs(part))[window]
    phase_error = np.angle(predicted * part.conj())[window]
    for axis, error, name, unit, (low, high) in (
        (axes[0, 2], amplitude_error, "amplitude error", "1", limits[0]),
        (axes[1, 2], phase_error, "phase error", "rad", limits[1]),
    ):
        span = (high - low) / 2
        _show(axis, np.where(dark[window], np.nan, error), name, unit, (-span, span), "RdBu_r")
    return figure


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
    """The probe, three training patterns (logarithmic), and the object (or the scan's positions)."""
    source = Path(dataset.config.path).name or f"{dataset.config.objects}, phase {dataset.config.phase}"
    figure, axes = _figure(2, 3, f"{source}; {len(dataset.train.counts)} training patterns, N={dataset.config.N}")
    _show_pair([axes[0, 0], axes[1, 0]], dataset.probe, "probe", None)
    if dataset.test_objects is not None:
        _show_pair([axes[0, 1], axes[1, 1]], dataset.test_objects[0], "test object", None)
    else:
        for axis, split, name in ((axes[0, 1], dataset.train, "training"), (axes[1, 1], dataset.val, "validation")):
            axis.plot(split.positions_px[:, 1], split.positions_px[:, 0], ".", markersize=2)
            axis.set(title=f"{name} positions", xlabel="column / px", ylabel="row / px", aspect="equal")
            axis.invert_yaxis()
    for axis, place in ((axes[0, 2], 0), (axes[1, 2], len(dataset.train.counts) // 2)):
        counts = np.asarray(dataset.train.counts[place])
        _show(axis, np.log10(1 + counts), f"pattern {place}", "log10(1 + counts)", None, "magma")
    return figure


def to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """The figure as pixels (H, W, 3)."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
