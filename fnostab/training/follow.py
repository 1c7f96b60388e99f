"""A further process of a run with several devices: it trains along, and does nothing else."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from fnostab.config import ArmConfig
from fnostab.dataset import load_or_build
from fnostab.health.history import History
from fnostab.io.endings import Interrupted
from fnostab.training import (
    CheckpointFiles,
    ClusterEnvironment,
    OneMachine,
    fit,
    following,
    is_out_of_memory,
    make_trainer,
    quieten_libraries,
    set_threads,
)
from fnostab.training.callbacks import Checkpoints, Interruption, SeriesRecorder
from fnostab.training.processes import OUT_OF_MEMORY_EXIT, receive_assignment, say_ready


class _Nowhere:
    """Takes series and drops them."""

    def log_series(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        """Drop `rows`."""

    def flush(self) -> bool:
        """There is nothing to write."""
        return True


def follow(config: ArmConfig, environment: ClusterEnvironment, ready: Callable[[], None] = lambda: None) -> None:
    """Train `config` along with the process that leads the run, which alone writes, says and evaluates anything.

    Returns when the training is over, or was interrupted. `ready` is called when this process is about to meet the
    others. Raises `RuntimeError` if it finds another dataset than the first process.
    """
    quieten_libraries()
    config = set_threads(config)
    with Interruption(follows=True) as interruption:
        # It decides what the first process decides, from the same numbers: a step that is not finite stops both.
        # Whether the run is given up, it is told.
        recorder = SeriesRecorder(History(), _Nowhere(), config.train.give_up_epoch)
        files = CheckpointFiles(Path())  # the first process alone writes
        checkpoints = Checkpoints(files, config.train.checkpoint_every_s)
        trainer = make_trainer(config, [recorder, checkpoints, interruption], files, environment)
        ready()
        try:
            with following(trainer, config, environment) as meeting:
                dataset = load_or_build(config.data)
                if dataset.sha256 != meeting.dataset_sha256:
                    raise RuntimeError(f"another dataset than the first process has: {dataset.sha256}")
                fit(trainer, config, dataset, meeting.resume_from)
        except Interrupted:
            return


def main() -> int:
    """Follow the process that started this one."""
    assignment = receive_assignment()
    try:
        follow(assignment.config, OneMachine(assignment.rank, assignment.port), say_ready)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
