"""The checkout that this package runs from: its commit, and the code that the commit does not hold."""

import os
import subprocess
from pathlib import Path
from typing import Final

import fnostab

_PACKAGE: Final = Path(fnostab.__file__).parent


def git_commit() -> str:
    """Commit of the checkout that tracks this package; `unknown` for an installed one.

    It ends in `-dirty` if the package's code is not wholly in that commit: `uncommitted_code` gives the rest.
    """
    tracked = _git("ls-files", "--error-unmatch", "__init__.py")
    commit = _git("rev-parse", "HEAD") if tracked else ""
    if not commit:
        return "unknown"
    return commit.strip() + ("-dirty" if uncommitted_code() else "")


def uncommitted_code() -> str:
    """What the package's code has and its commit has not, as `git diff` says it; empty if there is none."""
    top = _git("rev-parse", "--show-toplevel").strip()
    if not top or not _git("ls-files", "--error-unmatch", "__init__.py"):
        return ""
    new = _git("ls-files", "--others", "--exclude-standard", "--full-name", "-z").split("\0")[:-1]
    added = [_git("-C", top, "diff", "--no-index", os.devnull, name) for name in new]
    return "".join([_git("diff", "HEAD", "--", "."), *added])


def _git(*arguments: str) -> str:
    """What git says in the package's folder; nothing where it fails, or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(_PACKAGE), *arguments], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace")
