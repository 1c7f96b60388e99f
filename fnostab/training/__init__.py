"""Training one arm with Lightning, on one device or on several."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from fnostab.training.checkpoint_files import CheckpointFiles
from fnostab.training.module import CountsToObject, PtychoModule, object_std, stitched_amplitude
from fnostab.training.ranks import Meeting, OneMachine, find_environment, following, leading
from fnostab.training.trainer import (
    check_accelerator,
    check_devices,
    check_network,
    fit,
    is_out_of_memory,
    make_trainer,
    peak_bytes,
    quieten_libraries,
    set_threads,
)

__all__ = [
    "CheckpointFiles",
    "ClusterEnvironment",
    "CountsToObject",
    "Meeting",
    "OneMachine",
    "PtychoModule",
    "check_accelerator",
    "check_devices",
    "check_network",
    "find_environment",
    "fit",
    "following",
    "is_out_of_memory",
    "leading",
    "make_trainer",
    "object_std",
    "peak_bytes",
    "quieten_libraries",
    "set_threads",
    "stitched_amplitude",
]
