"""The configuration of one arm: frozen models, presets, and the way from text to both.

Every default stands here once. This module imports nothing heavier than pydantic, so that the command line can
print its help, refuse a bad value, or show a resolved config without loading torch (docs/decisions/0002).
"""

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fnostab.io.untrusted import printable, read_yaml, shown

ClipAlgorithm = Literal["none", "norm", "value", "agc"]

#: What `clip.val = auto` means. AGC's 0.01 is the value of Brock et al. 2021 for large batches.
AUTO_CLIP_VALUES: Final[Mapping[str, float]] = {"none": 0.0, "norm": 1.0, "value": 0.5, "agc": 0.01}

#: Architectures by name; `fnostab.models.registry` maps each to its class.
ARCHITECTURES: Final = ("hybrid", "stable_hybrid", "prenorm_hybrid", "hybrid_original", "fno", "cnn")


#: Larger factors overflow float32, in which networks are trained.
_LARGE: Final = 1e30
#: Larger whole numbers are typing errors, and overflow somewhere.
_MANY: Final = 10**9
#: Pixels of all objects of a split (8 bytes each, in memory), and its scan positions, before a subset is drawn.
_MAX_OBJECT_PIXELS: Final = 2**30
_MAX_POSITIONS: Final = 2**24

#: What no file system, MLflow's artifacts or its search take in a name: studies and arms name files and are searched.
_NOT_IN_NAMES: Final = frozenset("\\/:*?\"'`<>|#%")


class ConfigError(ValueError):
    """A value that the user gave breaks a rule; the message is one line that prints: parameter, value, rule."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def check_name(key: str, value: str) -> None:
    """Raise `ConfigError` unless `value`, given for `key`, can name a study or an arm, and so files."""
    if not _is_name(value):
        raise ConfigError(f"`{key}` (={shown(value)}) {_NAME_RULE}")


_NAME_RULE: Final = (
    "must be a name without quotes, control characters or any of / \\ : * ? < > | # %,"
    " and not begin with a dot or a space"
)


def _is_name(value: str) -> bool:
    return bool(value) and value.isprintable() and not _NOT_IN_NAMES & set(value) and value[0] not in ". "


def _rule(message: str) -> PydanticCustomError:
    """A validation error whose text is exactly `message` (braces are not templates)."""
    return PydanticCustomError("rule", "{message}", {"message": message})


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's `yes` would pass for the number 1, and its `!!binary` for text."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise _rule("must not be true or false")
        if isinstance(value, bytes):
            raise _rule("must not be binary")
        return value


class DataConfig(_Config):
    """What a dataset is made of; its SHA-256 names the cache entry. Seeded apart from the training seed."""

    path: str = Field("", description="measured scan (.npz or .npz.bz2); empty: simulate")
    quantity: Literal["auto", "counts", "amplitude"] = Field(
        "auto", description="what a PtychoPINN-style file's patterns are; never guessed"
    )
    N: int = Field(64, ge=16, le=512, description="pattern and patch size in pixels")
    gridsize: int = Field(1, description="patches predicted at once along an axis; only 1 is built")
    probe: str = Field(
        "auto", description="curved_disk, disk, or an NPZ file with key `probe`; auto: curved_disk, or the scan's own"
    )
    probe_radius_px: float | None = Field(None, gt=0, description="disk radius; default 15 px at N=64, in proportion")
    probe_curvature_rad: float = Field(8.0, ge=-1000, le=1000, description="quadratic phase of curved_disk at its rim")
    objects: Literal["lines", "grf", "image"] = Field("lines", description="kind of synthetic object")
    phase: Literal["tanh", "none"] = Field("tanh", description="phase of synthetic objects")
    object_size: int = Field(392, ge=32, le=2**14, description="side of a synthetic object in pixels")
    nimgs_train: int = Field(2, ge=1, le=1000, description="training objects")
    nimgs_val: int = Field(1, ge=1, le=1000, description="validation objects")
    nimgs_test: int = Field(2, ge=1, le=1000, description="test objects")
    stride_train_px: int = Field(4, ge=1, le=2**14, description="scan step on training objects")
    stride_val_px: int = Field(10, ge=1, le=2**14, description="scan step on validation objects")
    stride_test_px: int = Field(10, ge=1, le=2**14, description="scan step on test objects")
    max_train_patches: int | None = Field(
        None, ge=1, le=_MANY, description="keep this many training patches, drawn at random"
    )
    max_val_patches: int | None = Field(None, ge=1, le=_MANY, description="the same for validation")
    nphotons: float = Field(1e9, gt=0, description="counts in the mean simulated pattern")
    seed: int = Field(20260128, ge=0, lt=2**63, description="seed of objects, subsets and photon noise")

    @field_validator("path", "probe")
    @classmethod
    def _file_name(cls, value: str) -> str:
        try:
            value.encode()  # MLflow's databases and logs are UTF-8
        except UnicodeEncodeError:
            raise _rule("must be the name of a file in UTF-8") from None
        if "\0" in value:
            raise _rule("must be the name of a file")
        return value

    @field_validator("gridsize")
    @classmethod
    def _gridsize(cls, value: int) -> int:
        if value != 1:
            raise _rule("must be 1: networks over several patches at once are not built")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "DataConfig":
        if self.N % 2:
            raise _rule(f"`data.N` (={self.N}) must be even")
        if self.object_size < self.N:
            raise _rule(f"`data.object_size` (={self.object_size}) must be >= `data.N` (={self.N})")
        for split in () if self.path else ("train", "val", "test"):
            n_objects, stride = getattr(self, f"nimgs_{split}"), getattr(self, f"stride_{split}_px")
            pixels = n_objects * self.object_size**2
            if pixels > _MAX_OBJECT_PIXELS:
                key = f"data.nimgs_{split}` (={n_objects}) and `data.object_size` (={self.object_size}"
                raise _rule(f"`{key}) must give at most {_MAX_OBJECT_PIXELS} pixels, not {pixels}")
            positions = n_objects * ((self.object_size - self.N) // stride + 1) ** 2
            if positions > _MAX_POSITIONS:
                key = f"data.stride_{split}_px` (={stride}"
                raise _rule(f"`{key}) must be larger: {positions} patches are more than {_MAX_POSITIONS}")
        return self


class ModelConfig(_Config):
    """The network; constructors call `width` `hidden_channels` and `fno_blocks` `n_blocks`."""

    arch: str = Field("hybrid", description=f"one of {', '.join(ARCHITECTURES)}")
    width: int = Field(32, ge=1, le=1024, description="channels after the lifter")
    fno_blocks: int = Field(4, ge=1, le=64, description="encoder blocks")
    modes: int = Field(12, ge=1, le=257, description="Fourier modes kept per axis and sign, bottleneck: half")
    min_resolution: int = Field(8, ge=2, le=512, description="halving stops at this grid size in pixels")
    max_channels: int = Field(256, ge=1, le=2**16, description="doubling stops at this width")
    gamma_init: float = Field(0.0, ge=-1000, le=1000, description="initial norm weight of stable blocks")
    layerscale_init: float | None = Field(
        None, ge=-1000, le=1000, description="initial LayerScale of stable blocks; null: no LayerScale"
    )
    norm_centred: bool = Field(True, description="the norm of stable blocks takes each channel's mean away")
    norm_bias: bool = Field(True, description="the norm of stable blocks learns a bias")
    pre_norm: Literal["none", "group", "instance"] = Field(
        "instance", description="norm of what prenorm blocks read: each channel by itself, or all together (group)"
    )
    gate: Literal["none", "scalar", "channel"] = Field("none", description="learnt factor of prenorm blocks' updates")
    gate_init: float = Field(0.1, ge=-1000, le=1000, description="initial value of the gates")
    mix: bool = Field(False, description="prenorm blocks end with a 1x1 convolution")
    spectral_gain: float = Field(1.0, gt=0, le=1000, description="factor of prenorm blocks' initial spectral weights")

    @field_validator("arch")
    @classmethod
    def _known_arch(cls, value: str) -> str:
        if value not in ARCHITECTURES:
            raise _rule(f"must be one of {', '.join(ARCHITECTURES)}{_did_you_mean(value, ARCHITECTURES)}")
        return value


class ClipConfig(_Config):
    """The clipping rule; `val` <= 0 means none."""

    algo: ClipAlgorithm = Field("norm", description="clipping rule")
    val: float = Field(
        "auto", le=_LARGE, validate_default=True, description="its limit; auto: norm 1.0, value 0.5, agc 0.01"
    )
    granularity: Literal["unit", "tensor"] = Field("unit", description="what agc compares: output units or tensors")

    @field_validator("val", mode="before")
    @classmethod
    def _auto(cls, value: Any, info: ValidationInfo) -> Any:
        return AUTO_CLIP_VALUES[info.data.get("algo", "none")] if value == "auto" else value


class OptimConfig(_Config):
    """Optimiser and learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd"] = Field("adam", description="optimiser")
    lr: float = Field(1e-3, gt=0, le=_LARGE, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, le=_LARGE, description="decoupled for adamw, L2 otherwise")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    schedule: Literal["constant", "cosine"] = Field("constant", description="cosine: linear warm-up, then cosine to 0")
    warmup_steps: int = Field(0, ge=0, le=_MANY, description="steps of linear warm-up (schedule cosine)")


class TrainConfig(_Config):
    """How one run trains."""

    epochs: int = Field(50, ge=1, le=10**6, description="passes over the training patches")
    give_up_after: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the epochs after which a run that was never better than the best constant object is "
        "stopped; null: never",
    )
    batch_size: int = Field(16, ge=1, le=10**6, description="patches a step, over all devices together")
    loss: Literal["mae", "poisson"] = Field("mae", description="on amplitudes, or the Poisson likelihood of counts")
    learn_probe: bool = Field(False, description="learn the probe with the network")
    probe_lr: float = Field(1e-2, gt=0, le=_LARGE, description="learning rate of the probe over its largest amplitude")
    overlap_weight: float = Field(
        0.0, ge=0, le=1, description="share of the loss taken on the object stitched from each batch of neighbours"
    )
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = Field("auto", description="device kind")
    devices: int = Field(1, ge=1, le=1024, description="devices a machine, or processes on CPUs, that share each batch")
    nodes: int = Field(1, ge=1, le=10_000, description="machines; more than one are started by torchrun or SLURM")
    strategy: Literal["auto", "ddp"] = Field("auto", description="how devices share a batch; auto: ddp if several")
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads a process; default: OMP_NUM_THREADS, or cores over `devices`. Changes the last bits",
    )
    cuda_graph: bool = Field(True, description="on one CUDA device, launch a step's kernels as a graph")
    checkpoint_every_s: float = Field(60.0, gt=0, le=_MANY, description="seconds between checkpoints inside an epoch")
    layer_norms_every_steps: int = Field(
        100, ge=1, le=_MANY, description="steps between gradient norms of every parameter"
    )
    picture_every_epochs: int = Field(10, ge=1, le=_MANY, description="epochs between pictures of the test object")
    artifacts: Literal["all", "numbers"] = Field(
        "all", description="numbers: no model, pictures or checkpoints in the store, for sweeps of many runs"
    )

    @property
    def give_up_epoch(self) -> int | None:
        """The epoch, from 1 on, after which `give_up_after` decides; None: it never does."""
        if self.give_up_after is None:
            return None
        return math.ceil(Fraction(str(self.give_up_after)) * self.epochs)  # of floats, 0.07 * 100 is over 7


class ArmConfig(_Config):
    """One run: an arm (architecture x clipping rule), its data, its training, its seed."""

    preset: str = Field("stage_a", description="where the other defaults come from")
    study: str = Field("auto", min_length=1, max_length=100, description="tag; auto: stage_a or stage_a_<preset>")
    arm: str = Field("auto", min_length=1, max_length=100, description="tag; auto: control, stable, agc or arch-clip")
    seed: int = Field(20260128, ge=0, lt=2**32, description="of initial weights and data order")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    clip: ClipConfig = ClipConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, value: str) -> str:
        if value not in PRESETS:
            raise _rule(f"must be one of {', '.join(PRESETS)}{_did_you_mean(value, PRESETS)}")
        return value

    @field_validator("study", "arm")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _is_name(value):
            raise _rule(_NAME_RULE)
        return value

    @model_validator(mode="after")
    def _whole(self) -> "ArmConfig":
        limit = self.data.N // 2 + 1
        if self.model.modes > limit:
            raise _rule(f"`model.modes` (={self.model.modes}) must be <= {limit} at N={self.data.N}")
        if self.preset == "scan" and not self.data.path:
            raise _rule("`data` (=) must name a measured scan (.npz or .npz.bz2) with preset scan")
        return self

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value of every leaf, in the order of the fields."""
        return dict(_leaves(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """YAML that resolves to this config; what follows from other keys is `auto`, so that those may be changed."""
        tree = self.model_dump(mode="json")
        for key in ("study", "arm"):
            if tree[key] == _auto_name(self, key):
                tree[key] = "auto"
        if self.clip.val == AUTO_CLIP_VALUES[self.clip.algo]:
            tree["clip"]["val"] = "auto"
        return yaml.safe_dump(tree, sort_keys=False)

    @property
    def left_out(self) -> set[str]:
        """Keys that came later and are null: identities leave them out, so that what was made before stays the same."""
        return {"train.give_up_after"} if self.train.give_up_after is None else set()

    def sha256(self) -> str:
        """Hash of everything that decides the numbers: the tags and the pace of checkpoints and pictures do not.

        Nor does the strategy, of which there is one only, whatever it is called, nor how kernels are launched. What is
        kept is in the hash: a run that kept its numbers alone does not count as finished where all is asked for. Keys
        that are `left_out` are not.
        """
        config = self.model_dump(mode="json", exclude={"preset": True, "study": True, "arm": True})
        for key in ("checkpoint_every_s", "picture_every_epochs", "layer_norms_every_steps", "strategy", "cuda_graph"):
            del config["train"][key]
        for key in self.left_out:
            section, name = key.split(".")
            del config[section][name]
        return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


#: What each preset changes; dotted keys.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # The table of the original study: one seed, objects without phase.
    "seed_study": {"data.phase": "none"},
    # The same with phase: the study that the project answers.
    "stage_a": {},
    # Minutes on 2 CPU cores, and it really learns.
    "quick": {
        "data.nimgs_test": 1,
        "data.max_train_patches": 1024,
        "data.max_val_patches": 128,
        "model.width": 16,
        "train.epochs": 8,
        "train.overlap_weight": 0.5,
        "train.picture_every_epochs": 4,
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
        "data.max_train_patches": 192,
        "data.max_val_patches": 32,
        "model.width": 8,
        "model.fno_blocks": 2,
        "optim.lr": 3e-3,
        "train.epochs": 8,
    },
}

#: The flat parameters of `MLproject` and the dotted keys they stand for.
FLAT_KEYS: Final[Mapping[str, str]] = {
    "arch": "model.arch",
    "clip_algo": "clip.algo",
    "clip_val": "clip.val",
    "preset": "preset",
    "fno_blocks": "model.fno_blocks",
    "width": "model.width",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "optim.lr",
    "seed": "seed",
    "N": "data.N",
    "nphotons": "data.nphotons",
    "nimgs_train": "data.nimgs_train",
    "nimgs_test": "data.nimgs_test",
    "loss": "train.loss",
    "data": "data.path",
    "study": "study",
    "arm": "arm",
    "accelerator": "train.accelerator",
    "devices": "train.devices",
    "strategy": "train.strategy",
}

#: The arms of Stage A. A config without a name for its arm is called like the one whose keys it has.
STANDARD_ARMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "control": {"model.arch": "hybrid", "clip.algo": "norm", "clip.val": 1.0},
    "stable": {"model.arch": "stable_hybrid", "clip.algo": "none", "clip.val": 0.0},
    "agc": {"model.arch": "hybrid", "clip.algo": "agc", "clip.val": 0.01},
}


def resolve_config(overrides: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> ArmConfig:
    """The arm config of `overrides` laid over `base`, and both over the preset they name (default `stage_a`).

    Both have flat keys (`arch`) or dotted ones (`model.arch`); values may be text, as from a command line. `auto` or an
    empty text for a flat key leaves the decision to `base` or the preset. Raises `ConfigError` with one line:
    parameter, value, rule.
    """
    values = {**dotted_keys(base or {}), **dotted_keys(overrides)}
    preset = values.get("preset", "stage_a")
    merged = {**(PRESETS.get(preset, {}) if isinstance(preset, str) else {}), **values}
    try:
        config = ArmConfig.model_validate(_nested(merged))
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    return _named(config)


def read_config_file(path: Path, parameter: str = "config") -> dict[str, Any]:
    """The values of the YAML file that `parameter` names, nested or dotted or flat, as dotted or flat keys.

    Raises `ConfigError`.
    """
    try:
        tree = read_yaml(path)
    except ValueError as error:
        raise ConfigError(f"`{parameter}` (={path}) {error}") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"`{parameter}` (={path}) must hold keys and values")
    values: dict[str, Any] = {}
    for key, value in _leaves(tree):
        if key in values:
            raise ConfigError(f"`{parameter}` (={path}) must have each key once, and has `{shown(key)}` twice")
        values[key] = value
    return values


def dotted_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` under dotted keys, without those that leave the decision to others; see `resolve_config`."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        target = FLAT_KEYS.get(key, key)
        if target not in CONFIG_KEYS:
            near = _did_you_mean(str(key), [*FLAT_KEYS, *CONFIG_KEYS])
            raise ConfigError(f"`{shown(key)}` (={shown(value)}) is no parameter{near}")
        if key in FLAT_KEYS and value in ("auto", ""):
            continue
        value = None if value == "null" else value
        if target in dotted and dotted[target] != value:
            raise ConfigError(f"`{key}` (={shown(value)}) is given twice, also as {shown(dotted[target])}")
        dotted[target] = value
    return dotted


def _named(config: ArmConfig) -> ArmConfig:
    """Fill in `study` and `arm` where they are `auto`."""
    names = {"study": config.study, "arm": config.arm}
    return config.model_copy(update={key: _auto_name(config, key) for key, name in names.items() if name == "auto"})


def _auto_name(config: ArmConfig, key: str) -> str:
    """What `study` or `arm` is called if nobody says."""
    if key == "study":
        return "scan" if config.data.path else "stage_a" if config.preset == "stage_a" else f"stage_a_{config.preset}"
    values = config.flat()
    for name, keys in STANDARD_ARMS.items():
        if all(values[key] == value for key, value in keys.items()) and config.clip.granularity == "unit":
            return name
    return f"{config.model.arch}-{config.clip.algo}"


def _one_line(error: ValidationError) -> str:
    """The first error of `error` as: parameter, value, rule."""
    first = error.errors(include_url=False)[0]
    location = ".".join(str(part) for part in first["loc"])
    message = first["msg"]
    if first["type"] == "rule" and message.startswith("`"):
        return message
    rule = message if first["type"] == "rule" else f"must {_RULES.get(first['type'], _as_rule(message))}"
    for words, sign in (
        ("greater than or equal to", ">="),
        ("less than or equal to", "<="),
        ("greater than", ">"),
        ("less than", "<"),
    ):
        rule = rule.replace(words, sign)
    return f"`{location}` (={shown(first['input'])}) {rule}"


#: Errors that pydantic says in other words than "Input should".
_RULES: Final = {
    "int_parsing_size": "be an integer of at most 4300 digits",
    "string_too_short": "not be empty",
    "string_unicode": "be text",
}


def _as_rule(message: str) -> str:
    """What must be, by a message of pydantic: `Input should be ...`, `String should have ...`."""
    return re.sub(r"^\w+ should ", "", message)


def _did_you_mean(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in dotted.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, description) of every leaf field."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field.description or ""


#: Every dotted key with its one-line description.
CONFIG_KEYS: Final[Mapping[str, str]] = dict(_fields(ArmConfig))
