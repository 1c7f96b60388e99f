"""What a monitored run is: its place in a study, what it is clipped by, and what is known of its task."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fnostab.clipping import Clipper
from fnostab.config.arm import check_name
from fnostab.io.untrusted import shown

#: A rule and its limit, or all arguments of `clipping.Clipper` by name.
Clip = tuple[str, float] | Mapping[str, Any]

#: Longest name of a study or an arm.
_LONGEST: Final = 100
#: Parameters that the monitor logs itself, so that `compare` sees where the runs of an arm differ.
_OWN_PARAMS: Final = ("model.arch", "clip.algo", "clip.val", "clip.exclude", "clip.options")


@dataclass(frozen=True)
class Settings:
    """A run's tags, its clipping rule and its baseline; see `monitor.run`.

    Raises `ValueError` with one line: parameter, value, rule.
    """

    study: str
    arm: str
    seed: int
    clip: Clip | None = None
    baseline: float | None = None
    dataset: str | None = None
    params: Mapping[str, object] = field(default_factory=dict)
    blocks: Sequence[str] = ()
    layers_every_steps: int = 100

    def __post_init__(self) -> None:
        for name in ("study", "arm"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > _LONGEST:
                raise _refusal(name, value, f"must be a text of at most {_LONGEST} characters")
            check_name(name, value)
        if not _is_count(self.seed, 0):
            raise _refusal("seed", self.seed, "must be a whole number >= 0")
        if self.baseline is not None and not (_is_number(self.baseline) and 0 < self.baseline < math.inf):
            raise _refusal(
                "baseline", self.baseline, "must be a finite number > 0, the val_loss of a constant prediction"
            )
        if self.dataset is not None and not (isinstance(self.dataset, str) and self.dataset):
            raise _refusal("dataset", self.dataset, "must be a name, or the SHA-256 of the data in hexadecimal")
        if isinstance(self.blocks, str):
            raise _refusal("blocks", self.blocks, "must be a list of patterns of module names")
        if not _is_count(self.layers_every_steps, 1):
            raise _refusal("layers_every_steps", self.layers_every_steps, "must be a whole number >= 1")
        for name in _OWN_PARAMS:
            if name in self.params:
                raise _refusal("params", name, "must not hold what the monitor logs itself")
        self.clipper()

    def clipper(self) -> Clipper:
        """The clipping rule, as it starts."""
        return Clipper(**self._clip)

    @property
    def _clip(self) -> dict[str, Any]:
        """The arguments of the `Clipper`."""
        if self.clip is None:
            return {"algorithm": "none", "value": 0.0}
        if isinstance(self.clip, Mapping):
            known = {"algorithm", "value", "granularity", "exclude", "options"}
            if not {"algorithm", "value"} <= self.clip.keys() <= known:
                raise _refusal(
                    "clip", dict(self.clip), f"must have algorithm and value, and nothing but {_listed(known)}"
                )
            return dict(self.clip)
        rule = 'must be a rule and its limit, such as ("agc", 0.01), or a mapping of the arguments of Clipper'
        if not isinstance(self.clip, (tuple, list)) or len(self.clip) != 2:
            raise _refusal("clip", self.clip, rule)
        algorithm, value = self.clip
        if not isinstance(algorithm, str) or not _is_number(value):
            raise _refusal("clip", self.clip, rule)
        return {"algorithm": algorithm, "value": float(value)}

    @property
    def clip_algo(self) -> str:
        """The name of the clipping rule."""
        return str(self._clip["algorithm"])

    @property
    def clips(self) -> bool:
        """Whether gradients are changed."""
        return self.clip_algo != "none"

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint's series belong to."""
        return {"study": self.study, "arm": self.arm, "seed": self.seed}

    def tags(self, arch: str) -> dict[str, str]:
        """The tags by which `compare` finds the run."""
        digest = {} if self.dataset is None else {"dataset_sha256": dataset_digest(self.dataset)}
        named = {name: str(value) for name, value in self.identity.items()}
        return named | {"arch": arch, "clip_algo": self.clip_algo} | digest

    def all_params(self, arch: str) -> dict[str, object]:
        """The user's parameters, and those by which `compare` tells the arms apart."""
        clip = self._clip
        own: dict[str, object] = {"model.arch": arch, "clip.algo": clip["algorithm"], "clip.val": clip["value"]}
        own |= {f"clip.{name}": clip[name] for name in ("exclude", "options") if clip.get(name)}
        return {**own, **self.params}


def dataset_digest(dataset: str) -> str:
    """`dataset` itself, in lower case, if it is a SHA-256 in hexadecimal; else that of its text."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", dataset):
        return dataset.lower()
    return hashlib.sha256(dataset.encode()).hexdigest()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _refusal(parameter: str, value: object, rule: str) -> ValueError:
    return ValueError(f"`{parameter}` (={shown(value)}) {rule}")
