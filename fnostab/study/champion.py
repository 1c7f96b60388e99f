"""Which version of a registered model is the champion: the rule, and the reason in words, without MLflow."""

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Final

CHAMPION: Final = "champion"
PREVIOUS: Final = "previous"
#: Tag of a version that a rollback took the alias `champion` from.
ROLLED_BACK: Final = "rolled_back"


@dataclass(frozen=True)
class Candidate:
    """A finished run that is to be registered; `best_val_loss` is what versions are compared by, lower is better."""

    study: str
    arm: str
    seed: int
    run_id: str
    best_val_loss: float
    dataset_sha256: str

    def tags(self) -> dict[str, str]:
        """The tags of its version."""
        return {
            "study": self.study,
            "arm": self.arm,
            "seed": str(self.seed),
            "run": self.run_id,
            "val_loss": repr(self.best_val_loss),
            "dataset_sha256": self.dataset_sha256,
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

    @property
    def val_loss(self) -> float | None:
        """The loss it is compared by; None if no tag has a finite number."""
        try:
            value = float(self.tags["val_loss"])
        except (KeyError, ValueError):
            return None
        return value if math.isfinite(value) else None

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


def choose_champion(
    own: RegistryVersion, candidate: Candidate, model: RegisteredModel, *, promote: bool
) -> tuple[bool, str]:
    """Tell whether `champion` moves to `own`, the version of `candidate`, and the reason in words.

    It moves where there is no champion, and from one on the same dataset with a higher loss, unless `own` was rolled
    back. With `promote` it also moves to one that was, and from a champion of another dataset or one that lacks the
    tags to compare by.
    """
    champion = model.holder(CHAMPION)
    if champion is None:
        number = model.aliases.get(CHAMPION)
        why = "no version was" if number is None else f"version {number}, which was, is deleted"
        return _unless_rolled_back(own, why, "", promote=promote)
    old, loss, old_loss = f"version {champion.version}", candidate.best_val_loss, champion.val_loss
    if champion.version == own.version:
        return False, "it is the champion still"
    if old_loss is None or champion.dataset_sha256 is None:
        return _if_asked(old, "has no tags val_loss and dataset_sha256 to compare by", promote=promote)
    if champion.dataset_sha256 != candidate.dataset_sha256:
        hashes = f"{champion.dataset_sha256[:12]} against {candidate.dataset_sha256[:12]}"
        return _if_asked(old, f"was trained on another dataset ({hashes})", promote=promote)
    if loss < old_loss:
        why = f"its val_loss {_distinct(loss, old_loss)} is below {_distinct(old_loss, loss)} of {old}"
        return _unless_rolled_back(own, why, f"; {old} is `previous`", promote=promote)
    than = "the same" if loss == old_loss else f"against {_distinct(loss, old_loss)}"
    stays = "it stays: --promote is for another dataset" if promote else "it stays"
    return False, f"the champion, {old}, has val_loss {_distinct(old_loss, loss)}, {than}; {stays}"


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


def _distinct(value: float, other: float) -> str:
    """`value` in few digits, or in all where few would not tell it from `other`."""
    short = f"{value:.4g}"
    return short if short != f"{other:.4g}" else repr(value)
