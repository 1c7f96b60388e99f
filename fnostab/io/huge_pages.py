"""Huge pages for what a training allocates, on Linux.

A step touches hundreds of megabytes, and with pages of 4 kB a processor looks nearly every one up anew: slow where few
look-ups are remembered, more so in a virtual machine, whose memory is looked up twice. glibc (2.35 and later) asks the
kernel for pages of 2 MB if the environment says so when a process begins, too late for one that runs already: so a
command starts itself again, as the same process. What is computed is the same, to the last bit.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: Where glibc reads it.
TUNABLES: Final = "GLIBC_TUNABLES"
_TUNABLE: Final = "glibc.malloc.hugetlb"
_OLDEST_GLIBC: Final = (2, 35)
#: When the kernel gives huge pages: always, to who asks for them (madvise), or never; the mode stands in brackets.
_MODE: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """What `environment` lacks for huge pages; nothing where the user has chosen, or where asking changes nothing."""
    said = environment.get(TUNABLES, "")
    if _TUNABLE in said or not _asking_helps():
        return {}
    return {TUNABLES: ":".join(filter(None, (said, f"{_TUNABLE}=1")))}


def start_again_with_huge_pages() -> None:
    """Begin this process's program again with huge pages, or do nothing where it has them or cannot have them."""
    lacking = huge_pages(os.environ)
    if lacking and sys.executable and sys.orig_argv:
        try:
            os.execve(sys.executable, sys.orig_argv, os.environ | lacking)
        except OSError:  # small pages do
            return


def _asking_helps() -> bool:
    """Whether the kernel gives huge pages to who asks for them alone, and this process's glibc can ask."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        known = tuple(map(int, version.split(".")[:2])) if name == "glibc" else (0, 0)
        return known >= _OLDEST_GLIBC and "[madvise]" in _MODE.read_text(encoding="ascii")
    except (AttributeError, ValueError, OSError):  # another system, or another C library
        return False
