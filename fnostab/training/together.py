"""Training steps of several runs of one arm, whose networks are computed as one."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fnostab.training.batches import Batch
from fnostab.training.joint import Step, losses_with_gradients
from fnostab.training.launches import Coming
from fnostab.training.memory import is_out_of_memory
from fnostab.training.replay import CaptureMemory, Replays
from fnostab.training.turns import Turns


class Together(Turns[Step | Coming, torch.Tensor]):
    """Trainings, each in a thread of its own, whose steps are taken together.

    Where steps are replayed, all of a step is taken for all runs by one launch, and up to eight steps are; each run
    then goes through its own until all need more. Else losses and gradients are computed for all, and each run updates
    its own weights.

    A run that ends, or is not finite, leaves the others as they are. If the memory does not suffice for all networks at
    once, `report` takes a line, and from then on as many go together as do fit; it is an error only if one does not.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        super().__init__(self._answers_in_parts)
        self._report = report
        self._at_once: int | None = None
        #: What replays the steps of the runs at these places.
        self._replays: dict[tuple[int, ...], Replays] = {}
        self._memory: CaptureMemory | None = None

    def _answers_in_parts(self, questions: Mapping[int, Step | Coming]) -> Mapping[int, torch.Tensor]:
        """What is answered to each run, for as many at once as the memory holds."""
        answers: dict[int, torch.Tensor] = {}
        while waiting := [place for place in questions if place not in answers]:
            at_once = min(self._at_once or len(questions), len(questions))
            part = waiting[:at_once]
            try:
                answers |= self._answers_of({place: questions[place] for place in part}, questions.keys())
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or at_once == 1:
                    raise
            else:
                continue
            # Outside of the handler, which keeps the tensors of the attempt alive.
            self._at_once = at_once // 2
            self._forget_replays()
            torch.cuda.empty_cache()
            self._report(f"out of memory with {at_once} runs at once: {self._at_once} at once from here")
        return answers

    def _answers_of(self, part: Mapping[int, Step | Coming], alive: Collection[int]) -> Mapping[int, torch.Tensor]:
        """What is answered to each run of `part`, whose networks are computed as one."""
        steps = [one for one in part.values() if isinstance(one, Step)]
        coming = [one for one in part.values() if isinstance(one, Coming)]
        assert not (steps and coming)  # runs that differ in their seed alone ask alike
        found = losses_with_gradients(steps) if steps else self._replays_of(tuple(part), alive, coming).take(coming)
        return dict(zip(part, found, strict=True))

    def _replays_of(self, places: tuple[int, ...], alive: Collection[int], coming: Sequence[Coming]) -> Replays:
        """What replays the steps of the runs at `places`.

        Where the runs are other ones than before, all graphs are given up, and captured anew.
        """
        if places not in self._replays:
            if any(place in places or place not in alive for of_before in self._replays for place in of_before):
                self._forget_replays()
            if self._memory is None:
                self._memory = CaptureMemory(coming[0].run.loader.patches.sqrt_counts.device)
            if not self._replays:
                self._memory.share()
            self._replays[places] = Replays(self._memory)
        return self._replays[places]

    def _forget_replays(self) -> None:
        """Give back the memory of all graphs, once none is running."""
        if self._memory is not None and self._memory.stream is not None:
            torch.cuda.synchronize()
        self._replays.clear()


class Member(NamedTuple):
    """One of the runs that are trained together: the one at `place`, in whose thread it is used."""

    together: Together
    place: int

    def loss(self, module: Any, batch: Batch) -> torch.Tensor:
        """The loss of `module`, a `PtychoModule`, once all runs have come here; the gradients are there then."""
        return self.together.ask(self.place, Step(module, module.trainer.optimizers[0], batch))

    def records(self, coming: Coming) -> torch.Tensor:
        """The records (count, 4) of as many `coming` steps as are taken for all runs, once all have come here."""
        return self.together.ask(self.place, coming)
