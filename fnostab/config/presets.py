"""What presets and the standard arms set, by dotted keys."""

from collections.abc import Mapping
from typing import Any, Final

#: The arms of Stage A. A config without a name for its arm is called like the one whose keys it has.
STANDARD_ARMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "control": {"model.arch": "hybrid", "clip.algo": "norm", "clip.val": 1.0},
    "stable": {"model.arch": "stable_hybrid", "clip.algo": "none", "clip.val": 0.0},
    "agc": {"model.arch": "hybrid", "clip.algo": "agc", "clip.val": 0.01},
}

#: The preset that repeats the original study, and the networks that it really ran.
_ORIGINAL: Final = "seed_study"
_ORIGINAL_ARCHITECTURES: Final = {"hybrid": "hybrid_original", "stable_hybrid": "stable_original"}


def standard_arms(preset: str) -> dict[str, dict[str, Any]]:
    """The arms of Stage A in `preset`, by dotted keys: in `seed_study` they have the original's networks."""
    arms = {name: dict(keys) for name, keys in STANDARD_ARMS.items()}
    if preset == _ORIGINAL:
        for keys in arms.values():
            keys["model.arch"] = _ORIGINAL_ARCHITECTURES[keys["model.arch"]]
    return arms


#: What each preset changes; dotted keys.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # The original study as it really ran: its networks, a structured probe out of focus, objects without phase and of
    # its amplitudes, validation on the test objects, AGC per tensor, each batch's loss over its own mean amplitude.
    _ORIGINAL: {
        "data.phase": "none",
        "data.probe": "defocused",
        "data.object_mean": 0.17,
        "data.val": "test",
        "model.arch": "hybrid_original",
        "clip.granularity": "tensor",
        "train.loss_scale": "batch",
    },
    # The same with phase: the study that the project answers.
    "stage_a": {},
    # Minutes on 2 CPU cores, and it really learns: in bfloat16 as well as in single precision, as
    # docs/results/precision.md shows of this size, and of no other.
    "quick": {
        "data.nimgs_test": 1,
        "data.max_train_patches": 1024,
        "data.max_val_patches": 128,
        "model.width": 16,
        "train.epochs": 8,
        "train.overlap_weight": 0.5,
        "train.picture_every_epochs": 4,
        "train.precision": "auto",
    },
    # A measured scan: the probe is learnt, which only the overlap of patches determines.
    "scan": {
        "model.width": 16,
        "optim.lr": 2e-3,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 100,
        "train.epochs": 80,
        "train.batch_size": 8,
        "train.learn_probe": True,
        "train.probe_lr": 0.03,
        "train.overlap_weight": 1.0,
        "train.picture_every_epochs": 20,
    },
    # Seconds, for tests and first tries; even so it learns.
    "smoke": {
        "data.N": 32,
        "data.object_size": 160,
        "data.nimgs_train": 1,
        "data.nimgs_test": 1,
        "data.max_train_patches": 384,
        "model.width": 8,
        "model.fno_blocks": 2,
        "optim.lr": 3e-3,
        "optim.schedule": "cosine",
        "optim.warmup_steps": 20,
        "train.epochs": 8,
        "train.overlap_weight": 0.5,
    },
}
