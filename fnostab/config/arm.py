"""The configuration of one run, with its default names and its hash."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from fnostab.config.clip import ClipConfig, auto_clip_value
from fnostab.config.optim import OptimConfig
from fnostab.config.presets import PRESETS, standard_arms
from fnostab.config.section import Section, did_you_mean
from fnostab.config.sections import REMOVED_OPTIONS, DataConfig, ModelConfig, TrainConfig, auto_max_channels
from fnostab.io.endings import ConfigError
from fnostab.io.foreign import label, portable
from fnostab.io.untrusted import shown

#: What no file system, MLflow's artifacts or its search take in a name: studies and arms name files and are searched.
_NOT_IN_NAMES: Final = frozenset("\\/:*?\"'`<>|#%")


#: Architectures under the names that identities have for them, where `hybrid_original` is what was called so at first.
_IDENTITY_OF: Final = {"hybrid_onesided": "hybrid_original", "hybrid_original": "hybrid_original_whole"}


def check_name(key: str, value: str) -> None:
    """Raise `ConfigError` unless `value`, given for `key`, can name a study or an arm, and so files."""
    if not value or not value.isprintable() or _NOT_IN_NAMES & set(value) or value[0] in ". ":
        raise ConfigError(
            f"`{key}` (={shown(value)}) must be a name without quotes, control characters or any of "
            "/ \\ : * ? < > | # %, and not begin with a dot or a space"
        )


#: Keys of `train` that change no number: paces, and names for the same.
_WITHOUT_EFFECT: Final = (
    *("checkpoint_every_s", "picture_every_epochs", "layer_norms_every_steps", "watch_every_steps"),
    *("strategy", "cuda_graph"),
)

#: What keys of the loss on patterns say of a run that has another loss.
_SUPERVISED: Final = {"learn_probe": False, "overlap_weight": 0, "loss": "mae", "loss_scale": "dataset"}


class ArmConfig(Section):
    """One run: an arm (architecture x clipping rule), its data, its training, its seed."""

    preset: str = Field("stage_a", description="where all other defaults come from")
    study: str = Field("auto", min_length=1, max_length=100, description="tag; auto: stage_a or stage_a_<preset>")
    arm: str = Field(
        "auto", min_length=1, max_length=100, description="tag; auto: control, stable, agc, baseline, arch-clip"
    )
    seed: int = Field(20260128, ge=0, lt=2**32, description="seed of initial weights and data order")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    clip: ClipConfig = ClipConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        if value not in PRESETS:
            raise ValueError(f"must be one of {', '.join(PRESETS)}{did_you_mean(value, PRESETS)}")
        return value

    @field_validator("study", "arm")
    @classmethod
    def _name(cls, value: str, info: ValidationInfo) -> str:
        check_name(info.field_name or "", value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> "ArmConfig":
        limit = self.data.N // 2 + 1
        if self.model.modes > limit:
            raise ValueError(f"`model.modes` (={self.model.modes}) must be <= {limit} at N={self.data.N}")
        if self.train.mode == "supervised" and self.data.path:
            raise ValueError("`train.mode` (=supervised) must be physics on a measured scan: it has no true patches")
        if self.train.batch_size % self.data.group_size:
            raise ValueError(
                f"`train.batch_size` (={self.train.batch_size}) must be a multiple of {self.data.group_size}, the "
                f"patches of a group, at `data.gridsize` {self.data.gridsize}"
            )
        if self.preset == "scan" and not self.data.path:
            raise ValueError("`data` (=) must name a measured scan (.npz or .npz.bz2) with preset scan")
        if self.train.mode == "supervised":
            for name, needed in _SUPERVISED.items():
                if (value := getattr(self.train, name)) != needed:
                    rule = f"must be {str(needed).lower()} with train.mode=supervised, whose loss is on single patches"
                    raise ValueError(f"`train.{name}` (={str(value).lower()}) {rule}")
        return self

    @property
    def dataset(self) -> DataConfig:
        """What this run's dataset is made of: with `data.seeds` = K, that of every K-th training seed is the same."""
        if self.data.seeds == 1:
            return self.data
        return self.data.model_copy(update={"seed": self.data.seed + self.seed % self.data.seeds, "seeds": 1})

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value of every leaf, in the order of the fields."""
        return dict(leaves(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """YAML that resolves to this config; what follows from other keys is `auto`, so that those may be changed."""
        tree = self.model_dump(mode="json")
        tree |= {key: "auto" for key, name in self.auto_names.items() if tree[key] == name}
        if self.clip.val == auto_clip_value(self.clip.algo):
            tree["clip"]["val"] = "auto"
        if self.model.max_channels == auto_max_channels(self.model.arch):
            tree["model"]["max_channels"] = "auto"
        return yaml.safe_dump(tree, sort_keys=False)

    @property
    def auto_names(self) -> dict[str, str]:
        """What `study` and `arm` are called if nobody says: after the preset, and after architecture and clipping."""
        study = "scan" if self.data.path else "stage_a" if self.preset == "stage_a" else f"stage_a_{self.preset}"
        own = {"model.arch": self.model.arch, "clip.algo": self.clip.algo, "clip.val": self.clip.val}
        arch = label(self.model.arch)
        if self.train.mode == "supervised":
            return {"study": study, "arm": "baseline" if self.model.arch == "cnn" else f"{arch}-supervised"}
        usual = PRESETS[self.preset].get("clip.granularity", "unit")
        arms = standard_arms(self.preset).items() if self.clip.granularity == usual else ()
        standard = [name for name, keys in arms if keys == own]
        return {"study": study, "arm": standard[0] if standard else f"{arch}-{label(self.clip.algo)}"}

    @property
    def left_out(self) -> set[str]:
        """Keys that hashes leave out: those marked `newer` that have the value of runs from before them."""
        sections = {
            name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Section)
        }
        return {f"{section}.{name}" for section, values in sections.items() for name in values.left_out}

    def sha256(self) -> str:
        """Hash of everything that decides the numbers.

        It leaves out the tags, the pace of checkpoints, pictures and observations, the strategy (there is only one,
        under two names), how kernels are launched, and the keys `left_out`. `artifacts` is in it: a run that kept its
        numbers alone is not the finished run of a config that asks for all artifacts.
        """
        config = self.model_dump(mode="json", exclude={"preset": True, "study": True, "arm": True})
        config["model"] |= REMOVED_OPTIONS
        config["model"]["arch"] = _IDENTITY_OF.get(self.model.arch, portable(self.model.arch))
        config["clip"]["algo"] = portable(self.clip.algo)
        for key in _WITHOUT_EFFECT:
            del config["train"][key]
        for key in self.left_out:
            section, name = key.split(".")
            del config[section][name]
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of `tree` with its value, at any depth."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
