"""The sections of a run's configuration, a frozen model each; every default stands here once."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fnostab.config.networks import ARCHITECTURES, import_name
from fnostab.config.options import checked_options
from fnostab.config.reading import ReadingConfig
from fnostab.config.section import LARGE, MANY, STORED, Section, checked_file_name, newer
from fnostab.io.untrusted import shown

#: More channels than any network here reaches.
_MOST_CHANNELS: Final = 2**16
#: Networks of the original study, which doubled their width without a limit.
_UNLIMITED: Final = frozenset(name for name in ARCHITECTURES if name.endswith("_original"))

#: Probes by name; any other is a file.
PROBES: Final = ("curved_disk", "disk", "defocused")

#: Most pixels of all objects of a split, 8 bytes each in memory.
_MAX_OBJECT_PIXELS: Final = 2**30
#: Most scan positions of a split, before some are chosen.
_MAX_POSITIONS: Final = 2**24

#: What weights can be taken from: a run, or a version of a registered model.
_SOURCE: Final = re.compile(r"(runs:/)?[0-9a-f]{32}|runs:/[0-9a-f]{32}/\S*|models:/[^/:@]+(@[\w.-]+|/\d+)")
#: Keys of the loss on patterns. A supervised run has another loss: it takes none of them from a preset, or from what is
#: given for all arms of a study.
PHYSICS_KEYS: Final = frozenset({"train.loss", "train.loss_scale", "train.learn_probe", "train.overlap_weight"})


def auto_max_channels(arch: str) -> int:
    """What `model.max_channels = auto` means for an architecture, a user's own among them."""
    return _MOST_CHANNELS if arch in _UNLIMITED else 256


class DataConfig(ReadingConfig):
    """What a dataset is made of; its SHA-256 names the cache entry. Seeded apart from the training seed."""

    path: str = Field("", description="measured scan (NPZ or HDF5); empty: simulate")
    quantity: Literal["auto", "counts", "amplitude"] = Field(
        "auto", description="what the patterns are, where the file leaves it open; never guessed"
    )
    N: int = Field(64, ge=16, le=512, description="pattern and patch size in pixels")
    gridsize: int = Field(1, description="1, or 2: the network takes groups of four overlapping patterns")
    probe: str = Field("auto", description=f"{', '.join(PROBES)}, or a file; auto: the scan's own, or curved_disk")
    probe_radius_px: float | None = Field(None, gt=0, description="probe radius; default 15 px at N=64, in proportion")
    probe_curvature_rad: float = Field(
        8.0, ge=-1000, le=1000, description="quadratic phase at the rim of curved_disk and defocused"
    )
    probe_aperture: Literal["annular", "square"] = Field(
        "annular", description="aperture of the probe defocused", json_schema_extra=newer("annular")
    )
    objects: Literal["lines", "grf", "image"] = Field("lines", description="kind of synthetic object")
    phase: Literal["tanh", "none"] = Field("tanh", description="phase of synthetic objects")
    object_mean: float | None = Field(
        None,
        gt=0,
        le=LARGE,
        description="mean amplitude of synthetic objects; null: patches have a mean maximum of 1",
        json_schema_extra=newer(None),
    )
    object_size: int = Field(392, ge=32, le=2**14, description="side of a synthetic object in pixels")
    nimgs_train: int = Field(2, ge=1, le=1000, description="training objects")
    nimgs_val: int = Field(1, ge=1, le=1000, description="validation objects")
    nimgs_test: int = Field(2, ge=1, le=1000, description="test objects")
    stride_train_px: int = Field(4, ge=1, le=2**14, description="scan step on training objects")
    stride_val_px: int = Field(10, ge=1, le=2**14, description="scan step on validation objects")
    stride_test_px: int = Field(10, ge=1, le=2**14, description="scan step on test objects")
    max_train_patches: int | None = Field(None, ge=1, le=MANY, description="keep so many training patches, at random")
    max_val_patches: int | None = Field(None, ge=1, le=MANY, description="keep so many validation patches")
    val: Literal["own", "test"] = Field(
        "own", description="validation on objects of its own, or on the test objects", json_schema_extra=newer("own")
    )
    val_choice: Literal["block", "random"] = Field(
        "block",
        description="validation patches are neighbours, or drawn (a scan's: every 10th)",
        json_schema_extra=newer("random"),
    )
    nphotons: float = Field(1e9, gt=0, description="counts in the mean simulated pattern")
    seed: int = Field(20260128, ge=0, lt=2**63, description="seed of objects, subsets and photon noise")
    seeds: int = Field(
        1,
        ge=1,
        le=10_000,
        description="so many datasets, objects anew, are shared out over the training seeds",
        json_schema_extra=newer(1),
    )

    @field_validator("path", "probe")
    @classmethod
    def _file_name(cls, value: str) -> str:
        return checked_file_name(value)

    @field_validator("gridsize")
    @classmethod
    def _gridsize(cls, value: int) -> int:
        if value not in (1, 2):
            raise ValueError("must be 1, or 2 for groups of four overlapping patterns")
        return value

    @property
    def group_size(self) -> int:
        """Patterns that the network takes at once, its channels."""
        return self.gridsize**2

    @model_validator(mode="after")
    def _fits(self) -> "DataConfig":
        if self.path and self.val == "test":
            raise ValueError("`data.val` (=test) must be own on a measured scan, which has no test objects")
        if not self.path and (given := [key for key in ReadingConfig.model_fields if key not in self.left_out]):
            raise ValueError(
                f"`data.{given[0]}` (={getattr(self, given[0])}) must be of a measured scan: give `data.path`"
            )
        if self.path and self.seeds > 1:
            raise ValueError(f"`data.seeds` (={self.seeds}) must be 1 on a measured scan: there is one")
        if self.N % 2:
            raise ValueError(f"`data.N` (={self.N}) must be even")
        if self.object_size < self.N:
            raise ValueError(f"`data.object_size` (={self.object_size}) must be >= `data.N` (={self.N})")
        for split in () if self.path else ("train", "val", "test"):
            n_objects, stride = getattr(self, f"nimgs_{split}"), getattr(self, f"stride_{split}_px")
            pixels = n_objects * self.object_size**2
            if pixels > _MAX_OBJECT_PIXELS:
                key = f"data.nimgs_{split}` (={n_objects}) and `data.object_size` (={self.object_size}"
                raise ValueError(f"`{key}) must give at most {_MAX_OBJECT_PIXELS} pixels, not {pixels}")
            positions = n_objects * ((self.object_size - self.N) // stride + 1) ** 2
            if positions > _MAX_POSITIONS:
                key = f"data.stride_{split}_px` (={stride}"
                raise ValueError(f"`{key}) must be larger: {positions} patches are more than {_MAX_POSITIONS}")
        return self


#: Options of blocks that were measured, did not help and were taken out, at the values that are left. Hashes of configs
#: still hold them, and stored runs have them as params.
REMOVED_OPTIONS: Final[Mapping[str, Any]] = {
    "pre_norm": "instance",
    "gate": "none",
    "gate_init": 0.1,
    "mix": False,
    "spectral_gain": 1.0,
}
REMOVED_KEYS: Final = frozenset(f"model.{key}" for key in REMOVED_OPTIONS)


class ModelConfig(Section):
    """The network; constructors call `width` `hidden_channels` and `fno_blocks` `n_blocks`."""

    arch: str = Field(
        "hybrid",
        max_length=500,
        description=f"one of {', '.join(ARCHITECTURES)}; or your own: package.module:Class or ./file.py:Class",
    )
    width: int = Field(32, ge=1, le=1024, description="channels after the lifter")
    fno_blocks: int = Field(4, ge=1, le=64, description="encoder blocks")
    modes: int = Field(12, ge=1, le=257, description="Fourier modes kept per axis and sign, bottleneck: half")
    min_resolution: int = Field(8, ge=2, le=512, description="halving stops at this grid size in pixels")
    max_channels: int = Field(
        "auto",
        ge=1,
        le=_MOST_CHANNELS,
        validate_default=True,
        description="doubling stops at this width; auto: 256, none for the original's networks",
    )
    gamma_init: float = Field(0.0, ge=-1000, le=1000, description="initial norm weight of stable blocks")
    layerscale_init: float | None = Field(
        None, ge=-1000, le=1000, description="initial LayerScale of stable blocks; null: none"
    )
    norm_centred: bool = Field(True, description="the norm of stable blocks subtracts each channel's mean")
    norm_bias: bool = Field(True, description="the norm of stable blocks learns a bias")
    options: dict[str, Any] = Field(
        {},
        description="what your own network takes besides: --model.options.NAME VALUE",
        json_schema_extra=newer({}),
    )
    source_sha256: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="hash of your own network's source file; a run fills it in",
        json_schema_extra=newer(""),
    )

    @model_validator(mode="before")
    @classmethod
    def _without_removed_options(cls, values: Any) -> Any:
        """Take the config of a run that had more options, if it has them at the values that are left."""
        if not isinstance(values, Mapping):
            return values
        for key, only in REMOVED_OPTIONS.items():
            if key in values and str(values[key]).lower() != str(only).lower():
                raise ValueError(
                    f"`model.{key}` (={shown(values[key])}) must be {shown(only)}, as other values lost and were taken"
                    " out after commit 0f04361"
                )
        return {key: value for key, value in values.items() if key not in REMOVED_OPTIONS}

    @field_validator("max_channels", mode="before")
    @classmethod
    def _auto(cls, value: Any, info: ValidationInfo) -> Any:
        return auto_max_channels(info.data.get("arch", "")) if value == "auto" else value

    @field_validator("arch")
    @classmethod
    def _known_arch(cls, value: str, info: ValidationInfo) -> str:
        if not (info.context and info.context.get(STORED)):  # what a stored run names may not be installed here
            import_name(value)
        return value

    @field_validator("options")
    @classmethod
    def _options(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_options("model.options", value)


class TrainConfig(Section):
    """How one run trains."""

    epochs: int = Field(50, ge=1, le=10**6, description="passes over the training patches")
    mode: Literal["physics", "supervised"] = Field(
        "physics",
        description="the loss is on patterns, or supervised on the true patches of simulated data",
        json_schema_extra=newer("physics"),
    )
    give_up_after: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="stop after this share of the epochs if nothing was learnt; null: never",
        json_schema_extra=newer(None),
    )
    batch_size: int = Field(16, ge=1, le=10**6, description="patches per step, over all devices together")
    loss_scale: Literal["dataset", "batch"] = Field(
        "dataset",
        description="the loss is divided by the mean measured amplitude of all training patches, or of the batch",
        json_schema_extra=newer("dataset"),
    )
    loss: Literal["mae", "poisson"] = Field("mae", description="on amplitudes, or the Poisson likelihood of counts")
    learn_probe: bool = Field(False, description="learn the probe with the network")
    probe_lr: float = Field(1e-2, gt=0, le=LARGE, description="learning rate of the probe over its largest amplitude")
    overlap_weight: float = Field(0.0, ge=0, le=1, description="share of the loss on the object stitched from a batch")
    accelerator: Literal["auto", "cpu", "gpu", "mps"] = Field("auto", description="device kind")
    devices: int = Field(1, ge=1, le=1024, description="devices per machine (on CPUs: processes) that share a batch")
    nodes: int = Field(1, ge=1, le=10_000, description="machines; more than one are started by torchrun or SLURM")
    strategy: Literal["auto", "ddp"] = Field("auto", description="how devices share a batch; auto: ddp if several")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads per process; null: OMP_NUM_THREADS, or cores over `devices`"
    )
    precision: Literal["32-true", "bf16-mixed", "tf32", "auto"] = Field(
        "32-true",
        description="of training steps: bf16-mixed computes the network in bfloat16; auto: so where the hardware does",
        json_schema_extra=newer("32-true"),
    )
    cuda_graph: bool = Field(
        True, description="on one CUDA device, launch whole steps as graphs (built-in networks and rules)"
    )
    checkpoint_every_s: float = Field(60.0, gt=0, le=MANY, description="seconds between checkpoints inside an epoch")
    layer_norms_every_steps: int = Field(100, ge=1, le=MANY, description="steps between norms of all gradients")
    watch_every_steps: int | None = Field(
        None,
        ge=1,
        le=MANY,
        description="steps between observations of all layers on a fixed batch; null: never, once an epoch is kept",
    )
    select_by: Literal["val_loss", "r_stitched"] = Field(
        "val_loss",
        description="the best weights, which are shipped, have the lowest of it",
        json_schema_extra=newer("val_loss"),
    )
    init_from: str = Field(
        "",
        description="start from a run's weights: RUN, runs:/RUN or models:/NAME@ALIAS; empty: weights by the seed",
        json_schema_extra=newer(""),
    )
    picture_every_epochs: int = Field(10, ge=1, le=MANY, description="epochs between pictures of the test object")
    artifacts: Literal["all", "numbers"] = Field("all", description="numbers: no model, pictures or checkpoints kept")

    @field_validator("init_from")
    @classmethod
    def _source(cls, value: str) -> str:
        if value and not _SOURCE.fullmatch(value):
            raise ValueError("must be a run's ID (32 digits), runs:/RUN, models:/NAME@ALIAS or models:/NAME/VERSION")
        return value

    @property
    def give_up_epoch(self) -> int | None:
        """The epoch, from 1 on, after which `give_up_after` decides; None: it never does."""
        if self.give_up_after is None:
            return None
        return math.ceil(Fraction(str(self.give_up_after)) * self.epochs)  # of floats, 0.07 * 100 is over 7
