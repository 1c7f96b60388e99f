"""Text and YAML files from outside: shown in messages as one line that prints, read within limits."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import yaml

#: Most bytes of a YAML file; PyYAML takes seconds for more.
MAX_YAML_BYTES: Final = 2**18
#: Most keys and values of one, aliases written out: a few lines of aliases of aliases stand for billions.
MAX_YAML_NODES: Final = 50_000
#: Longer values are cut in messages.
_LONGEST: Final = 200


def printable(text: str) -> str:
    r"""`text` on one line: whatever ends a line, drives a terminal or does not print becomes `\n`, `\x1b` and so on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """`value` for a message: one line, the middle of a long one left out."""
    try:
        text = printable(str(value))
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}...{text[-half:]}, {len(text)} characters"


def first_line(error: BaseException) -> str:
    """The first line of what `error` says; empty if it says nothing."""
    return str(error).strip().partition("\n")[0]


def raised(error: BaseException) -> str:
    """What code of others raised, for a message: the kind of `error`, and its first line."""
    return f"{type(error).__name__}: {shown(first_line(error))}"


def read_yaml(path: Path) -> Any:
    """The content of the YAML file at `path`, in plain Python types.

    Raises ValueError, whose one line is the broken rule, for a file that cannot be read, is larger than
    `MAX_YAML_BYTES` or is no YAML in UTF-8, and for content that is not plain data, contains itself, has a key twice,
    or has more than `MAX_YAML_NODES` keys and values.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_YAML_BYTES + 1)
    except OSError as error:
        raise ValueError(f"must be a readable file: {error.strerror}") from None
    if len(content) > MAX_YAML_BYTES:
        raise ValueError(f"must have at most {MAX_YAML_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        root = loader.get_single_node()
        if root is None:
            return None
        _expanded(root, {})
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"must be YAML: {printable(error.problem or error.context or '')}{line}") from None
    except UnicodeDecodeError:
        raise ValueError("must be YAML: it is no text in UTF-8") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"must be YAML: it holds the character {shown(chr(int(error.character)))}") from None
    except RecursionError:
        raise ValueError("must be YAML that is nested less deeply") from None
    except _BrokenRule:
        raise
    except (ValueError, LookupError, AttributeError, TypeError):  # PyYAML on 2026-99-99, `!!int x`, `!!timestamp 1`
        raise ValueError("must be YAML: it holds a date or a number that cannot be read") from None


class _BrokenRule(ValueError):
    """A rule of this module."""


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Count `node` and all below it, an alias as often as it is used; `known` maps nodes to their counts."""
    if id(node) in known:
        if not known[id(node)]:
            raise _BrokenRule("must not hold itself")
        return known[id(node)]
    known[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    if known[id(node)] > MAX_YAML_NODES:
        raise _BrokenRule(f"must hold at most {MAX_YAML_NODES} keys and values, aliases written out")
    return known[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that is there twice: PyYAML would take the last one without a word."""
    names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    for name, times in names.items():
        if times > 1:
            raise _BrokenRule(f"must have each key once, and has `{shown(name)}` {times} times")
