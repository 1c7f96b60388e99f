"""Networks by name: built-in ones, entry points of installed packages, and those that users write."""

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from fnostab.config.section import did_you_mean
from fnostab.io.foreign import check_foreign_name, is_foreign
from fnostab.io.untrusted import shown

#: Built-in architectures; `fnostab.models.registry` maps each to its class.
ARCHITECTURES: Final = (
    *("hybrid", "stable_hybrid", "prenorm_hybrid", "hybrid_original", "stable_original", "hybrid_onesided"),
    *("fno", "cnn"),
)
#: Packages offer networks under names of this group, each as `package.module:name`.
ENTRY_POINTS: Final = "fnostab.generators"


def installed_networks() -> dict[str, list[EntryPoint]]:
    """The entry points of installed packages by name, nothing of them imported; several where packages disagree."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        found.setdefault(entry.name, {})[entry.value] = entry
    return {name: list(of_name.values()) for name, of_name in sorted(found.items())}


def import_name(arch: str) -> str | None:
    """The `package.module:name` or `file.py:name` that `arch` stands for; None for a built-in network.

    A built-in network keeps its name whatever is installed. Raises ValueError, the rule alone, for another name that no
    package has, or that several have.
    """
    if arch in ARCHITECTURES:
        return None
    if is_foreign(arch):
        check_foreign_name(arch)
        return arch
    installed = installed_networks()
    if arch not in installed:
        near = did_you_mean(arch, [*ARCHITECTURES, *installed])
        raise ValueError(
            f"must be one of {', '.join(ARCHITECTURES)}, package.module:Class, ./file.py:Class or an entry point of"
            f" {ENTRY_POINTS}{near}"
        )
    first, *others = installed[arch]
    if others:
        raise ValueError(f"must be the name of one network: installed packages have {_listed([first, *others])}")
    return first.value


def namesake(arch: str) -> str | None:
    """A line about an installed network that has the name of the built-in network `arch`; None if there is none."""
    found = installed_networks().get(arch) if arch in ARCHITECTURES else None
    if not found:
        return None
    return f"`model.arch` (={arch}) is the built-in network; an installed one of that name is {_listed(found)}"


def _listed(entries: list[EntryPoint]) -> str:
    return ", ".join(shown(entry.value) for entry in entries)
