"""What is probably wrong with a measured scan: checks, each with its number and its remedy (docs/data.md)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from fnostab.dataset.detector import Window, light_centre
from fnostab.formats.scan import Scan

#: The light's centre may lie so far from zero frequency, as a share of N.
_OFF_CENTRE: Final = 0.08
#: The window should hold this share of the detector's light.
_LEAST_KEPT: Final = 0.5
#: One pixel should hold less than this share of all light.
_BRIGHTEST: Final = 0.03
#: A pixel without light is dead where its surroundings, so many pixels wide, have this share of the brightest light.
_AROUND_PX, _BRIGHT = 9, 0.02
#: Frames with a smaller or larger share of the median frame's light are empty or wild.
_EMPTY, _WILD = 0.01, 100.0
#: A step under this share of the probe's width moves it hardly at all; over the whole width, nothing overlaps.
_LEAST_STEP: Final = 0.02


@dataclass(frozen=True, eq=False)
class Light:
    """What a detector saw: `seen` (H, W) is the sum of its frames as the file orders them.

    `window` is what was kept of it; `full_at` is the largest value of eight bits, where a pixel had it. Of the counts
    (n, N, N) that were made of it, `sums` (n,) are those of each pattern, `lowest` and `highest` (N, N) the least and
    the most that a pixel ever had.
    """

    seen: NDArray[np.float64]
    window: Window
    full_at: int | None
    sums: NDArray[np.float64]
    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]

    @property
    def kept(self) -> NDArray[np.float64]:
        """The window's light (N, N), zero frequency at N // 2."""
        return kept_light(self.seen, self.window)

    @property
    def mean(self) -> float:
        """Counts of a pixel on average."""
        return float(self.sums.mean() / self.lowest.size)


def kept_light(seen: NDArray[np.float64], window: Window) -> NDArray[np.float64]:
    """The light (N, N) in the `window` of a detector that saw `seen` (H, W), zero frequency at N // 2."""
    return np.asarray(window.added_up(window.cut(seen)))


def scan_warnings(scan: Scan, light: Light) -> tuple[str, ...]:
    """Lines that say what about `scan` is probably wrong, with the number that shows it and what to do."""
    return tuple(line for check in _CHECKS for line in check(scan, light))


def _hot_pixel(scan: Scan, light: Light) -> Iterator[str]:
    """One pixel with much of all light."""
    kept = light.kept if scan.mask is None else light.kept * scan.mask
    share = float(kept.max() / kept.sum())
    if share > _BRIGHTEST:
        row, column = np.unravel_index(int(kept.argmax()), kept.shape)
        yield (
            f"one pixel, row {row}, column {column} of the patterns, holds {100 * share:.0f} % of all light: a hot"
            " pixel? `data.mask` or `data.mask_value` leave it out"
        )


def _dead_pixels(scan: Scan, light: Light) -> Iterator[str]:
    """Pixels in the bright part of the patterns that never saw a count."""
    kept = light.kept
    around = ndimage.uniform_filter(kept, _AROUND_PX)
    dead = (kept == 0) & (around > _BRIGHT * around.max())
    if scan.mask is not None:
        dead &= scan.mask
    if dead.any():
        row, column = np.argwhere(dead)[0]
        yield (
            f"{dead.sum()} pixels in the bright part of the patterns (the first: row {row}, column {column}) never saw"
            " a count: a gap or dead pixels? `data.mask` leaves them out"
        )


def _frozen_pixels(scan: Scan, light: Light) -> Iterator[str]:
    """Pixels that hold the same count in every frame, and more than most."""
    lowest = light.lowest
    frozen = (lowest == light.highest) & (lowest > light.mean)
    if frozen.any():
        row, column = np.argwhere(frozen)[0]
        yield (
            f"{frozen.sum()} pixels hold the same count in every pattern (the first: row {row}, column {column},"
            f" {lowest[row, column]:.6g}): a gap? `data.mask_value` {lowest[row, column]:.6g} leaves them out"
        )


def _order(scan: Scan, light: Light) -> Iterator[str]:
    """Light in the corners of the whole detector: zero frequency is where it is not taken to be."""
    seen, (H, W) = _without_hot_pixels(light.seen), light.seen.shape
    corner = light.window.fft_ordered
    ordered = np.fft.fftshift(seen) if corner else seen
    middle = ordered[H // 4 : H - H // 4, W // 4 : W - W // 4].sum()
    turned = np.fft.fftshift(ordered)[H // 4 : H - H // 4, W // 4 : W - W // 4].sum()
    if turned > max(middle, 0.5 * seen.sum()):
        share = 100 * turned / seen.sum()
        other = "centred" if corner else "corner"
        yield (
            f"{share:.0f} % of the light lies in the corners of patterns taken as"
            f" {'in FFT order' if corner else 'centred'}: give `data.fft_order` {other}"
        )
        return
    if (kept := light.kept.sum()) < _LEAST_KEPT * seen.sum():
        yield (
            f"the window of N = {light.window.N} holds {100 * kept / seen.sum():.0f} % of the detector's light: is"
            " `data.center` right, or `data.N` too small?"
        )


def _centre(scan: Scan, light: Light) -> Iterator[str]:
    """The light's centre off zero frequency."""
    N = light.window.N
    good = np.ones((N, N), np.bool_) if scan.mask is None else scan.mask
    found = light_centre(_without_hot_pixels(light.kept), good)
    off = [index - N // 2 for index in found]
    if max(map(abs, off)) > max(2, _OFF_CENTRE * N):
        yield (
            f"the light's centre lies {off[0]:+d} rows and {off[1]:+d} columns off zero frequency, row and column"
            f" {N // 2}: give `data.center` row,column on the detector, or auto"
        )


def _frames(scan: Scan, light: Light) -> Iterator[str]:
    """Empty and wild frames."""
    sums = light.sums
    median = float(np.median(sums))
    empty, wild = f"under {100 * _EMPTY:g} %", f"over {_WILD:g} times"
    for flags, what in ((sums < _EMPTY * median, empty), (sums > _WILD * median, wild)):
        if flags.any():
            first = ", ".join(str(index) for index in np.flatnonzero(flags)[:5])
            yield (
                f"{flags.sum()} patterns hold {what} of the median pattern's {median:.3g} counts (the first: {first}):"
                " `data.skip_frames` leaves them out"
            )


def _full(scan: Scan, light: Light) -> Iterator[str]:
    """Counts at the largest value of eight bits."""
    if light.full_at is not None:
        yield f"pixels are full at {light.full_at}, the largest value of eight bits: brighter light was cut off"


def _few_counts(scan: Scan, light: Light) -> Iterator[str]:
    """Patterns with next to no photons."""
    mean = light.mean
    if mean < 1:
        yield f"patterns hold {mean:.2g} counts a pixel on average, so photon noise is most of them"


def _step(scan: Scan, light: Light) -> Iterator[str]:
    """Steps that are no fraction of the probe's width: other units, or no overlap."""
    if scan.probe is None or len(scan.positions_px) < 2:
        return
    places = np.unique(scan.positions_px, axis=0)
    step = float(np.median(cKDTree(places).query(places, k=2)[0][:, 1]))
    width = _width(np.abs(scan.probe) ** 2)
    share = step / width
    if share < _LEAST_STEP or share > 1:
        what = "hardly moves" if share < _LEAST_STEP else "leaves no overlap"
        yield (
            f"the scan's step of {step:.3g} px is {share:.2g} times the probe's width of {width:.3g} px, which {what}:"
            " are positions in pixels? `data.unit` says what they are in"
        )


def _without_hot_pixels(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light without pixels that outshine all others: they would decide where the light is."""
    return np.where(seen > _BRIGHTEST * seen.sum(), 0, seen)


def _width(intensity: NDArray[np.floating]) -> float:
    """The diameter in pixels of a disk as large as the area that holds most of `intensity`: its participation ratio."""
    area = float(intensity.sum(dtype=np.float64)) ** 2 / float(np.square(intensity, dtype=np.float64).sum())
    return 2 * math.sqrt(area / math.pi)


_CHECKS: Final[tuple[Callable[[Scan, Light], Iterator[str]], ...]] = (
    *(_hot_pixel, _dead_pixels, _frozen_pixels, _order, _centre, _frames, _full, _few_counts, _step),
)
