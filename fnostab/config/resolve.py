"""The way from keys and values, as text or from a YAML file, to a config."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from fnostab.config.arm import ArmConfig, leaves
from fnostab.config.presets import PRESETS
from fnostab.config.section import STORED, Section, did_you_mean
from fnostab.config.sections import PHYSICS_KEYS, REMOVED_KEYS
from fnostab.io.endings import ConfigError
from fnostab.io.untrusted import read_yaml, shown

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
    "init_from": "train.init_from",
    "precision": "train.precision",
    "data": "data.path",
    "study": "study",
    "arm": "arm",
    "accelerator": "train.accelerator",
    "devices": "train.devices",
    "strategy": "train.strategy",
}

_SECTIONS: Final = {
    name: type(field.default) for name, field in ArmConfig.model_fields.items() if isinstance(field.default, Section)
}
#: Every dotted key with its one-line description.
CONFIG_KEYS: Final[Mapping[str, str]] = {
    **{name: field.description or "" for name, field in ArmConfig.model_fields.items() if name not in _SECTIONS},
    **{
        f"{section}.{name}": field.description or ""
        for section, model in _SECTIONS.items()
        for name, field in model.model_fields.items()
    },
}

#: Keys that hold keys of their own, any names: `model.options.depth`.
FREE_KEYS: Final = tuple(key for key in CONFIG_KEYS if key.endswith(".options"))

#: Rules that pydantic says in other words than "Input should".
_RULES: Final = {
    "int_parsing_size": "be an integer of at most 4300 digits",
    "string_too_short": "not be empty",
    "string_unicode": "be text",
    "string_pattern_mismatch": "be a SHA-256 of 64 hexadecimal digits, or empty",
}
_SIGNS: Final = {
    "greater than or equal to": ">=",
    "less than or equal to": "<=",
    "greater than": ">",
    "less than": "<",
}


def resolve_config(overrides: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> ArmConfig:
    """The arm config of `overrides` laid over `base`, and both over the preset they name (default `stage_a`).

    Both have flat keys (`arch`) or dotted ones (`model.arch`); values may be text, as from a command line. A flat key
    that is left open leaves the decision to `base` or the preset. Of a preset, a supervised run takes no key of the
    loss that it does not have. Raises `ConfigError` with one line: parameter,
    value, rule.
    """
    values = {**dotted_keys(base or {}), **dotted_keys(overrides)}
    preset = values.get("preset", "stage_a")
    defaults = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
    if values.get("train.mode") == "supervised":
        defaults = {key: value for key, value in defaults.items() if key not in PHYSICS_KEYS}
    tree: dict[str, Any] = {}
    for key, value in {**defaults, **values}.items():
        *sections, name = key.split(".", 2)
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    config = _validated(tree)
    return config.model_copy(
        update={key: name for key, name in config.auto_names.items() if getattr(config, key) == "auto"}
    )


def stored_config(tree: Mapping[str, Any]) -> ArmConfig:
    """The arm config of nested keys, as a run has stored them; raises `ConfigError` with one line.

    A key that is newer than the run, and so is not there, has the value that says what the run did, whatever is its
    default today.
    """
    known = dict(tree)
    for name, section in _SECTIONS.items():
        values = known.get(name, {})
        if isinstance(values, Mapping):
            known[name] = {**section.values_before(), **values}
    model, train = known.get("model"), known.get("train")
    # What was called `hybrid_original` before `train.loss_scale` was known had the original's spectral layer alone.
    if isinstance(model, Mapping) and isinstance(train, Mapping) and model.get("arch") == "hybrid_original":
        was_known = "loss_scale" in tree.get("train", {})
        known["model"] = {**model, "arch": model["arch"] if was_known else "hybrid_onesided"}
    return _validated(known, stored=True)


def _validated(tree: Mapping[str, Any], *, stored: bool = False) -> ArmConfig:
    try:
        return ArmConfig.model_validate(tree, context={STORED: stored})
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None


def is_left_open(value: object) -> bool:
    """Whether `value` leaves the decision to a default: `MLproject` hands over `auto` or an empty text then."""
    return value in ("auto", "")


def is_option(key: str) -> bool:
    """Whether the dotted `key` is one that users name below a free key: `model.options.depth`."""
    return any(key.startswith(f"{free}.") for free in FREE_KEYS)


def dotted_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` under dotted keys, without flat keys that are left open; raises `ConfigError` for unknown keys."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        target = FLAT_KEYS.get(key, key)
        if target in FREE_KEYS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"`{target}` (={shown(value)}) must be keys and values: --{target}.NAME VALUE")
            dotted |= {f"{target}.{name}": option for name, option in value.items()}
            continue
        if target not in CONFIG_KEYS.keys() | REMOVED_KEYS and not is_option(str(key)):
            near = did_you_mean(str(key), [*FLAT_KEYS, *CONFIG_KEYS])
            raise ConfigError(f"`{shown(key)}` (={shown(value)}) is no parameter{near}")
        if key in FLAT_KEYS and is_left_open(value):
            continue
        value = None if value == "null" else value
        if target in dotted and dotted[target] != value:
            raise ConfigError(f"`{key}` (={shown(value)}) is given twice, also as {shown(dotted[target])}")
        dotted[target] = value
    return dotted


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
    for key, value in leaves(tree):
        if key in values:
            raise ConfigError(f"`{parameter}` (={path}) must have each key once, and has `{shown(key)}` twice")
        values[key] = value
    return values


def _one_line(error: ValidationError) -> str:
    """The first error of `error` as: parameter, value, rule."""
    first, rule = error.errors(include_url=False)[0], rule_of(error)
    return rule if rule.startswith("`") else f"`{'.'.join(map(str, first['loc']))}` (={shown(first['input'])}) {rule}"


def rule_of(error: ValidationError) -> str:
    """The rule that the first error of `error` says was broken ("must be > 0"), or a validator's own whole line."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    rule = "must " + _RULES.get(first["type"], re.sub(r"^\w+ should ", "", first["msg"]))
    return re.sub("|".join(_SIGNS), lambda words: _SIGNS[words[0]], rule)
