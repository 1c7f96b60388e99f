"""Where the time of a command goes, by phase, measured from outside of it.

`benchmarks.fixed_cost` puts this file in front of a command's import path as `sitecustomize`, which Python imports
before anything else. It needs the standard library alone, and replaces the functions of `PHASE_OF` by timed ones as
their modules are imported. At its end, a process that trained something writes what it measured, as JSON, into the
folder that the variable `PHASES` names. A function that a version of the package does not have is passed over.
"""

import atexit
import functools
import importlib._bootstrap  # type: ignore[import-not-found]
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

REST: Final = "config, and the rest"
IMPORTS: Final = "imports"
BUILD: Final = "network and trainer"
FIRST_STEP: Final = "first step"
TRAINING: Final = "training"
STORE: Final = "store"
DATASET: Final = "dataset"
EVALUATION: Final = "evaluation"
FIGURES: Final = "figures"
EXPORT: Final = "export of the model"
MODEL: Final = "saving and checking the model"
UPLOADS: Final = "uploads"
FINISH: Final = "end of the run"

#: The phases in the order of a run.
PHASES: Final = (
    *(IMPORTS, REST, STORE, DATASET, BUILD, FIRST_STEP, TRAINING),
    *(EVALUATION, FIGURES, EXPORT, MODEL, UPLOADS, FINISH),
)

_UPLOADS: Final = ("log_config", "log_dataset", "log_text", "log_picture", "log_artifact", "log_artifacts", "set_tags")
#: Where the functions of `_IN_RUN` are, and were at commit 7c60fe8.
_OF_RUN: Final = ("fnostab.workflows.arm_training", "fnostab.workflows.train")
_IN_RUN: Final = (("baselines", DATASET), ("make_trainer", BUILD), ("fit", BUILD), ("_free_memory", EVALUATION))
#: The functions that are timed: module, name, phase. Time in a function that another one calls is the inner phase's.
PHASE_OF: Final = (
    ("fnostab.workflows.train", "check_store", STORE),
    ("fnostab.workflows.train", "open_store", STORE),
    ("fnostab.workflows.train", "_earlier_run", STORE),
    ("fnostab.tracking.run", "_choose_run", STORE),
    ("mlflow", "start_run", STORE),
    ("fnostab.workflows.train", "build_dataset", DATASET),
    ("fnostab.workflows.train", "check_arm", BUILD),
    ("fnostab.workflows.train", "check_network", BUILD),  # at commit a914e3b and before
    ("fnostab.workflows.train", "check_clipping", BUILD),
    *((of_run, name, phase) for of_run in _OF_RUN for name, phase in _IN_RUN),
    ("fnostab.workflows.arm_training", "ArmTraining._best", EVALUATION),
    ("fnostab.workflows.arm_training", "ArmTraining._evaluate", EVALUATION),
    ("fnostab.workflows.train", "_Training._best", EVALUATION),  # as it was called at commit 7c60fe8
    ("fnostab.workflows.train", "_Training._evaluate", EVALUATION),
    ("fnostab.workflows.logbook", "_pixels", FIGURES),
    ("fnostab.workflows.logbook", "Logbook.log_model", MODEL),
    ("torch.export", "export", EXPORT),
    *(("fnostab.tracking.tracker", f"Tracker.{name}", UPLOADS) for name in (*_UPLOADS, "log_image", "flush")),
    ("fnostab.tracking.tracker", "Tracker.finish", FINISH),
    ("mlflow", "end_run", FINISH),
)
_STEP: Final = ("fnostab.training.module", "PtychoModule.training_step")
_RUN: Final = ("fnostab.workflows.train", "train_arm")


class Phases:
    """Wall and CPU seconds of this process by phase, in all and of each run."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.runs: list[dict[str, list[float]]] = []
        self.trained_at = 0.0
        self._stack = [REST]
        self._thread = threading.get_ident()
        self._began_at = time.time()
        self._last = time.perf_counter(), time.process_time()

    def charge(self) -> None:
        """Give the time since the last call to the phase that is going on."""
        now = time.perf_counter(), time.process_time()
        for of in (self.seconds, *self.runs[-1:]):
            sums = of.setdefault(self._stack[-1], [0.0, 0.0])
            for place in (0, 1):
                sums[place] += now[place] - self._last[place]
        self._last = now

    def timed(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        """`function`, its time being that of `phase`; inside of the training all is the training's."""

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread or self._stack[-1] in (FIRST_STEP, TRAINING):
                return function(*arguments, **named)
            self.charge()
            self._stack.append(phase)
            try:
                return function(*arguments, **named)
            finally:
                self.charge()
                if self._stack.pop() == TRAINING:
                    self.trained_at = time.time()

        return timed

    def stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The training step: the first call begins the first step, and the second one the training."""

        @functools.wraps(function)
        def step(*arguments: Any, **named: Any) -> Any:
            if self._stack[-1] in (BUILD, FIRST_STEP):
                self.charge()
                self._stack[-1] = FIRST_STEP if self._stack[-1] == BUILD else TRAINING
            return function(*arguments, **named)

        return step

    def running(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What trains an arm: its time is also that of a run."""

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            self.charge()
            self.runs.append({})
            try:
                return function(*arguments, **named)
            finally:
                self.charge()

        return run

    def write(self) -> None:
        """Write all that was measured, if anything was trained."""
        self.charge()
        if not self.runs:
            return
        found = {"began_at": self._began_at, "trained_at": self.trained_at, "ended_at": time.time()}
        found |= {"cpu_s": time.process_time(), "seconds": self.seconds, "runs": self.runs}
        with open(os.path.join(os.environ["PHASES"], f"{os.getpid()}.json"), "w") as file:
            json.dump(found, file)


def install() -> None:
    """Time this process."""
    phases = Phases()
    atexit.register(phases.write)
    found_before = importlib._bootstrap._find_and_load

    def find_and_load(name: str, import_: Any) -> ModuleType:
        module: ModuleType = found_before(name, import_)
        for place, path, phase in PHASE_OF:
            if place == name:
                _replace(module, path, functools.partial(phases.timed, phase=phase))
        for (place, path), wrapper in ((_STEP, phases.stepping), (_RUN, phases.running)):
            if place == name:
                _replace(module, path, wrapper)
        return module

    # Python calls this function, by this name, for each module that was not imported before.
    importlib._bootstrap._find_and_load = phases.timed(find_and_load, IMPORTS)


def _replace(module: ModuleType, path: str, wrapper: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace a function of `module`, or of a class in it, once."""
    *owners, name = path.split(".")
    owner = functools.reduce(lambda at, part: getattr(at, part, None), owners, module)
    function = vars(owner).get(name) if owner is not None else None
    if function is not None and not hasattr(function, "__wrapped__"):
        setattr(owner, name, wrapper(function))


if os.environ.get("PHASES") and "sitecustomize" in sys.modules:
    install()
