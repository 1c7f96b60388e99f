"""Networks that predict an object patch from its diffraction pattern."""

from fnostab.models.registry import build_generator, resolve_generator

__all__ = ["build_generator", "resolve_generator"]
