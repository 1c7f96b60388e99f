"""Trainings that are killed at a chosen moment, and what they must have left behind once they were given again.

Run as a script it is a server that has everything imported: each line on stdin is a training, carried out in a fork of
its own by the command line, so that many can be killed without importing torch each time. The moment is a call of a
function that every training calls (see `POINTS`), and a delay after it; the signal is a real one.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Small, and with all that a training does: data, steps, checkpoints at every step, pictures, layers, a model.
ARGUMENTS = (
    *("train", "--preset", "smoke", "--epochs", "3", "--width", "4", "--data.max_train_patches", "80"),
    *("--data.object_size", "112", "--train.checkpoint_every_s", "0.000001", "--train.picture_every_epochs", "100"),
    *("--train.layer_norms_every_steps", "4", "--train.watch_every_steps", "3", "--train.threads", "1"),
)

#: Where a training can be killed: the owner of a function, and its name.
POINTS = {
    "data building": ("fnostab.optics", "poisson_counts"),
    "data hashing": ("fnostab.dataset.cache", "_json_sha256"),
    "run creation": ("mlflow", "start_run"),
    "step": ("fnostab.training.module:PtychoModule", "training_step"),
    "validation": ("fnostab.training.module:PtychoModule", "validation_step"),
    "checkpoint, before it is on the disk": ("fnostab.io.files.os", "fsync"),
    "checkpoint, as it takes its place": ("fnostab.io.files.os", "replace"),
    "logging of metrics": ("mlflow:MlflowClient", "log_batch"),
    "logging of pictures": ("mlflow:MlflowClient", "log_image"),
    "logging of artifacts": ("mlflow:MlflowClient", "log_artifact"),
    "model export": ("torch.export", "save"),
    "model upload": ("mlflow:MlflowClient", "log_model_artifact"),
    "end of the run": ("mlflow", "end_run"),
}


@dataclass(frozen=True)
class Moment:
    """When a training is killed: `delay_s` into the call number `call` (from 0) of a point."""

    point: str
    call: int
    delay_s: float
    signum: int

    def __str__(self) -> str:
        return f"{signal.Signals(self.signum).name} at {self.point}, call {self.call}, {1000 * self.delay_s:.1f} ms in"


#: Points of the beginning, the middle and the end of a training: one that is killed in each has still something to do.
PARTS = (
    ("data building", "data hashing", "run creation", "step"),
    (
        *("step", "validation", "logging of metrics"),
        *("checkpoint, before it is on the disk", "checkpoint, as it takes its place"),
    ),
    ("logging of pictures", "logging of artifacts", "model export", "model upload", "end of the run"),
)


def random_moment(part: int, calls: dict[str, int], signum: int, rng: random.Random) -> Moment:
    """A moment in a part of a training: at a random call of one of its points, out of the first half of `calls`.

    As often as not it is up to 30 ms into that call.
    """
    point = rng.choice(PARTS[part])
    return Moment(point, rng.randrange(-(-calls[point] // 2)), rng.choice([0.0, rng.uniform(0, 0.03)]), signum)


class Trainings:
    """Carries out trainings in forks of one warm process."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Trainings":
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "OMP_WAIT_POLICY": "passive"}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.communicate()  # which closes its stdin: it ends

    def train(
        self, folder: Path, moment: Moment | None = None, arguments: tuple[str, ...] = ARGUMENTS
    ) -> dict[str, Any]:
        """Train in `folder`; gives the exit code, negative for a signal that killed it, and the calls of each point."""
        assert self._server is not None
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        wanted = None if moment is None else [moment.point, moment.call, moment.delay_s, moment.signum]
        order = {"folder": str(folder), "arguments": arguments, "moment": wanted}
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return answer


def empty_store(folder: Path) -> Path:
    """A folder with a store in which nothing is yet."""
    folder.mkdir()
    code = "from fnostab.tracking.store import open_store; open_store()"
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    return folder


def fresh_folder(template: Path, folder: Path) -> Path:
    """A working directory with an empty store, copied from `template`, which saves MLflow's migrations."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("update experiments set artifact_location = ?", [str(folder / "mlruns" / "0")])
    return folder


def left_behind(folder: Path) -> dict[str, Any]:
    """What a finished training left in the store: all that must not depend on when it was killed.

    Raises AssertionError if something is doubled, half-written, or there more than it should be.
    """
    import torch

    from fnostab.io.files import damage

    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        runs = database.execute("select run_uuid, status from runs").fetchall()
        assert [status for _, status in runs] == ["FINISHED"], runs
        (run_id, _), *_ = runs
        rows = database.execute("select key, step, value from metrics where key not like 'system/%'").fetchall()
        models = database.execute("select status, lifecycle_stage from logged_models").fetchall()
        tags = dict(database.execute("select key, value from tags").fetchall())
    assert len({(key, step) for key, step, _ in rows}) == len(rows), "a point is there twice"
    assert [model for model in models if model[1] == "active"] == [(2, "active")], models  # 2: ready
    half = [path for path in folder.rglob("*") if ".partial" in path.name]
    assert half == []
    assert list((folder / "cache" / "runs").glob("*/")) == []
    artifacts = folder / "mlruns" / "0" / run_id / "artifacts"
    files = sorted(path for path in artifacts.rglob("*") if path.is_file())
    broken = {path.name: damage(path) for path in files if path.suffix in (".ckpt", ".npz", ".pt2")}
    assert not any(broken.values()), broken
    # The names of pictures hold the time; their small copies are another format of the same.
    names = [str(path.relative_to(artifacts)).partition("+timestamp")[0] for path in files if path.suffix != ".webp"]
    checkpoints = [
        torch.load(artifacts / "checkpoints" / name, weights_only=True) for name in ("best.ckpt", "last.ckpt")
    ]
    wanted = ("verdict", "verdict_reason", "study", "arm", "seed", "dataset_sha256", "config_sha256")
    return {
        "series": sorted((key, step, value) for key, step, value in rows if key != "samples_per_s"),
        "weights": [
            {name: value.tolist() for name, value in checkpoint["state_dict"].items()} for checkpoint in checkpoints
        ],
        "history": json.loads((artifacts / "history.json").read_text()),
        "artifacts": sorted(names),
        "tags": {key: tags[key] for key in wanted},
    }


def _owner(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:  # an attribute of a module
        parent, _, attribute = module.rpartition(".")
        owner = getattr(importlib.import_module(parent), attribute)
    return getattr(owner, name) if name else owner


@contextmanager
def _watched(moment: Moment | None, calls: dict[str, int]) -> Iterator[None]:
    """Count the calls of every point, and at `moment` send the signal to this process."""
    for point, (owner_path, name) in POINTS.items():
        owner = _owner(owner_path)
        setattr(owner, name, _wrapped(point, getattr(owner, name), moment, calls))
    yield


def _wrapped(point: str, function: Any, moment: Moment | None, calls: dict[str, int]) -> Any:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        call = calls.get(point, 0)
        calls[point] = call + 1
        if moment is not None and (point, call) == (moment.point, moment.call):
            if moment.delay_s:
                threading.Timer(moment.delay_s, os.kill, (os.getpid(), moment.signum)).start()
            else:
                os.kill(os.getpid(), moment.signum)
        return function(*arguments, **named)

    return wrapped


def _train(order: dict[str, Any], report: int) -> int:
    """Carry out one order in this process, a fork."""
    folder = Path(order["folder"])
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ["FNOSTAB_CACHE"] = str(folder / "cache")
    with open(folder / "output.txt", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from fnostab.cli import main

    calls: dict[str, int] = {}
    try:
        with _watched(Moment(*order["moment"]) if order["moment"] else None, calls):
            return main(order["arguments"])
    finally:
        os.write(report, json.dumps(calls).encode())


def _serve() -> None:
    import fnostab.workflows.train  # noqa: F401  # what takes the time

    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            code = 70
            try:
                code = _train(json.loads(line), writing)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with open(reading, "rb") as pipe:
            calls = json.loads(pipe.read() or b"{}")
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "calls": calls}), flush=True)


if __name__ == "__main__":
    _serve()
