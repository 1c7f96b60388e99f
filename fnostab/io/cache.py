"""Where this package keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Tell where datasets are kept: `$FNOSTAB_CACHE`, else `~/.cache/fnostab`."""
    return Path(os.environ.get("FNOSTAB_CACHE") or Path.home() / ".cache" / "fnostab")
