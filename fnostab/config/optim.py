"""The section `optim` of a run's configuration: optimiser and learning-rate schedule."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fnostab.config.section import LARGE, MANY, Section, listed, newer

_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """Optimiser and learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd", "stable_adamw"] = Field(
        "adam", description="optimiser; stable_adamw: adamw with update clipping (Wortsman et al. 2023)"
    )
    lr: float = Field(1e-3, gt=0, le=LARGE, description="learning rate")
    weight_decay: float = Field(0.0, ge=0, le=LARGE, description="decoupled for adamw and stable_adamw, else L2")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd")
    betas: list[_Decay] = Field(
        [0.9, 0.999],
        description="how slowly Adam's two moments change: 0.9,0.95",
        json_schema_extra=newer([0.9, 0.999]),
    )
    eps: float = Field(
        1e-8, gt=0, le=1, description="added to the root of Adam's second moment", json_schema_extra=newer(1e-8)
    )
    schedule: Literal["constant", "cosine"] = Field("constant", description="cosine: linear warm-up, then cosine to 0")
    warmup_steps: int = Field(0, ge=0, le=MANY, description="steps of linear warm-up (schedule cosine)")

    @field_validator("betas", mode="before")
    @classmethod
    def _two(cls, value: Any) -> Any:
        two = listed(value)
        if isinstance(two, list | tuple) and len(two) != 2:
            raise ValueError("must be two numbers, as 0.9,0.999")
        return two

    @model_validator(mode="after")
    def _has_moments(self) -> "OptimConfig":
        for key in ("betas", "eps") if self.name == "sgd" else ():
            if (value := getattr(self, key)) != (usual := type(self).values_before()[key]):
                raise ValueError(f"`optim.{key}` (={value}) must be {usual} with optim.name=sgd, which does not use it")
        return self
