"""Whether a network is fit for training: what it learns and depends on, how fast it is, whether it is exported."""

import copy
import importlib.util
import io
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch
from torch import nn

from fnostab.config import ArmConfig, ConfigError, namesake, with_sources
from fnostab.io.foreign import portable
from fnostab.io.untrusted import shown
from fnostab.models import build_generator
from fnostab.models.checks import check_behaviour, check_mixed_precision
from fnostab.models.probing import STEPS, Trial, inert_layers, repeats, step_time_s
from fnostab.training.shipped_model import check_export, quietly

#: Names that a table lists.
_LISTED: Final = 6


@dataclass
class ArchCheck:
    """What was found of a network: rows of a name and a value, and in `faults` what would go wrong in a training."""

    arch: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The table, and the verdict as its last line."""
        width = max(len(name) for name, _ in self.rows)
        verdict = f"not fit for training: {'; '.join(self.faults)}" if self.faults else "fit for training"
        return "\n".join([*(f"{name:<{width}}  {value}" for name, value in self.rows), f"{self.arch}: {verdict}"])


def check_arch(config: ArmConfig) -> ArchCheck:
    """Try the network of `config` on random data, on the CPU, at the size and with the batches of `config`.

    Raises `ConfigError` if there is no such network, or it cannot be built; all else that is wrong with it is found.
    """
    config = with_sources(config)
    model, N, C = config.model, config.data.N, config.data.group_size
    build = partial(build_generator, model, N, C)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = build()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        check = ArchCheck(portable(model.arch))
        if model.source_sha256:
            check.rows.append(("source", f"SHA-256 {model.source_sha256}"))
        if line := namesake(model.arch):
            check.rows.append(("name", line))
        numbers = [p.numel() * (2 if p.is_complex() else 1) for p in network.parameters() if p.requires_grad]
        check.rows.append(("parameters", f"{sum(numbers)} real numbers that learn, in {len(numbers)} tensors"))
        try:
            check_behaviour(network, "it", N, C)
        except ValueError as error:
            check.rows.append(("output", f"WRONG: {error}"))
            check.faults.append("it breaks a rule for networks")
            return check
        _try_steps(check, config, build)
        try:
            check_mixed_precision(network, "it", N, C)
            check.rows.append(("bfloat16", "yes: train.precision=bf16-mixed"))
        except ValueError as error:
            check.rows.append(("bfloat16", f"NO: {error}"))
            if config.train.precision == "bf16-mixed":
                check.faults.append("it does not train in bfloat16")
        _try_exports(check, network, N, C)
    return check


def _try_steps(check: ArchCheck, config: ArmConfig, build: Callable[[], nn.Module]) -> None:
    N, C = config.data.N, config.data.group_size
    batch = config.train.batch_size // C
    trial = Trial(build, N, C, lr=config.optim.lr)
    for _ in range(STEPS):
        trial.step()
    timed = Trial(build, N, C, batch=batch)
    seconds = step_time_s(timed)
    check.rows.append(("output", " x ".join(map(str, timed.output_shape)) + " for (B, N, N, C, 2)"))
    threads = torch.get_num_threads()
    what = f"{batch} {'patterns' if C == 1 else 'groups of patterns'} at N={N}, {threads} CPU threads"
    check.rows.append(("step", f"{seconds:.3g} s: forwards, backwards and Adam on {what}"))
    _found(check, "dead parameters", sorted(trial.unmoved), f"no gradient, or zeros, in {STEPS} steps")
    _found(check, "inert layers", inert_layers(trial.network, trial.amplitudes), "the result does not depend on them")
    same = repeats(build, N, C)
    check.rows.append(("repeats", "bit for bit" if same else "NO: two trainings from one seed differ"))
    if not same:
        check.faults.append("it does not repeat")


def _found(check: ArchCheck, what: str, names: list[str], meaning: str) -> None:
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    check.rows.append((what, f"{len(names)}: {listed} ({meaning})" if names else "none"))
    if names:
        check.faults.append(f"it has {what}")


def _try_exports(check: ArchCheck, network: nn.Module, N: int, C: int) -> None:
    try:
        check_export(network, "it", N, C)
        check.rows.append(("pt2 export", "yes"))
    except ValueError as error:
        check.rows.append(("pt2 export", f"NO: {error}"))
        check.faults.append("it does not export to pt2")
    check.rows.append(("ONNX export", _onnx(network, N, C)))


def _onnx(network: nn.Module, N: int, C: int) -> str:
    """Whether it exports to ONNX, which no run needs."""
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            return f"not tried: {package} is not installed"
    try:
        with redirect_stdout(io.StringIO()), quietly():
            torch.onnx.export(copy.deepcopy(network), (torch.ones(2, C, N, N),), dynamo=True)
    except Exception as error:
        first_line = re.sub(r"\x1b\[\d*m", "", str(error)).strip().partition("\n")[0]  # in colours
        return f"no: {type(error).__name__}: {shown(first_line)}"
    return "yes"
