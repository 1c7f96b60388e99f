"""A checkout that code runs from, this package's or a user's: its commit, and the code that the commit lacks."""

import os
import subprocess
from pathlib import Path
from typing import Final

import fnostab

_PACKAGE: Final = Path(fnostab.__file__).parent
#: Whatever the user has configured, what it says can be applied.
_DIFF: Final = ("diff", "--no-ext-diff", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")


def git_commit() -> str:
    """Commit of the checkout that tracks this package; `unknown` for an installed one, and where git does not say.

    It ends in `-dirty` if the package's code is not wholly in that commit, or nobody can tell: `uncommitted_code` gives
    the rest.
    """
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    commit = _git("rev-parse", "HEAD") if tracked else None
    if not commit:
        return "unknown"
    return commit.strip() + ("-dirty" if uncommitted_code() else "")


def uncommitted_code() -> str:
    """What the package's code has and its commit has not, as `git diff` says it; empty if there is none.

    Where git does not answer, a sentence that says so: that must not be taken for code without changes.
    """
    if not _git("ls-files", "--error-unmatch", "__init__.py"):
        return ""
    return _changes(_PACKAGE, changed=".", new=".")


def folder_commit(folder: Path) -> tuple[str, str]:
    """Commit of the checkout that holds `folder`, ending in `-dirty` if it lacks code, and the code that it lacks.

    That is what has changed in its files, and Python files in `folder` that it does not hold. `unknown` without one.
    """
    commit = _git("rev-parse", "HEAD", folder=folder)
    if not commit:
        return "unknown", ""
    code = _changes(folder, changed=":/", new="*.py")
    return commit.strip() + ("-dirty" if code else ""), code


def _changes(folder: Path, *, changed: str, new: str) -> str:
    """The difference of the files `changed` from the commit, and the files `new` that git does not ignore."""
    top = _git("rev-parse", "--show-toplevel", folder=folder)
    if not top:
        return ""
    names = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", new, folder=folder)
    found = [_git(*_DIFF, "HEAD", "--", changed, folder=folder)]
    for name in (names or "").split("\0")[:-1]:
        found.append(_git(*_DIFF, "--no-index", os.devnull, name, folder=Path(top.strip()), differs=True))
    known = [text for text in found if text is not None]
    if names is None or len(known) < len(found):
        known.append("Not all changes of the code are known: git did not answer.\n")
    return "".join(known)


def _git(*arguments: str, folder: Path | None = None, differs: bool = False) -> str | None:
    """What git says in `folder`, or in the package's; None where it fails, or is not there.

    Exit code 1 may mean `differs`.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(folder or _PACKAGE), *arguments], capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode in ((0, 1) if differs else (0,)) else None
