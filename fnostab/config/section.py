"""What the sections of a configuration have in common."""

import difflib
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationInfo, field_validator

#: Larger factors overflow float32, in which networks are trained.
LARGE: Final = 1e30
#: Larger whole numbers are typing errors, and overflow somewhere.
MANY: Final = 10**9

#: Under this key a field that is marked `newer` has the value that stored runs from before it had.
_BEFORE: Final = "value before"
#: Under this key the context of a validation says that the config is that of a stored run.
STORED: Final = "stored"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message that refuses `word`: the one of the `known` words that is most like it, if any is."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def newer(before: JsonValue) -> dict[str, JsonValue]:
    """Mark a field that is newer than stored runs, which did what its value `before` does.

    Where a field has that value, the identity of a run does not mention it, so that runs from before it are found
    again. Every new field that decides numbers needs this mark.
    """
    return {_BEFORE: before}


def checked_file_name(value: str) -> str:
    """Return what may be a file's name: MLflow's databases and logs are UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be the name of a file in UTF-8") from None
    if "\0" in value:
        raise ValueError("must be the name of a file")
    return value


def listed(value: Any) -> Any:
    """The list that text with commas between stands for, as on a command line; any other value as it is."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.strip().removeprefix("[").removesuffix("]").split(",")] if value else []


class Section(BaseModel):
    """A part of the configuration: frozen, and strict about unknown keys and about values of another kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse YAML's `yes`, which pydantic takes for the number 1, and its `!!binary`, which it takes for text."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("must not be true or false")
        if isinstance(value, bytes):
            raise ValueError("must not be binary")
        return value

    @classmethod
    def values_before(cls) -> dict[str, Any]:
        """The fields marked `newer`, with the value that runs had from before each."""
        extras = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {name: extra[_BEFORE] for name, extra in extras.items() if isinstance(extra, dict) and _BEFORE in extra}

    @property
    def left_out(self) -> set[str]:
        """The fields marked `newer` that have the value of runs from before: hashes leave them out."""
        return {name for name, before in self.values_before().items() if getattr(self, name) == before}
