"""The arrays that a run sees, simulated or measured, cached under their hash."""

from fnostab.dataset.cache import load_or_build
from fnostab.dataset.dataset import Dataset, Split
from fnostab.dataset.measured import import_scan
from fnostab.dataset.summary import describe
from fnostab.dataset.writer import OnPatterns

__all__ = ["Dataset", "OnPatterns", "Split", "describe", "import_scan", "load_or_build"]
