"""How the runs of a study stand: a live table on a terminal, a line for each piece of news elsewhere."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Final

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fnostab.health import FAILED, NO_RESULT
from fnostab.launch import Update
from fnostab.study.plan import Planned
from fnostab.workflows.runs import StudyDisplay

#: Rows that a table shows at once; of longer studies those that run, and what ended last.
_ROWS: Final = 30
_COLOURS: Final = {"done": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}


def study_view(study: str, say: Callable[[str], None]) -> AbstractContextManager[StudyDisplay]:
    """Return a display of the runs of `study`: a table on a terminal, or lines for `say` where there is none."""
    return LiveTable(study) if sys.stdout.isatty() else nullcontext(Lines(say))


class Lines:
    """A line for each run that begins, ends, or is done with an epoch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._runs: Sequence[Planned] = ()

    def begin(self, runs: Sequence[Planned], finished: Mapping[int, Update]) -> None:
        """Say how many runs there are so far."""
        self._runs = runs
        known = f", {len(finished)} of them finished before" if finished else ""
        self._say(f"{len(runs)} runs{known}")

    def update(self, place: int, update: Update) -> None:
        """Say what is new."""
        name = f"[{place + 1}/{len(self._runs)}] {self._runs[place].name}"
        if update.state == "done":
            self._say(f"{name}: {update.verdict}, best val_loss {_loss(update)}: {update.text}")
        elif update.state != "running":
            self._say(f"{name}: {update.state}: {update.text}")
        elif update.text:
            self._say(f"{name}: {update.text}")
        else:
            self._say(f"{name}: epoch {update.epoch}/{update.epochs}: val_loss {_loss(update)}{_left(update)}")

    def look(self, text: str) -> None:
        """Say what is decided and what is open."""
        self._say(text)


class LiveTable:
    """A table of arm, seed, epoch, loss, verdict and time left, and below it what is decided, as a context."""

    def __init__(self, study: str) -> None:
        self._study = study
        self._runs: Sequence[Planned] = ()
        self._stand: dict[int, Update] = {}
        self._look = ""
        self._live = Live(get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def begin(self, runs: Sequence[Planned], finished: Mapping[int, Update]) -> None:
        """Show all runs."""
        self._runs, self._stand = runs, dict(finished)

    def update(self, place: int, update: Update) -> None:
        """Take over what is new; what a message does not say stays."""
        before = self._stand.get(place)
        if before and update.state == "running" and update.val_loss is None:
            update = replace(before, state="running", text=update.text)
        self._stand[place] = update

    def look(self, text: str) -> None:
        """Show what is decided and what is open."""
        self._look = text

    def _table(self) -> Table:
        ended = sum(update.state != "running" for update in self._stand.values())
        table = Table(title=f"study {self._study}: {ended} of {len(self._runs)} runs ended", title_justify="left")
        table.caption, table.caption_justify = Text(self._look, "default"), "left"
        for name in ("arm", "seed", "epoch", "val_loss", "verdict", "time left"):
            table.add_column(name, justify="left" if name in ("arm", "verdict") else "right")
        for place in self._shown():
            run, update = self._runs[place], self._stand.get(place)
            if update is None:
                table.add_row(Text(run.arm), str(run.seed), "", "", "waiting", "", style="dim")
            else:
                table.add_row(*_cells(run, update))
        return table

    def _shown(self) -> list[int]:
        """The places that are shown, in order: all, or those that run or ended last, then those that wait."""
        if len(self._runs) <= _ROWS:
            return list(range(len(self._runs)))
        running = [place for place, update in self._stand.items() if update.state == "running"]
        ended = [place for place in reversed(self._stand) if place not in running]
        waiting = [place for place in range(len(self._runs)) if place not in self._stand]
        return sorted([*running, *ended[: _ROWS // 2], *waiting][:_ROWS])


def _cells(run: Planned, update: Update) -> list[Text | str]:
    epoch = f"{update.epoch}/{update.epochs}" if update.epochs else ""
    colour = _COLOURS[
        "failed" if update.verdict in FAILED else "interrupted" if update.verdict in NO_RESULT else update.state
    ]
    word = update.verdict or (update.text or "training" if update.state == "running" else update.state)
    left = _left(update).removeprefix(", ").removesuffix(" left")
    loss = "" if update.val_loss is None else _loss(update)
    return [Text(run.arm), str(run.seed), epoch, loss, Text(word[:60], colour), left]


def _loss(update: Update) -> str:
    return "unknown" if update.val_loss is None else f"{update.val_loss:.4f}"


def _left(update: Update) -> str:
    if not update.seconds_left or update.seconds_left <= 0:
        return ""
    minutes, seconds = divmod(round(update.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    return f", {hours} h {minutes:02d} min left" if hours else f", {minutes} min {seconds:02d} s left"
