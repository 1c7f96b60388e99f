"""Python's collector of cyclic garbage, kept away from what lasts as long as the process."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import modules inside the block; for a process of this package's own, not for a library.

    The modules of torch, Lightning and MLflow are 600,000 objects, which are there until the process ends. While they
    are made, the collector would go through all of them again and again, and once more at the process's end: a fifth
    and a quarter of the time that the imports take. It is off inside the block, leaves what is there then alone
    (`gc.freeze`), and collects nothing at the end of the process, where the memory is given back as a whole. If
    nothing is imported inside the block, nothing changes.
    """
    modules = len(sys.modules)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules:
            gc.freeze()
            atexit.unregister(gc.freeze)
            atexit.register(gc.freeze)
        if was_enabled:
            gc.enable()
