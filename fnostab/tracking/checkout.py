"""The checkout that this package runs from: its commit, and the code that the commit does not hold."""

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
    top = _git("rev-parse", "--show-toplevel")
    if not top or not _git("ls-files", "--error-unmatch", "__init__.py"):
        return ""
    new = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z")
    found = [_git(*_DIFF, "HEAD", "--", ".")]
    for name in (new or "").split("\0")[:-1]:
        found.append(_git("-C", top.strip(), *_DIFF, "--no-index", os.devnull, name, differs=True))
    known = [text for text in found if text is not None]
    if new is None or len(known) < len(found):
        known.append("Not all changes of the code are known: git did not answer.\n")
    return "".join(known)


def _git(*arguments: str, differs: bool = False) -> str | None:
    """What git says in the package's folder; None where it fails, or is not there. Exit code 1 may mean `differs`."""
    try:
        done = subprocess.run(["git", "-C", str(_PACKAGE), *arguments], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode in ((0, 1) if differs else (0,)) else None
