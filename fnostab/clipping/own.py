"""A clipping rule that the user wrote."""

import copy
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from fnostab.clipping.options import checked_options
from fnostab.clipping.stats import ClipStats
from fnostab.config import CLIP_RULES
from fnostab.gradients import parameters_with_gradient, total_norm
from fnostab.io.foreign import load_foreign
from fnostab.io.untrusted import raised, shown

#: The gradients on which a rule is tried are drawn from this seed.
_TRIAL_SEED: Final = 0


class OwnRule:
    """The function `name` of the user's: `function(module, value, state, **options) -> ClipStats | None`.

    It changes the gradients of `module` in place, and keeps what it remembers as tensors in the dict `state`, which
    checkpoints hold. If it returns None, the norms are measured before and after it, and the clipped fraction is 1 if
    the norm has become smaller. Raises `ValueError` if it cannot be imported or is none, and for options that it does
    not take.
    """

    def __init__(self, name: str, value: float, options: Mapping[str, Any]) -> None:
        self._name = name
        self._value = value
        self._function = load_foreign(name, "algorithm").value
        called = name.rpartition(":")[2]
        if not callable(self._function):
            raise self._refused("be a function")
        if called in CLIP_RULES:
            raise self._refused(f"not be called {called}, as a built-in rule is")
        self._options = checked_options(self._function, options, name)

    def __call__(self, module: nn.Module, state: dict[str, Tensor]) -> ClipStats:
        """Clip by the user's function; raises `ValueError` if it breaks its contract."""
        before = total_norm(module)
        stats = self._function(module, self._value, state, **self._options)
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise self._refused(f"keep tensors alone in its state, and {shown(name)} is {type(value).__name__}")
        if stats is None:
            after = total_norm(module)
            return ClipStats(before, after, (after < before).to(before.dtype))
        if not isinstance(stats, ClipStats):
            raise self._refused(f"return ClipStats or None, not {type(stats).__name__}")
        return stats

    def check(self, module: nn.Module) -> None:
        """Try two steps on a copy of `module` with random gradients; raises `ValueError`, with the rule broken."""
        module, state = copy.deepcopy(module), dict[str, Tensor]()
        generator = torch.Generator().manual_seed(_TRIAL_SEED)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for _ in range(2):
                for parameter in module.parameters():
                    drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                    parameter.grad = drawn.to(parameter.device)
                self._try_step(module, state)

    def _try_step(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters_with_gradient(module)]
        try:
            stats = self(module, state)
        except Exception as error:
            if isinstance(error, _Refused):
                raise
            raise self._refused(f"not raise, and raised {raised(error)}") from None
        for name, value in stats._asdict().items():
            if not (isinstance(value, Tensor) and value.ndim == 0) and (value is not None or name != "skip"):
                raise self._refused(f"return tensors of no axes, and {name} is {shown(value)}")
        now = [parameter.grad for parameter in parameters_with_gradient(module)]
        if len(now) != len(gradients) or any(new is not old for new, old in zip(now, gradients, strict=True)):
            raise self._refused("change gradients in place")
        if not total_norm(module).isfinite():
            raise self._refused("leave finite gradients finite")

    def _refused(self, rule: str) -> "_Refused":
        return _Refused(f"`algorithm` (={shown(self._name)}) must {rule}")


class _Refused(ValueError):
    """A rule of this module, as opposed to what a user's code raises."""
