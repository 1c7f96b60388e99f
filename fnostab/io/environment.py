"""This process's environment variables, for a while."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_environment(*names: str) -> Iterator[None]:
    """Put the variables `names` back at the end of the block, whatever becomes of them inside."""
    kept = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
