"""What people ask for, a file each."""

from collections.abc import Callable

from fnostab.config import ConfigError, DataConfig
from fnostab.dataset import Dataset, OnPatterns, load_or_build
from fnostab.formats.scan import Scan

#: Called with a line for people.
PrintLine = Callable[[str], None]


def print_remarks(found: Dataset | Scan, print_line: PrintLine) -> None:
    """Say what was guessed in a measured scan, and what is probably wrong with it."""
    for line in found.notes:
        print_line(f"note: {line}")
    for line in found.warnings:
        print_line(f"warning: {line}")


def build_dataset(config: DataConfig, progress: OnPatterns | None = None) -> Dataset:
    """The dataset of `config`, loaded or built; bad input becomes a `ConfigError`."""
    try:
        return load_or_build(config, progress=progress)
    except ValueError as error:
        raise ConfigError(str(error)) from error
