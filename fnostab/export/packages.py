"""The packages of the extra `onnx`, which nothing else needs."""

import importlib.util
from collections.abc import Iterable
from typing import Final

#: What writing a file takes, and what reading one takes.
FOR_WRITING: Final = ("onnx", "onnxscript", "onnxruntime")
FOR_READING: Final = ("onnx", "onnxruntime")


def require_packages(label: str, packages: Iterable[str]) -> None:
    """Raise ValueError, in one line that begins with `label`, if one of `packages` is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{label} needs {' and '.join(missing)}: pip install fnostab[onnx]")
