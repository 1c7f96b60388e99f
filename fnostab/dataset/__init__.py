"""The arrays that a run sees, simulated or measured, cached under their hash."""

from fnostab.dataset.cache import common_sha256 as common_sha256, load_or_build as load_or_build
from fnostab.dataset.dataset import Dataset as Dataset, Split as Split
from fnostab.dataset.importing import import_scan as import_scan
from fnostab.dataset.measured import import_configured as import_configured
from fnostab.dataset.orientations import (
    ORIENTATIONS as ORIENTATIONS,
    combined as combined,
    r_by_orientation as r_by_orientation,
)
from fnostab.dataset.simulated import training_objects as training_objects
from fnostab.dataset.summary import describe as describe
from fnostab.dataset.writer import OnPatterns as OnPatterns
