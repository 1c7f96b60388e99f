"""The file that keeps what was measured: no row is measured twice, and tables are made from it."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.table import Row, table
from fnostab.io.files import atomic_write_text

_ROOT = Path(__file__).parent.parent


class Origin(NamedTuple):
    """Where a measurement comes from: the device and versions in words, whether at tiny sizes, and the code's hash."""

    machine: str
    device: str
    small: bool
    sources_sha256: str


def sources_sha256() -> str:
    """The hash of the code that is measured and of that which measures it, with or without a commit."""
    digest = hashlib.sha256()
    for folder in ("fnostab", "benchmarks"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def read_entries(path: Path) -> dict[str, dict[str, Any]]:
    """The measurements of a file by name; raises `ValueError` if it has none."""
    try:
        entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["measurements"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`file` (={path}) must be one that this command has written: {error!r}") from None
    return entries


def rendered(path: Path) -> list[str]:
    """The table of a file in Markdown, then what is missing from it and why, then what was measured where.

    Raises `ValueError` as `read_entries` does.
    """
    found: list[Row] = []
    missing: list[str] = []
    machines: dict[str, list[str]] = {}
    for name, entry in read_entries(path).items():
        if entry["state"] != "measured":
            missing.append(f"- {name}: {entry['state']}: {entry['reason']}")
            continue
        found += [Row(**row) for row in entry["rows"]]
        size = " (tiny sizes: the numbers mean nothing)" if entry["small"] else ""
        machines.setdefault(entry["machine"] + size, []).append(name)
    where = [f"{', '.join(names)}: {machine}" for machine, names in machines.items()]
    return [*table(found), "", *missing, *([""] if missing else []), *where]


class Ledger:
    """What became of each measurement, by its name, in the JSON file `path`, which is written after each.

    Raises `ValueError` if the file is there and is no such file.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        self._path, self._origin = path, origin
        self._entries = read_entries(path) if path.exists() else {}

    def is_measured(self, name: str) -> bool:
        """Whether the file has the rows of `name`, of the same code, device and size."""
        entry = self._entries.get(name, {})
        return entry.get("state") == "measured" and self._is_ours(entry, ("device", "small", "sources_sha256"))

    def seconds(self, name: str) -> float | None:
        """Seconds that the measurement took on this device at this size, whatever the code was; None: never done."""
        entry = self._entries.get(name, {})
        return entry.get("seconds") if self._is_ours(entry, ("device", "small")) else None

    def measured(self, name: str, rows: list[Row], seconds: float) -> None:
        """Keep the rows of a measurement."""
        self._note(name, state="measured", seconds=seconds, rows=[row._asdict() for row in rows])

    def failed(self, name: str, reason: str) -> None:
        """Keep why a measurement failed, and nothing that was measured before by other code."""
        self._note(name, state="failed", reason=reason)

    def left_out(self, name: str, reason: str) -> None:
        """Keep why a measurement was not begun."""
        self._note(name, state="left out", reason=reason)

    def _is_ours(self, entry: dict[str, Any], keys: tuple[str, ...]) -> bool:
        mine = self._origin._asdict()
        return all(entry.get(key) == mine[key] for key in keys)

    def _note(self, name: str, **entry: Any) -> None:
        self._entries[name] = {**entry, **self._origin._asdict()}
        atomic_write_text(self._path, json.dumps({"measurements": self._entries}, indent=2) + "\n")
