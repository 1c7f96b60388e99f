"""What is measured on a GPU, in the order of its value, each beside its peer and with the seconds that it takes."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import clipping, depth, observing, step
from benchmarks.table import Row, faster, percent
from benchmarks.timing import by_turns, spread
from benchmarks.training import Case, full_case, ms_by_turns, small_case
from fnostab.config import ModelConfig, resolve_config
from fnostab.dataset import load_or_build
from fnostab.models import build_generator

#: One arm, for studies that only count runs.
_CONTROL = "arms:\n  - {name: control, arch: hybrid, clip_algo: norm, clip_val: 1.0}\n"


@dataclass(frozen=True)
class Setting:
    """The device, whether at tiny sizes, and the `time.monotonic` at which the minutes are over."""

    device: str
    small: bool
    deadline: float

    @property
    def case(self) -> Case:
        """The trainings that are compared."""
        return small_case(self.device) if self.small else full_case(self.device)

    @property
    def accelerator(self) -> str:
        """The device, as configs call it."""
        return "gpu" if self.device == "cuda" else "cpu"

    @property
    def seconds_left(self) -> float:
        """Seconds until the minutes are over."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Measurement:
    """How rows are measured, and about how many seconds that takes on one GPU of the H100 class, or at tiny sizes."""

    measure: Callable[[Setting], Iterator[Row]]
    full_s: float
    small_s: float

    def about_s(self, small: bool) -> float:
        """The seconds at that size."""
        return self.small_s if small else self.full_s


def original_rows(setting: Setting) -> Iterator[Row]:
    """A step as it is trained beside the original's and plain PyTorch's, which are launched kernel by kernel."""
    ms = _beside_peers(setting, "original", "plain")
    yield faster("training step", "the original", ms["ours"], ms["original"], "ms", 8.0)
    yield faster("training step", "the plain network: FFTs, channels first", ms["ours"], ms["plain"], "ms", None)


def neuraloperator_rows(setting: Setting) -> Iterator[Row]:
    """A step as it is trained beside that of the plain network with neuraloperator's layer."""
    ms = _beside_peers(setting, "neuraloperator")
    yield faster("training step", "neuraloperator's `SpectralConv`", ms["ours"], ms["neuraloperator"], "ms", 8.0)


def bf16_rows(setting: Setting) -> Iterator[Row]:
    """A step in bf16 beside one in single precision."""
    yield _compared(setting, "training step, bf16-mixed", "32-true", "train.precision", "bf16-mixed", "32-true", 1.5)


def tf32_rows(setting: Setting) -> Iterator[Row]:
    """A step with products in tf32 beside one in single precision."""
    yield _compared(setting, "training step, tf32", "32-true", "train.precision", "tf32", "32-true", None)


def graph_rows(setting: Setting) -> Iterator[Row]:
    """A step as a CUDA graph beside one that is launched kernel by kernel."""
    yield _compared(setting, "training step, CUDA graph", "kernel by kernel", "train.cuda_graph", True, False, None)


def _compared(setting: Setting, what: str, peer: str, key: str, ours: Any, theirs: Any, at_least: float | None) -> Row:
    ms = ms_by_turns(setting.case, {"ours": {key: ours}, "theirs": {key: theirs}})
    return faster(what, peer, ms["ours"], ms["theirs"], "ms", at_least)


def _beside_peers(setting: Setting, *peers: str) -> dict[str, list[float]]:
    """Milliseconds of a step of a real training and of the peers' steps, by turns."""
    width, N, batch_size, repeats = (4, 32, 4, 2) if setting.small else (32, 64, 16, 20)
    device = torch.device(setting.device)
    torch.manual_seed(0)
    network = build_generator(ModelConfig(width=width), N).to(device)
    steps = {name: step.training_step(name, network, N, batch_size, device) for name in peers}

    def timed(name: str) -> Callable[[], float]:
        return lambda: 1e3 * statistics.median(by_turns({name: steps[name]}, repeats, device)[name])

    return ms_by_turns(setting.case, {"ours": {}}, {name: timed(name) for name in steps})


def observing_rows(setting: Setting) -> Iterator[Row]:
    """Norms, health and metric writing beside a training without: two epochs after the first."""
    if setting.small:
        found = observing.measure("smoke", 2, 2, 1, accelerator=setting.accelerator)
    else:
        patches = {"data.max_train_patches": 4096, "data.max_val_patches": 324}  # of each as large a share
        found = observing.measure("stage_a", 3, 5, 1, accelerator=setting.accelerator, **patches)
    yield observing.row(found, by_wall=setting.device == "cuda")


def agc_rows(setting: Setting) -> Iterator[Row]:
    """AGC beside a training that only takes the norm, as every training does, and beside a loop over parameters."""
    variants = {"agc": {"clip_algo": "agc"}, "none": {"clip_algo": "none"}}
    ms = ms_by_turns(setting.case, variants)
    share = spread([100 * (a / n - 1) for a, n in zip(ms["agc"], ms["none"], strict=True)])
    times = f"{spread(ms['agc'])} ms a step against {spread(ms['none'])} ms"
    words = "a training without clipping (its norm is taken)"
    yield Row("AGC", words, "<= 2 %", percent(share), share.median <= 2, times)
    sizes = {"width": 4, "N": 32, "repeats": 2} if setting.small else {"width": 32, "repeats": 30}
    _, loop_ms = clipping.measure(device=setting.device, **sizes)
    yield faster("AGC", "a loop over parameters", loop_ms["agc unit"], loop_ms["agc, plain loop"], "ms", 10.0)


def study_rows(setting: Setting) -> Iterator[Row]:
    """A whole Stage A of one seed: three arms, 50 epochs, full size, three runs at once."""
    preset = "smoke" if setting.small else "seed_study"
    load_or_build(resolve_config({"preset": preset}).data)
    extra = ["--epochs", "1"] if setting.small else []
    seconds = study_s(setting, preset, "--seeds", "1", "--workers", "3", *extra)
    value = f"{seconds / 60:.1f} min"
    yield Row(f"Stage A, {preset}, one seed", "wall clock", "<= 3 min", value, seconds <= 180, f"{seconds:.0f} s")


def seeds_rows(setting: Setting) -> Iterator[Row]:
    """Eight seeds of an arm as one network beside the same runs one after another."""
    preset, seeds, extra = ("smoke", 2, ["--epochs", "1"]) if setting.small else ("quick", 8, [])
    load_or_build(resolve_config({"preset": preset}).data)
    with tempfile.TemporaryDirectory() as folder:
        arms = Path(folder) / "arms.yaml"
        arms.write_text(_CONTROL, encoding="utf-8")
        common = ["--arms", str(arms), "--seeds", str(seeds), *extra]  # on a GPU one after another, if nobody says more
        together_s = study_s(setting, preset, *common, "--seeds_at_once", str(seeds))
        alone_s = study_s(setting, preset, *common)
    gain = alone_s / together_s
    times = f"{seeds} runs in {together_s:.0f} s against {alone_s:.0f} s, the studies' own time included"
    what, value = f"{seeds} seeds at once, {preset}", f"{gain:.2f} x runs an hour"
    yield Row(what, "one after another", ">= 4 x", value, gain >= 4, times)


def depth_rows(setting: Setting) -> Iterator[Row]:
    """Time and memory of 16 and 32 blocks."""
    rounds, width = (1, 4) if setting.small else (3, 32)
    yield from depth.rows(rounds, width, setting.device)


def study_s(setting: Setting, preset: str, *arguments: str) -> float:
    """Seconds of `fnostab study` with a store of its own.

    Raises `RuntimeError` with its last words if it fails, and if it is not done when the minutes are over.
    """
    command = [sys.executable, "-m", "fnostab", "study", "--preset", preset, "--launcher", "processes"]
    command += ["--accelerator", setting.accelerator, *arguments]
    path = os.pathsep.join([str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        mine = {"MLFLOW_TRACKING_URI": f"sqlite:///{Path(folder) / 'mlflow.db'}", "PYTHONPATH": path}
        start, patience_s = time.perf_counter(), setting.seconds_left
        try:
            done = subprocess.run(
                command, cwd=folder, env=os.environ | mine, capture_output=True, text=True, timeout=patience_s
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"the study was not done in the {patience_s:.0f} s that were left") from None
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise RuntimeError(f"the study ended with exit code {done.returncode} and said: {said}")
        return time.perf_counter() - start


#: By value: what most hangs on comes first.
MEASUREMENTS: Mapping[str, Measurement] = {
    "original": Measurement(original_rows, 45, 10),
    "bf16": Measurement(bf16_rows, 40, 5),
    "graph": Measurement(graph_rows, 40, 5),
    "seeds": Measurement(seeds_rows, 130, 60),
    "study": Measurement(study_rows, 190, 40),
    "observing": Measurement(observing_rows, 60, 15),
    "agc": Measurement(agc_rows, 45, 5),
    "neuraloperator": Measurement(neuraloperator_rows, 40, 10),
    "tf32": Measurement(tf32_rows, 40, 5),
    "depth": Measurement(depth_rows, 120, 60),
}
