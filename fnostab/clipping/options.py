"""The options of a rule: the keywords that its function takes, checked by their annotations."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from fnostab.config.resolve import rule_of
from fnostab.io.untrusted import shown

_PLAIN = (bool, int, float, str)


def checked_options(function: Callable[..., Any], given: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """The `given` options as `function(module, value, state, **options)` takes them.

    Options are what it names after its first three parameters. A bool, int, float or str, by annotation or by default,
    is converted and held to the bounds of its annotation; others are handed over as they are. Raises `ValueError` for
    an unknown option, a bad value, a missing one, and a function that does not take the three.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a compiled function
        return dict(given)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = [p.name for p in parameters[3:] if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name, value in given.items():
        if name not in names and not takes_any:
            takes = f"takes {', '.join(names)}" if names else "takes none"
            raise ValueError(
                f"`options.{name}` (={shown(value)}) must be an option of {shown(algorithm)}, which {takes}"
            )
    kinds = _kinds(function, parameters)
    options = {name: _converted(name, value, kinds.get(name)) for name, value in given.items()}
    try:
        inspect.signature(function).bind(None, 0.0, {}, **options)
    except TypeError as error:
        raise ValueError(f"`algorithm` (={shown(algorithm)}) must take (module, value, state): {error}") from None
    return options


def _kinds(function: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The annotation, or the type of the default, of each parameter where it is one that can be checked."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # annotations may name what is not there at run time
        hints = {}
    kinds = {p.name: hints.get(p.name, type(p.default)) for p in parameters}
    return {name: kind for name, kind in kinds.items() if _bare(kind) in _PLAIN}


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _converted(name: str, value: Any, kind: Any) -> Any:
    if kind is None:
        return value
    try:
        if isinstance(value, bool) and _bare(kind) is not bool:
            raise ValueError("must not be true or false")
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"`options.{name}` (={shown(value)}) {rule_of(error)}") from None
    except ValueError as error:
        raise ValueError(f"`options.{name}` (={shown(value)}) {error}") from None
