"""Which runs may be registered, and which version of a model is the champion: rules and reasons, without MLflow."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fnostab.study.names import METRIC
from fnostab.study.stored_run import StoredRun

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
#: Tag of a version that a rollback took the alias `champion` from.
ROLLED_BACK: Final = "rolled_back"


#: Tags of a version by the column that arms are ranked by; a user's own metric is its own tag.
_TAG_OF: Final = {"best_val_loss": "val_loss", "r_stitched": "r_stitched"}


@dataclass(frozen=True)
class Candidate:
    """A finished run that is to be registered; versions are compared by its column `by`, lower is better.

    `dataset_sha256` is empty where the run does not say its dataset: it is then compared with no other version. The run
    of an ensemble has no seed, and `members` are the runs whose networks it holds.
    """

    study: str
    arm: str
    seed: int | None
    run_id: str
    best_val_loss: float
    dataset_sha256: str
    r_stitched: float | None = None
    by: str = "best_val_loss"
    own_metric: float | None = None  #: what `by` is, if it is neither of these two
    members: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """`control, seed 3`, or `control, 5 members`."""
        return f"{self.arm}, {f'{len(self.members)} members' if self.members else f'seed {self.seed}'}"

    @property
    def tag(self) -> str:
        """The tag that versions are compared by."""
        return _TAG_OF.get(self.by, self.by)

    def tags(self) -> dict[str, str]:
        """The tags of its version."""
        return {
            "study": self.study,
            "arm": self.arm,
            **({} if self.seed is None else {"seed": str(self.seed)}),
            "run": self.run_id,
            **({"runs": ",".join(self.members), "members": str(len(self.members))} if self.members else {}),
            "val_loss": repr(self.best_val_loss),
            **({} if self.r_stitched is None else {"r_stitched": repr(self.r_stitched)}),
            **({} if self.own_metric is None else {self.tag: repr(self.own_metric)}),
            **({"dataset_sha256": self.dataset_sha256} if self.dataset_sha256 else {}),
        }


@dataclass(frozen=True)
class RegistryVersion:
    """One version of a registered model; one that another program registered has other tags, and maybe no run."""

    model: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]
    created: datetime
    run_id: str | None

    def number(self, tag: str) -> float | None:
        """The finite number of a tag; None if there is none."""
        return _finite(self.tags.get(tag))

    @property
    def dataset_sha256(self) -> str | None:
        """The dataset it was trained on; None if no tag says so."""
        return self.tags.get("dataset_sha256") or None

    @property
    def is_rolled_back(self) -> bool:
        """Whether a rollback took the alias `champion` from it, and nothing gave it back."""
        return self.tags.get(ROLLED_BACK) == "true"


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model at one moment; an alias may name a version that is not there any more."""

    versions: dict[int, RegistryVersion]
    aliases: dict[str, int]

    def holder(self, alias: str) -> RegistryVersion | None:
        """The version that has `alias`; None if none has, or it was deleted."""
        return self.versions.get(self.aliases.get(alias, 0))

    def why_no_previous(self) -> str:
        """Why there is no version to go back to."""
        number = self.aliases.get(PREVIOUS)
        if number is None:
            return "none has the alias `previous`, or the one that had it was deleted"
        if number not in self.versions:
            return f"version {number}, the `previous` one, was deleted"
        return f"version {number} is both `champion` and `previous`"


def why_not_eligible(run: StoredRun) -> str | None:
    """Why `run` may not be registered, in words; None if it may.

    It must have converged, and the object that its patches make together must explain the patterns better than one mean
    pattern everywhere does: the validation object, and that of the whole scan where the data are one. What a run of an
    earlier version has not recorded is not held against it.
    """
    if run.tags["verdict"] != "converged":
        return f"its verdict is {run.tags['verdict']}"
    for name in ("r_stitched", "r_factor"):
        value = run.metrics.get(METRIC[name], math.nan)
        mean_pattern = run.metrics.get(METRIC[f"{name}_mean_pattern"], math.nan)
        if value >= mean_pattern:
            numbers = f"{METRIC[name]} {_distinct(value, mean_pattern)} against {_distinct(mean_pattern, value)}"
            return f"its stitched object is no better than one mean pattern everywhere ({numbers})"
    return None


def choose_champion(
    own: RegistryVersion, candidate: Candidate, model: RegisteredModel, *, promote: bool
) -> tuple[bool, str]:
    """Tell whether `champion` moves to `own`, the version of `candidate`, and the reason in words.

    It moves where there is no champion, and from one on the same dataset with a higher value, unless `own` was rolled
    back. With `promote` it also moves to one that was, and from a champion of another dataset or one that lacks the
    tags to compare by.
    """
    champion = model.holder(CHAMPION)
    if champion is None:
        number = model.aliases.get(CHAMPION)
        why = "no version was" if number is None else f"version {number}, which was, is deleted"
        return _unless_rolled_back(own, why, "", promote=promote)
    tag, old = candidate.tag, f"version {champion.version}"
    value, old_value = _finite(candidate.tags().get(tag)), champion.number(tag)
    if champion.version == own.version:
        return False, "it is the champion still"
    if old_value is None or champion.dataset_sha256 is None:
        return _if_asked(old, f"has no tags {tag} and dataset_sha256 to compare by", promote=promote)
    if value is None:
        return _if_asked(old, f"has the tag {tag}, and this run has no such number", promote=promote)
    if champion.dataset_sha256 != candidate.dataset_sha256:
        hashes = f"{champion.dataset_sha256[:12]} against {candidate.dataset_sha256[:12] or 'none that is known'}"
        return _if_asked(old, f"was trained on another dataset ({hashes})", promote=promote)
    if value < old_value:
        why = f"its {tag} {_distinct(value, old_value)} is below {_distinct(old_value, value)} of {old}"
        return _unless_rolled_back(own, why, f"; {old} is `previous`", promote=promote)
    than = "the same" if value == old_value else f"against {_distinct(value, old_value)}"
    stays = "it stays: --promote is for another dataset" if promote else "it stays"
    return False, f"the champion, {old}, has {tag} {_distinct(old_value, value)}, {than}; {stays}"


def _if_asked(old: str, hindrance: str, *, promote: bool) -> tuple[bool, str]:
    """Move on `--promote` only: the champion `old` cannot be compared with."""
    if promote:
        return True, f"it is the champion now, as --promote asks: {old}, now `previous`, {hindrance}"
    return False, f"the champion, {old}, {hindrance}; it stays: give --promote to move it"


def _unless_rolled_back(own: RegistryVersion, why: str, then: str, *, promote: bool) -> tuple[bool, str]:
    """Move, on `--promote` only if `own` was rolled back."""
    if own.is_rolled_back and not promote:
        return (
            False,
            f"it does not become champion, though {why}, because it was rolled back: give --promote to undo that",
        )
    return True, f"it is the champion now: {why}{then}"


def _finite(text: str | None) -> float | None:
    """The number that `text` is, None where it is none or not finite."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _distinct(value: float, other: float) -> str:
    """`value` in few digits, or in all where few would not tell it from `other`."""
    short = f"{value:.4g}"
    return short if short != f"{other:.4g}" else repr(value)
