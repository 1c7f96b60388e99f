"""Optimizer steps ahead of the loop that asks for them: several by one launch of a CUDA graph."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fnostab.training.batches import Draw, PatchLoader
from fnostab.training.joint import Step, take_together
from fnostab.training.launches import Coming, Launch, Run, Shape, Table
from fnostab.training.optimizers import coming_lrs

#: Steps of one launch, where nothing is due between them.
STEPS_A_LAUNCH: Final = 8
#: Steps that are taken in the ordinary way before the first capture: they make the optimizer's state, and have the
#: libraries choose their kernels.
_WARM_UP_STEPS: Final = 3


def replays_on(device: torch.device) -> bool:
    """Whether `device` can replay steps."""
    return device.type == "cuda"


class GraphedSteps:
    """Takes the steps of a run on one device by replaying them, ahead of the loop that asks for them one by one.

    A step of a small network is some hundreds of kernels of a few microseconds each; Python takes several times as long
    to launch them as they take to run. Here a whole step, from the choice of its patches to the optimizer, is captured
    once, and replayed at one launch for up to `STEPS_A_LAUNCH` steps of one epoch; the loop is then handed their
    records. So up to that many steps are taken before they are asked for: `is_ahead` says whether the weights are those
    of a later step than the last one that was handed out.

    What differs from step to step is written into static tensors first, from tables of the epoch that lie on the
    device: members and learning rates, these in single precision. A batch with fewer patches than others is filled up
    with patches that do not count. A step at which the layers are measured, with a number that one of `measure_every`
    divides, and one whose patches lie further apart than the canvas is wide, are taken in the ordinary way.

    On other devices than CUDA's the same steps are taken from the same static tensors by calling what would be
    captured; that is for tests. Parameters, and what optimizer and clipping rule remember, must keep their place in
    memory.

    `module` is a `PtychoModule`. `take_coming` takes as many coming steps as can be taken together, at least one, and
    returns their records (count, 4); without it they are the run's own, by `Replays`, else those of several runs.
    """

    def __init__(
        self,
        module: Any,
        loader: PatchLoader,
        optimizer: Optimizer,
        schedule: LRScheduler | None,
        measure_every: Sequence[int],
        take_coming: Callable[[Coming], Tensor] | None = None,
    ) -> None:
        self._module = module
        self._loader = loader
        self._optimizer = optimizer
        self._schedule = schedule
        self._measure_every = measure_every
        self._take_coming = take_coming or Replays(CaptureMemory(loader.patches.sqrt_counts.device)).take_alone
        self._draws: Sequence[Draw] = ()
        self._table = Table.of([], 0, 0, [])
        self._run: Run | None = None
        self._ahead: deque[Tensor] = deque()

    @property
    def is_ahead(self) -> bool:
        """Whether steps were taken that are not handed out yet."""
        return bool(self._ahead)

    def take(self, draw: Draw, number: int) -> Tensor:
        """Take the step of the run with this `number`, on the batch of `draw`, unless it is taken; returns its loss."""
        if self._loader.draws is not self._draws:
            self._begin_epoch(draw.place)
        step = self._module.step
        step.layer_norms = {}
        if not self._ahead:
            assert self._run is not None
            coming = Coming(self._run, self._draws, self._table, draw.place, number, self._measure_every)
            self._ahead.extend(self._take_coming(coming).unbind())
        step.record = self._ahead.popleft()
        loss: Tensor = step.record[0]
        return loss

    def _begin_epoch(self, place: int) -> None:
        """Bring the epoch's tables to the device; `place` is that of its first batch that is to be used."""
        self._draws = self._loader.draws
        if self._run is None:
            self._run = Run(self._module, self._loader, self._optimizer, Shape.of(self._draws))
        lrs = coming_lrs(self._optimizer, self._schedule, len(self._draws) - place)
        self._table = Table.of(self._draws, self._run.shape.size, place, lrs)


class CaptureMemory:
    """The stream on which graphs are captured, None without CUDA, and the memory that they share if `share` was called.

    They may share it because they run one after another, and none uses what another one left there.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream | None = None
        self.pool: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def share(self) -> None:
        """Let the graphs that are captured from now on share memory, with none that were before."""
        if self.stream is not None:
            self.pool = torch.cuda.graph_pool_handle()


class Replays:
    """Takes steps of one run, or of several at once, always the same ones: by launches of one step or several."""

    def __init__(self, memory: CaptureMemory) -> None:
        self._memory = memory
        self._launches: dict[int, Launch] = {}
        self._taken = 0

    def take_alone(self, coming: Coming) -> Tensor:
        """`take` of one run: its records (count, 4)."""
        return self.take([coming])[0]

    def take(self, coming: Sequence[Coming]) -> Tensor:
        """Take as many coming steps as all runs can take together; returns their records (runs, count, 4).

        The runs may stand at different places. On CUDA, what goes wrong leaves all as they were, unless it is raised as
        `PartlyTaken`: several steps are one graph there.
        """
        if not all(one.can_be_replayed(1) for one in coming):
            return self._take_in_the_ordinary_way(coming)
        is_warm = self._taken >= _WARM_UP_STEPS
        count = STEPS_A_LAUNCH if is_warm and all(one.can_be_replayed(STEPS_A_LAUNCH) for one in coming) else 1
        if count not in self._launches:
            self._launches[count] = Launch([one.run for one in coming], count)
        launch = self._launches[count]
        launch.fill(coming)
        stream = self._memory.stream
        if stream is None:
            launch.run()
        elif is_warm:
            launch.replay(stream, self._memory.pool)
        else:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                launch.run()
            torch.cuda.current_stream().wait_stream(stream)
        self._taken += count
        return launch.records.clone()

    @staticmethod
    def _take_in_the_ordinary_way(coming: Sequence[Coming]) -> Tensor:
        steps = [Step(one.run.module, one.run.optimizer, one.run.loader.gather(one.draws[one.place])) for one in coming]
        measures = [one.measures_layers for one in coming]
        return torch.stack(take_together(steps, measures)).unsqueeze(1)
