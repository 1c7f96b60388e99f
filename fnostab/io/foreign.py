"""Code that users name: `package.module:name`, or `./file.py:name` for a file whose folder need not be installed."""

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from fnostab.io.files import open_binary
from fnostab.io.untrusted import raised, shown


@dataclass(frozen=True)
class Foreign:
    """What a user's name stands for, and the source file it is written in."""

    value: Any
    name: str
    source: Path | None
    #: Of the bytes of `source`, in hexadecimal; empty if there is no such file.
    sha256: str


def is_foreign(name: str) -> bool:
    """Whether `name` has the form of a name that `load_foreign` takes; all others are ours, or entry points."""
    return ":" in name


def check_foreign_name(name: str) -> None:
    """Raise ValueError, the rule alone, for a foreign name that stands for nothing anywhere; nothing is imported."""
    place, _, attribute = name.rpartition(":")
    if not place or not name.isprintable() or not all(part.isidentifier() for part in attribute.split(".")):
        raise ValueError("must be package.module:name or ./file.py:name")
    if place == "__main__":
        raise ValueError("must not be in __main__, which is another module in each process: put it in a file")


def label(name: str) -> str:
    """What arms are called after: `Net` for `package.module:Net` and for `./file.py:Net`; other names themselves."""
    return name.rpartition(":")[2]


def portable(name: str) -> str:
    """`name` without the folder of a file, which says nothing about what is in the file."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).name}:{attribute}" if _is_file(place) else name


def absolute(name: str) -> str:
    """`name` with the whole path of a file, so that it means the same in every folder of this machine."""
    place, _, attribute = name.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if _is_file(place) else name


def load_foreign(name: str, parameter: str) -> Foreign:
    """Import what the user's `name` stands for, a value of the config's key `parameter`.

    A file is run once for each content of it, as a module of its own, and not through Python's cache of bytecode: what
    runs is what was hashed. What the import prints goes to stderr, as our stdout may be parsed. Raises ValueError, in
    one line, if there is no such file, module or name in it, or if the import raises.
    """
    place, _, attribute = name.rpartition(":")
    try:
        check_foreign_name(name)
        module = _run_file(Path(place)) if _is_file(place) else _import(place)
        value: Any = module
        for part in attribute.split("."):
            if not hasattr(value, part):
                raise ValueError(f"must be in {shown(place)}, which has no {shown(attribute)}")
            value = getattr(value, part)
        source = _source(value, module)
        return Foreign(value, name, source, _sha256(source.read_bytes()) if source else "")
    except (ValueError, OSError) as error:
        raise ValueError(f"`{parameter}` (={shown(name)}) {error}") from None


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _import(place: str) -> ModuleType:
    try:
        with _ours_if_it_raises(place):
            return importlib.import_module(place)
    except ModuleNotFoundError:
        raise ValueError(
            f"must be in a module that Python finds, and there is no {shown(place)}: install it, or give ./file.py:name"
        ) from None


def _run_file(path: Path) -> ModuleType:
    try:
        with open_binary(path) as file:
            content = file.read()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        rule = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"must be in a readable file: {rule}") from None
    path = path.resolve()
    name = f"fnostab_foreign_{_sha256(bytes(path) + content)[:16]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None
    module = module_from_spec(spec)
    with _ours_if_it_raises(str(path)):
        tree = ast.parse(content, str(path))
        sys.modules[name] = module  # dataclasses and pickle look there
        try:
            with _importable(path.parent):
                _check_neighbours(tree, path.parent)
                exec(compile(tree, str(path), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Have Python look in `folder` first, as for a script; afterwards last, and only if something was imported."""
    entry, before = str(folder), set(sys.modules)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
        files = [getattr(sys.modules.get(name), "__file__", None) for name in set(sys.modules) - before]
        if entry not in sys.path and any(file and Path(file).is_relative_to(folder) for file in files):
            sys.path.append(entry)


def _check_neighbours(tree: ast.AST, folder: Path) -> None:
    """Refuse a file that would be given another folder's module in place of the one beside it."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        for name in (name.partition(".")[0] for name in names):
            loaded, beside = sys.modules.get(name), PathFinder.find_spec(name, [str(folder)])
            if loaded and beside and beside.origin and getattr(loaded, "__file__", None) != beside.origin:
                raise _Refused(f"must not import {name}, of which another one is imported already: rename that file")


class _Refused(ValueError):
    """A rule of this module, as opposed to what a user's code raises."""


@contextmanager
def _ours_if_it_raises(place: str) -> Iterator[None]:
    """Turn what foreign code raises at its import into a rule of one line; a missing `place` itself passes."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except _Refused:
        raise
    except SyntaxError as error:
        line = f", line {error.lineno} of {shown(error.filename)}" if error.lineno else ""
        raise _Refused(f"must be Python: {error.msg}{line}") from None
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{place}.".startswith(f"{error.name}."):
            raise
        raise _Refused(f"must be importable, and raised {raised(error)}") from None


def _source(value: Any, module: ModuleType) -> Path | None:
    """The file in which `value` is written, or of the module that holds it; None for compiled code."""
    home = value.__module__ if inspect.isclass(value) or inspect.isroutine(value) else None
    file = getattr(sys.modules.get(home or "", module), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
