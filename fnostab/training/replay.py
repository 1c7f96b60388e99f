"""Whole optimizer steps as CUDA graphs: captured once, then several of them replayed by one launch."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fnostab.training.batches import Batch, Draw, PatchLoader
from fnostab.training.optimizers import coming_lrs
from fnostab.training.step import TrainingStep

#: Steps of one launch, where nothing is due between them.
STEPS_A_LAUNCH: Final = 8
#: Steps that are taken in the ordinary way before the first capture: they make the optimizer's state, and have the
#: libraries choose their kernels.
_WARM_UP_STEPS: Final = 3
#: The canvas on which batches are stitched, over the largest that one epoch needs: those of other epochs differ.
_CANVAS_MARGIN: Final = 1.5


def replays_on(device: torch.device) -> bool:
    """Whether `device` can replay steps."""
    return device.type == "cuda"


class GraphedSteps:
    """Takes the steps of one device by replaying them, ahead of the loop that asks for them one by one.

    A step of a small network is some hundreds of kernels of a few microseconds each; Python takes several times as long
    to launch them as they take to run. Here a whole `TrainingStep.take`, from the choice of its patches to the
    optimizer, is captured once, and replayed at one launch for up to `STEPS_A_LAUNCH` steps of one epoch; the loop is
    then handed their records. So up to that many steps are taken before they are asked for: `is_ahead` says whether the
    weights are those of a later step than the last one that was handed out.

    What differs from step to step is written into static tensors first, from tables of the epoch that lie on the
    device: members and learning rates, these in single precision. A batch with fewer patches than others is filled up
    with patches that do not count. A step at which the layers are measured, every `measure_every`, and one whose
    patches lie further apart than the canvas is wide, are taken in the ordinary way.

    On other devices than CUDA's the same steps are taken from the same static tensors by calling what would be
    captured; that is for tests. Parameters, and what optimizer and clipping rule remember, must keep their place in
    memory.
    """

    def __init__(
        self,
        step: TrainingStep,
        loader: PatchLoader,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        measure_every: int,
    ) -> None:
        self._step = step
        self._loader = loader
        self._optimizer = optimizer
        self._schedule = schedule
        self._measure_every = measure_every
        self._draws: Sequence[Draw] = ()
        self._table = _Table.of([], 0, 0, [])
        self._launches: dict[int, _Launch] = {}
        self._shape: _Shape | None = None
        self._taken = 0
        self._ahead: deque[Tensor] = deque()
        device = loader.patches.sqrt_counts.device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def is_ahead(self) -> bool:
        """Whether steps were taken that are not handed out yet."""
        return bool(self._ahead)

    def take(self, draw: Draw, number: int) -> Tensor:
        """Take the step of the run with this `number`, on the batch of `draw`, unless it is taken; returns its loss."""
        if self._loader.draws is not self._draws:
            self._begin_epoch(draw.place)
        self._step.layer_norms = {}
        if not self._ahead:
            self._go_on(draw, number)
        self._step.record = self._ahead.popleft()
        return self._step.record[0]

    def _begin_epoch(self, place: int) -> None:
        """Bring the epoch's tables to the device; `place` is that of its first batch that is to be used."""
        self._draws = self._loader.draws
        if self._shape is None:
            self._shape = _Shape.of(self._draws)
        lrs = coming_lrs(self._optimizer, self._schedule, len(self._draws) - place)
        self._table = _Table.of(self._draws, self._shape.size, place, lrs)

    def _go_on(self, draw: Draw, number: int) -> None:
        """Take as many steps as can be taken together, from `draw` on."""
        assert self._shape is not None
        measures = number % self._measure_every == 0
        if measures or not self._shape.holds(draw):
            self._step.take(self._loader.gather(draw), self._optimizer, measures_layers=measures)
            self._ahead.append(self._step.record)
            return
        count = self._count(self._shape, draw, number)
        if count not in self._launches:
            self._launches[count] = _Launch(self._step, self._loader.patches, self._optimizer, self._shape, count)
        launch = self._launches[count]
        launch.fill(self._table, draw.place)
        if self._stream is None:
            launch.run()
        elif self._taken < _WARM_UP_STEPS:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                launch.run()
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            launch.replay(self._stream)
        self._taken += count
        self._ahead.extend(launch.records.clone().unbind())

    def _count(self, shape: "_Shape", draw: Draw, number: int) -> int:
        """How many steps can be taken together, from the one with this `number` on the batch of `draw` on."""
        coming = self._draws[draw.place : draw.place + STEPS_A_LAUNCH]
        until_measured = self._measure_every - number % self._measure_every
        together = self._taken >= _WARM_UP_STEPS and min(len(coming), until_measured) >= STEPS_A_LAUNCH
        return STEPS_A_LAUNCH if together and all(map(shape.holds, coming)) else 1


class _Shape(NamedTuple):
    """What the batches of replayed steps have room for."""

    size: int  #: patches
    extent_px: tuple[int, int]  #: as in `Batch`

    @classmethod
    def of(cls, draws: Sequence[Draw]) -> "_Shape":
        """The shape for the batches of an epoch, `draws`, and for most of other epochs."""
        side_px = math.ceil(_CANVAS_MARGIN * max(max(draw.extent_px) for draw in draws))
        return cls(max(len(draw.members) for draw in draws), (side_px, side_px))

    def holds(self, draw: Draw) -> bool:
        """Whether there is room for `draw`."""
        (height, width), (most_height, most_width) = draw.extent_px, self.extent_px
        return len(draw.members) <= self.size and height <= most_height and width <= most_width


class _Table(NamedTuple):
    """What the steps of an epoch differ in, a row for each batch, on the device."""

    members: Tensor  #: (batches, size) int64
    counted: Tensor  #: (batches, size) bool
    lrs: Tensor  #: (batches, parameter groups) float32

    @classmethod
    def of(cls, draws: Sequence[Draw], size: int, place: int, lrs: Sequence[Sequence[float]]) -> "_Table":
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


class _Launch:
    """A number of steps from static tensors."""

    def __init__(self, step: TrainingStep, patches: Batch, optimizer: Optimizer, shape: _Shape, count: int) -> None:
        self._step = step
        self._patches = patches
        self._optimizer = optimizer
        self._shape = shape
        self._count = count
        device = patches.sqrt_counts.device
        self._rows = _Table(
            torch.zeros(count, shape.size, dtype=torch.int64, device=device),
            torch.ones(count, shape.size, dtype=torch.bool, device=device),
            torch.zeros(count, len(optimizer.param_groups), device=device),
        )
        #: The record of each step (count, 4), as `TrainingStep` has it.
        self.records = torch.zeros(count, 4, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None

    def fill(self, table: _Table, place: int) -> None:
        """Write what the steps from the batch at `place` on differ in; the host does not wait."""
        for static, rows in zip(self._rows, table, strict=True):
            static.copy_(rows[place : place + self._count])

    def run(self) -> None:
        """Take the steps: what the graph repeats."""
        for number, (members, counted, lrs) in enumerate(zip(*self._rows, strict=True)):
            batch = self._patches.take(members)._replace(
                counted=counted, global_size=self._shape.size, extent_px=self._shape.extent_px
            )
            with _tensor_lrs(self._optimizer, lrs):
                self._step.take(batch, self._optimizer)
            self.records[number].copy_(self._step.record)

    def replay(self, stream: torch.cuda.Stream) -> None:
        """Take the steps by the graph, which is captured at the first call, on the `stream` of the steps before it."""
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self.run()
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
