"""Networks that predict an object patch from its diffraction pattern."""

from fnostab.models.registry import build_generator as build_generator, resolve_generator as resolve_generator
