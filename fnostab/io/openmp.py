"""How OpenMP's threads wait for each other: by spinning, which keeps their cores busy, or asleep.

torch's wheels bring GNU's library (libgomp), whose threads spin for some milliseconds before they sleep. Where fewer
cores are free than there are threads, a thread that spins keeps the one from running that it waits for. The
library reads the environment once, when torch is imported: later changes reach child processes alone. What is computed
is the same either way, to the last bit.
"""

import os
import sys
from collections.abc import Mapping
from typing import Final

#: Variables by which a user has chosen already: of any OpenMP, of GNU's, of Intel's and LLVM's.
OPENMP_CHOICES: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
#: So much of a core may be taken before it counts as that; the average still holds what has just ended.
_TOLERATED_LOAD: Final = 0.5


def passive_waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """What `environment` lacks for threads that sleep while they wait; nothing where the user has chosen."""
    return {} if any(name in environment for name in OPENMP_CHOICES) else {"OMP_WAIT_POLICY": "PASSIVE"}


def wait_passively_if_busy() -> None:
    """Have this process's threads, and its children's, sleep while they wait, if other work takes their cores.

    Nothing is changed where torch is imported already, since that would come too late.
    """
    if "torch" not in sys.modules and _cores_are_taken():
        os.environ.update(passive_waiting(os.environ))


def _cores_are_taken() -> bool:
    """Whether fewer cores are free than this process has threads: one a core, unless OMP_NUM_THREADS says otherwise."""
    cores = os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(limit) if limit.isdecimal() and int(limit) else cores
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):  # not every system counts it
        return False
    return threads > 1 and load + threads > cores + _TOLERATED_LOAD
