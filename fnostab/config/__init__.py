"""The configuration of one run: frozen models, presets, and the way from text to both.

Nothing here imports anything heavier than pydantic, so that the command line can print its help, refuse a bad value, or
show a resolved config without loading torch (docs/decisions/0002).
"""

from fnostab.config.arm import ArmConfig as ArmConfig, check_name as check_name
from fnostab.config.clip import (
    AUTO_CLIP_VALUES as AUTO_CLIP_VALUES,
    CLIP_RULES as CLIP_RULES,
    ClipConfig as ClipConfig,
    auto_clip_value as auto_clip_value,
)
from fnostab.config.networks import (
    ARCHITECTURES as ARCHITECTURES,
    import_name as import_name,
    namesake as namesake,
)
from fnostab.config.optim import OptimConfig as OptimConfig
from fnostab.config.presets import PRESETS as PRESETS, standard_arms as standard_arms
from fnostab.config.reading import METRES as METRES, Orientation as Orientation, ReadingConfig as ReadingConfig
from fnostab.config.resolve import (
    CONFIG_KEYS as CONFIG_KEYS,
    FLAT_KEYS as FLAT_KEYS,
    FREE_KEYS as FREE_KEYS,
    dotted_keys as dotted_keys,
    is_left_open as is_left_open,
    is_option as is_option,
    read_config_file as read_config_file,
    resolve_config as resolve_config,
    stored_config as stored_config,
)
from fnostab.config.sections import (
    PHYSICS_KEYS as PHYSICS_KEYS,
    PROBES as PROBES,
    REMOVED_KEYS as REMOVED_KEYS,
    DataConfig as DataConfig,
    ModelConfig as ModelConfig,
    auto_max_channels as auto_max_channels,
)
from fnostab.config.sources import (
    foreign_network as foreign_network,
    source_files as source_files,
    with_sources as with_sources,
)
from fnostab.io.endings import ConfigError as ConfigError
