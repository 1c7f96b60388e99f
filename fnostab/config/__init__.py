"""The configuration of one run: frozen models, presets, and the way from text to both.

Nothing here imports anything heavier than pydantic, so that the command line can print its help, refuse a bad value, or
show a resolved config without loading torch (docs/decisions/0002).
"""

from fnostab.config.arm import ArmConfig, check_name
from fnostab.config.presets import PRESETS, STANDARD_ARMS
from fnostab.config.resolve import (
    CONFIG_KEYS,
    FLAT_KEYS,
    dotted_keys,
    is_left_open,
    read_config_file,
    resolve_config,
    stored_config,
)
from fnostab.config.sections import (
    ARCHITECTURES,
    AUTO_CLIP_VALUES,
    REMOVED_KEYS,
    ClipAlgorithm,
    DataConfig,
    ModelConfig,
    OptimConfig,
)
from fnostab.io.endings import ConfigError

__all__ = [
    "ARCHITECTURES",
    "AUTO_CLIP_VALUES",
    "CONFIG_KEYS",
    "FLAT_KEYS",
    "PRESETS",
    "REMOVED_KEYS",
    "STANDARD_ARMS",
    "ArmConfig",
    "ClipAlgorithm",
    "ConfigError",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "check_name",
    "dotted_keys",
    "is_left_open",
    "read_config_file",
    "resolve_config",
    "stored_config",
]
