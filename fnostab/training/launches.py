"""A number of optimizer steps from static tensors, which a CUDA graph repeats."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fnostab.training.batches import Draw, PatchLoader
from fnostab.training.joint import Step, take_together

#: The canvas on which batches are stitched, over the largest that one epoch needs: those of other epochs differ.
_CANVAS_MARGIN: Final = 1.5


class Shape(NamedTuple):
    """What the batches of a run's replayed steps have room for."""

    size: int  #: patches
    extent_px: tuple[int, int]  #: as in `Batch`

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> "Shape":
        """The shape for the batches of an epoch, `draws`, and for most of other epochs."""
        side_px = math.ceil(_CANVAS_MARGIN * max(max(draw.extent_px) for draw in draws))
        return cls(max(len(draw.members) for draw in draws), (side_px, side_px))

    def holds(self, draw: Draw) -> bool:
        """Whether there is room for `draw`."""
        (height, width), (most_height, most_width) = draw.extent_px, self.extent_px
        return len(draw.members) <= self.size and height <= most_height and width <= most_width


class Table(NamedTuple):
    """What the steps of a run's epoch differ in, a row for each batch, on the device."""

    members: Tensor  #: (batches, size) int64
    counted: Tensor  #: (batches, size) bool
    lrs: Tensor  #: (batches, parameter groups) float32

    @classmethod
    def of(cls, draws: Sequence[Draw], size: int, place: int, lrs: Sequence[Sequence[float]]) -> "Table":
        """The table of `draws`, whose `lrs` are those from the batch at `place` on."""
        device = draws[0].members.device if draws else "cpu"
        sizes = torch.tensor([len(draw.members) for draw in draws], dtype=torch.int64)
        counted = torch.arange(size) < sizes[:, None]
        # A batch that is not large enough is filled up with its own first patch.
        members = [
            torch.cat([draw.members, draw.members[:1].expand(max(0, size - len(draw.members)))])[:size]
            for draw in draws
        ]
        rows = [[0.0] * len(lrs[0])] * place + [list(row) for row in lrs] if lrs else []
        return cls(
            torch.stack(members) if members else torch.empty(0, size, dtype=torch.int64),
            counted.to(device),
            torch.tensor(rows, dtype=torch.float32).to(device),
        )


class Run(NamedTuple):
    """A run whose steps are replayed."""

    module: Any  #: a `PtychoModule`
    loader: PatchLoader
    optimizer: Optimizer
    shape: Shape


class Coming(NamedTuple):
    """The next steps of a run, in one epoch."""

    run: Run
    draws: Sequence[Draw]  #: of the epoch
    table: Table  #: of the epoch
    place: int  #: of the next step's batch in the epoch
    number: int  #: of the next step in the run
    measure_every: Sequence[int]  #: Steps with a number that one of these divides measure the layers.

    @property
    def measures_layers(self) -> bool:
        """Whether the next step measures the layers."""
        return any(self.number % every == 0 for every in self.measure_every)

    def can_be_replayed(self, count: int) -> bool:
        """Whether the next `count` steps belong to the epoch, measure no layers, and have room for their batches."""
        draws = self.draws[self.place : self.place + count]
        free = [-self.number % every for every in self.measure_every]
        return min(len(draws), *free) >= count and all(map(self.run.shape.holds, draws))


class Launch:
    """A number of steps from static tensors, of one run, or of several that take theirs together."""

    def __init__(self, runs: Sequence[Run], count: int) -> None:
        self._runs = runs
        self._count = count
        device = runs[0].loader.patches.sqrt_counts.device
        self._rows = [
            Table(
                torch.zeros(count, run.shape.size, dtype=torch.int64, device=device),
                torch.ones(count, run.shape.size, dtype=torch.bool, device=device),
                torch.zeros(count, len(run.optimizer.param_groups), device=device),
            )
            for run in runs
        ]
        #: The record of each step of each run (runs, count, 4), as `TrainingStep` has it.
        self.records = torch.zeros(len(runs), count, 4, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def fill(self, coming: Sequence[Coming]) -> None:
        """Write what the next steps of each run differ in; the host does not wait."""
        for one, of_run in zip(coming, self._rows, strict=True):
            for static, rows in zip(of_run, one.table, strict=True):
                static.copy_(rows[one.place : one.place + self._count])

    def run(self) -> None:
        """Take the steps: what the graph repeats."""
        for number in range(self._count):
            steps = []
            with ExitStack() as stack:
                for run, rows in zip(self._runs, self._rows, strict=True):
                    batch = run.loader.patches.take(rows.members[number])._replace(
                        counted=rows.counted[number], global_size=run.shape.size, extent_px=run.shape.extent_px
                    )
                    steps.append(Step(run.module, run.optimizer, batch))
                    stack.enter_context(_tensor_lrs(run.optimizer, rows.lrs[number]))
                for record, found in zip(self.records[:, number].unbind(), take_together(steps), strict=True):
                    record.copy_(found)

    def replay(self, stream: torch.cuda.Stream, pool: Any) -> None:
        """Take the steps by the graph, which is captured at the first call.

        It is captured on the `stream` of the steps before it, into the memory `pool`, or one of its own if that is
        None. Nothing in its memory is used after it has run, so that others may share it.
        """
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                self.run()
            self._graph = graph
        self._graph.replay()


@contextmanager
def _tensor_lrs(optimizer: Optimizer, lrs: Tensor) -> Iterator[None]:
    """Let `optimizer` read its learning rates from `lrs` (groups,), and be captured, inside this context.

    Outside, schedules and checkpoints find the numbers that they know.
    """
    captures = lrs.is_cuda and torch.cuda.is_current_stream_capturing()
    before = [dict(group) for group in optimizer.param_groups]
    try:
        for group, lr in zip(optimizer.param_groups, lrs.unbind(), strict=True):
            group["lr"] = lr
            if "capturable" in group:
                group["capturable"] = captures
        yield
    finally:
        for group, of_before in zip(optimizer.param_groups, before, strict=True):
            group.update({key: of_before[key] for key in ("lr", "capturable") if key in of_before})
