"""What a study's SLURM jobs ask the cluster for, as flags of `sbatch`."""

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field, ValidationError, field_validator, model_validator

from fnostab.config import ConfigError
from fnostab.config.resolve import rule_of
from fnostab.config.section import MANY, Section
from fnostab.io.untrusted import shown

#: How these options begin on the command line, and those that become a flag of `sbatch` each.
PREFIX: Final = "slurm."
SBATCH_PREFIX: Final = "slurm.sbatch."
#: Flags that have an option of their own, by its name.
_NAMED: Final = {
    "partition": "partition",
    "account": "account",
    "time": "time",
    "gpus-per-node": "gpus",
    "cpus-per-task": "cpus",
    "mem": "mem",
    "signal": "stop_before_s",
    "requeue": "requeues",
    "no-requeue": "requeues",
}
#: Flags that would take away what the launcher relies on: one process a run, its environment, its number, its files.
_OURS: Final = frozenset(
    {
        *("array", "chdir", "clusters", "error", "export", "export-file", "input", "job-name", "open-mode", "output"),
        *("nodes", "ntasks", *(f"ntasks-per-{what}" for what in ("core", "gpu", "node", "socket"))),
        *("help", "parsable", "quiet", "test-only", "usage", "version", "wait", "wrap"),
    }
)
#: SLURM sends the signal up to a minute early, and a run takes a while until it hears signals.
_EARLY_S: Final = 120


class SlurmConfig(Section):
    """What each job of a study asks for; what is None is the cluster's to decide.

    `flags` has it as `sbatch` takes it. A run that is told to stop `stop_before_s` before its time limit stores a
    checkpoint; it is submitted again up to `requeues` times.
    """

    partition: str | None = Field(None, description="partition of the jobs, or several with commas between")
    account: str | None = Field(None, description="account that the jobs are charged to")
    time: str | None = Field(None, description="time limit of one job, in minutes or as D-HH:MM:SS")
    gpus: str | None = Field(None, description="GPUs of a run: 1, or with their kind, a100:1 (default: none)")
    cpus: int | None = Field(None, ge=1, le=MANY, description="CPUs of a run (default: its threads and devices)")
    mem: str | None = Field(None, description="memory of a run, as 16G")
    stop_before_s: int = Field(
        120, ge=1, le=65535, description="so long before its time limit a run is told to store a checkpoint"
    )
    requeues: int = Field(
        10, ge=0, le=10_000, description="how often a run is submitted again after a time-out, preemption or lost node"
    )
    sbatch: Mapping[str, str] = Field({}, description="any other flag of sbatch; true for one without a value")

    @field_validator("partition", "account")
    @classmethod
    def _is_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.@+][\w.,@+-]*", value):
            raise ValueError("must be a name of letters, digits and any of _ . @ + -")
        return value

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None and not seconds_of(value):
            raise ValueError("must be minutes, or D-HH:MM:SS")
        return value

    @field_validator("gpus")
    @classmethod
    def _is_gpus(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"([A-Za-z][\w.-]*:)?[1-9]\d{0,3}", value):
            raise ValueError("must be a number of GPUs, with their kind as in a100:1")
        return value

    @field_validator("mem")
    @classmethod
    def _is_memory(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\d{1,12}[KMGTkmgt]?", value):
            raise ValueError("must be a whole number of megabytes, or with a unit: 16G")
        return value

    @field_validator("sbatch")
    @classmethod
    def _are_flags(cls, flags: Mapping[str, str]) -> Mapping[str, str]:
        checked = {}
        for given, value in flags.items():
            name, label = given.replace("_", "-"), f"`{SBATCH_PREFIX}{shown(given)}` (={shown(value)})"
            if name in _NAMED:
                raise ValueError(f"{label} must be given as {PREFIX}{_NAMED[name]}")
            if name in _OURS:
                raise ValueError(f"{label} must not be given: the launcher decides it")
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                raise ValueError(f"{label} must be called like a flag of sbatch, without its hyphens: mail-type")
            if not value or not value.isprintable() or len(value) > 1000:
                raise ValueError(f"{label} must be text on one line of at most 1000 characters")
            checked[name] = value
        return checked

    @model_validator(mode="after")
    def _leaves_time(self) -> "SlurmConfig":
        least_s = self.stop_before_s + _EARLY_S
        if self.time is not None and seconds_of(self.time) < least_s:
            why = f"`{PREFIX}stop_before_s` (={self.stop_before_s}) and {_EARLY_S} s until a run hears signals"
            raise ValueError(f"`{PREFIX}time` (={self.time}) must be at least {least_s} s: {why}")
        return self

    def flags(self, cpus: int) -> dict[str, str | bool]:
        """Flags of `sbatch` by name, for runs that keep `cpus` CPUs busy; True for one without a value."""
        given: dict[str, str | int | None] = {
            "partition": self.partition,
            "account": self.account,
            "time": self.time,
            "gpus-per-node": self.gpus,
            "cpus-per-task": self.cpus or cpus,
            "mem": self.mem,
            "signal": f"USR1@{self.stop_before_s}",
            **self.sbatch,
        }
        flags: dict[str, str | bool] = {
            name: True if value == "true" else str(value) for name, value in given.items() if value is not None
        }
        return flags | {"requeue": True}


def slurm_config(given: Mapping[str, Any]) -> SlurmConfig:
    """The config of what was `given`, by name without `PREFIX`; raises `ConfigError` with one line."""
    try:
        return SlurmConfig.model_validate(given)
    except ValidationError as error:
        first, rule = error.errors(include_url=False)[0], rule_of(error)
        if rule.startswith("`"):
            raise ConfigError(rule) from None
        name = ".".join(map(str, first["loc"]))
        raise ConfigError(f"`{PREFIX}{name}` (={shown(first['input'])}) {rule}") from None


def seconds_of(time: str) -> int:
    """How long `time` is, as `sbatch` takes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; 0 if none."""
    days, dash, clock = time.rpartition("-")
    parts = clock.split(":")
    digits = [*parts, days] if dash else parts
    if len(parts) > 3 or not all(part.isascii() and part.isdecimal() and len(part) < 9 for part in digits):
        return 0
    numbers = [int(part) for part in parts]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(numbers) == 1:
        return numbers[0] * 60
    hours, minutes, seconds = [0, *numbers][-3:]
    return (hours * 60 + minutes) * 60 + seconds
