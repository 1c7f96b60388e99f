"""What people ask for, a file each."""

from collections.abc import Callable

from fnostab.config import ConfigError, DataConfig
from fnostab.dataset import Dataset, OnPatterns, load_or_build

#: Called with a line for people.
PrintLine = Callable[[str], None]


def build_dataset(config: DataConfig, progress: OnPatterns | None = None) -> Dataset:
    """The dataset of `config`, loaded or built; bad input becomes a `ConfigError`."""
    try:
        return load_or_build(config, progress=progress)
    except ValueError as error:
        raise ConfigError(str(error)) from error
