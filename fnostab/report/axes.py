"""What all figures share: colours of the arms, names, axes, and the way to a PNG."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from fnostab.study.text import shortened

#: The arms of Stage A look the same in every report.
OWN_COLOURS: Final = {"control": "#0072B2", "stable": "#D55E00", "agc": "#009E73"}
#: Others take these in turn. Colour-blind-safe: Okabe and Ito 2008, then Tol's "muted" (2021).
OTHER_COLOURS: Final = (
    *("#CC79A7", "#E69F00", "#56B4E9", "#332288", "#999933", "#882255", "#44AA99", "#8C6D46"),
    "#DDCC77",
    *OWN_COLOURS.values(),
)
FAILED_COLOUR: Final = "#4A4A4A"
#: Arms beside each other in one figure; a figure of more is no overview.
MOST_ARMS: Final = 24
#: Pixels per inch of a PNG: sharp on a screen, small in a file.
DPI: Final = 120


class Picture(NamedTuple):
    """A drawn figure: the content of a PNG file, and how wide it is meant to be shown, in CSS pixels."""

    png: bytes
    width_px: int


def colours(arms: Sequence[str]) -> dict[str, str]:
    """A colour for each arm, which does not depend on the order of `arms`."""
    others = sorted(set(arms) - set(OWN_COLOURS))
    taken = {OWN_COLOURS[arm] for arm in arms if arm in OWN_COLOURS}
    free = [colour for colour in OTHER_COLOURS if colour not in taken]
    return {arm: OWN_COLOURS.get(arm) or free[others.index(arm) % len(free)] for arm in arms}


def in_order(count: int) -> list[tuple[float, ...]]:
    """`count` colours for what has an order, as the stages of a network: blue first, then green, red last."""
    return [colormaps["turbo"](0.05 + 0.9 * place / max(count - 1, 1)) for place in range(count)]


def label(name: str, length: int = 24) -> str:
    """A name as matplotlib shows it letter by letter: no mathematics between dollars, and not too long."""
    return shortened(name, length).replace("$", r"\$")


def new_figure(width: float, height: float) -> Figure:
    """A figure outside of pyplot, in inches: no global state, no window; matplotlib makes room for all its texts."""
    return Figure(figsize=(width, height), layout="constrained")


def new_grid(
    rows: int,
    columns: int,
    size: tuple[float, float],
    *,
    margins: tuple[float, float, float, float],
    gaps: tuple[float, float] = (0.0, 0.0),
    share_x: bool = False,
) -> tuple[Figure, NDArray[np.object_]]:
    """A figure of `size`, and its axes (rows, columns) at fixed places, with room for the texts where it is asked for.

    All lengths are inches: `margins` to the left of all axes, under them, to their right and above them, and `gaps`
    between two beside each other and between two on top of each other. To find the room out from the texts, as
    `new_figure` does, takes longer than all the drawing: this is for what every run draws.
    """
    (width, height), (left, under, right, above), (beside, between) = size, margins, gaps
    figure = Figure(figsize=size)
    places = {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": under / height,
        "top": 1 - above / height,
        "wspace": beside * columns / (width - left - right - beside * (columns - 1)),
        "hspace": between * rows / (height - under - above - between * (rows - 1)),
    }
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=share_x, gridspec_kw=places)


def tidy(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    """Frame without top and right, thin grid, small numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.6")
    axes.tick_params(labelsize=8, color="0.6")
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color="0.9", linewidth=0.7)


def name_arms(axes: Axes, arms: Sequence[str]) -> None:
    """Name the arms under the x axis, on which they stand at 0, 1, 2 and so on."""
    names = [label(arm) for arm in arms]
    slanted = sum(map(len, names)) > 11 * len(names) or len(names) > 8
    turn: dict[str, Any] = {"rotation": 35, "ha": "right"} if slanted else {"rotation": 0, "ha": "center"}
    axes.set_xticks(range(len(names)), names, fontsize=9, **turn)
    axes.set_xlim(-0.6, len(names) - 0.4)


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Make the y axis logarithmic, a little wider than `low` to `high`, with plain numbers at a few round places."""
    decades = math.log10(high / low)
    margin = 10 ** (0.05 * max(decades, 0.6))
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    axis = axes.yaxis
    locator: Locator = LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.3 else (1.0,), numticks=9)
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]) if decades < 0.9 else locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    tidy(axes)


def try_to_draw(draw: Callable[[], Figure]) -> tuple[Picture | None, str]:
    """What `draw` draws; or None, and why it could not be drawn, since no result may be lost for want of a picture."""
    try:
        figure = draw()
        return Picture(to_png(figure), round(96 * figure.get_figwidth())), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {shortened(str(error), 200)}"


def to_png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def to_rgb(figure: Figure) -> NDArray[np.uint8]:
    """The figure as pixels (H, W, 3)."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
