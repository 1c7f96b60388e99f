"""The section `clip` of a run's configuration: the clipping rule and its settings."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from fnostab.config.options import checked_options
from fnostab.config.section import LARGE, Section, did_you_mean, listed, newer
from fnostab.io.foreign import check_foreign_name, is_foreign

#: What `clip.val = auto` means, by rule: the limits of their papers (AGC: the one for large batches; ZClip: standard
#: deviations over the mean; AdaGC: times a tensor's own mean). `skip`: times the median.
AUTO_CLIP_VALUES: Final[Mapping[str, float]] = {
    **{"none": 0.0, "norm": 1.0, "value": 0.5, "agc": 0.01},
    **{"zclip": 2.5, "adagc": 1.05, "skip": 10.0},
}
#: The clipping rules that are built in; `fnostab.clipping` maps each to its function.
CLIP_RULES: Final = tuple(AUTO_CLIP_VALUES)


def auto_clip_value(algo: str) -> float:
    """What `clip.val = auto` means for a rule; 1 for a user's own."""
    return AUTO_CLIP_VALUES.get(algo, 1.0)


class ClipConfig(Section):
    """The clipping rule; `val` <= 0 means none."""

    algo: str = Field(
        "norm",
        max_length=500,
        description=f"one of {', '.join(CLIP_RULES)}; or your own: package.module:function or ./file.py:function",
    )
    val: float = Field(
        "auto",
        le=LARGE,
        validate_default=True,
        description=f"limit; auto: {', '.join(f'{algo} {value:g}' for algo, value in AUTO_CLIP_VALUES.items())}, own 1",
    )
    granularity: Literal["unit", "tensor"] = Field("unit", description="what agc compares: output units or tensors")
    exclude: list[str] = Field(
        [],
        description="patterns of parameter names that are not clipped, with commas between: out.*,*.bias",
        json_schema_extra=newer([]),
    )
    options: dict[str, Any] = Field(
        {}, description="further settings of the rule: --clip.options.NAME VALUE", json_schema_extra=newer({})
    )
    source_sha256: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="hash of the file that holds your own rule; filled in as a run starts",
        json_schema_extra=newer(""),
    )

    @field_validator("algo")
    @classmethod
    def _known_rule(cls, value: str) -> str:
        if is_foreign(value):
            check_foreign_name(value)
        elif value not in CLIP_RULES:
            known, near = ", ".join(CLIP_RULES), did_you_mean(value, CLIP_RULES)
            raise ValueError(f"must be one of {known}, package.module:function or ./file.py:function{near}")
        return value

    @field_validator("val", mode="before")
    @classmethod
    def _auto(cls, value: Any, info: ValidationInfo) -> Any:
        return auto_clip_value(info.data.get("algo", "none")) if value == "auto" else value

    @field_validator("options")
    @classmethod
    def _options(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_options("clip.options", value)

    @field_validator("exclude", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return listed(value)

    @field_validator("exclude")
    @classmethod
    def _patterns(cls, value: list[str]) -> list[str]:
        if any(not pattern or not pattern.isprintable() for pattern in value):
            raise ValueError("must be patterns of parameter names, as out.*")
        return value
