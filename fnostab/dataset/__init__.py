"""The arrays that a run sees, simulated or measured, cached under their hash."""

from fnostab.dataset.cache import CACHE_FORMAT, load_or_build
from fnostab.dataset.dataset import Dataset, OnPatterns, Split, describe
from fnostab.dataset.measured import VAL_EVERY, import_scan

__all__ = [
    "CACHE_FORMAT",
    "VAL_EVERY",
    "Dataset",
    "OnPatterns",
    "Split",
    "describe",
    "import_scan",
    "load_or_build",
]
