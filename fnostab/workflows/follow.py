"""A further process of a run on several devices: it trains along, and does nothing else."""

import os
import sys
import threading
from pathlib import Path

from fnostab.config import ArmConfig, with_sources
from fnostab.dataset import load_or_build
from fnostab.health.history import History
from fnostab.io.endings import Interrupted
from fnostab.training.callbacks import Checkpoints, Interruption, Pruning, SeriesRecorder, StageRecorder
from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.denormals import denormals_are_zero
from fnostab.training.memory import is_out_of_memory
from fnostab.training.precision import set_matrix_precision
from fnostab.training.processes import OUT_OF_MEMORY_EXIT, following
from fnostab.training.series import Nowhere
from fnostab.training.trainer import fit, make_trainer, quieten_libraries, set_threads

#: Starts such a process on this machine; see `training.processes.followers`.
COMMAND = [sys.executable, "-m", "fnostab.workflows.follow"]


def follow(config: ArmConfig) -> None:
    """Train `config` along with the process that leads the run, which alone writes, says and evaluates anything.

    Returns when the training is over, or was interrupted. Raises `RuntimeError` if it finds another dataset than the
    first process.
    """
    quieten_libraries()
    config = set_threads(with_sources(config))
    set_matrix_precision(config)
    # It decides what the first process decides, from the same numbers: a step that is not finite stops both.
    # Whether the run is given up or pruned, it is told.
    recorder = SeriesRecorder(History(), Nowhere(), config.train.give_up_epoch)
    files = CheckpointFiles(Path())  # the first process alone writes
    interruption = Interruption(follows=True)
    checkpoints = Checkpoints(files, config.train.checkpoint_every_s, config.train.select_by)
    # Lightning wants every process to know the callbacks of a checkpoint.
    stages = StageRecorder(recorder.history, Nowhere())
    callbacks = [recorder, Pruning(recorder.history), stages, checkpoints, interruption]
    trainer = make_trainer(config, callbacks, files)
    try:
        with denormals_are_zero(), following(trainer) as meeting, interruption:
            dataset = load_or_build(config.dataset)
            if dataset.sha256 != meeting.dataset_sha256:
                raise RuntimeError(f"another dataset than the first process has: {dataset.sha256}")
            fit(trainer, config, dataset, meeting.resume_from)
    except Interrupted:
        return


def main() -> int:
    """Follow the process that started this one, and end when that process does."""
    config = ArmConfig.model_validate_json(sys.stdin.readline())

    def end_with_the_first() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=end_with_the_first, daemon=True).start()
    try:
        follow(config)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return OUT_OF_MEMORY_EXIT
    return 0


if __name__ == "__main__":
    sys.exit(main())
