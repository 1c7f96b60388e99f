"""A clipping rule with its settings and its state."""

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final, get_args

import torch
from torch import Tensor, nn

from fnostab.clipping.adagc import adagc_
from fnostab.clipping.agc import Granularity
from fnostab.clipping.options import checked_options
from fnostab.clipping.own import OwnRule
from fnostab.clipping.skip import skip_
from fnostab.clipping.stateless import STATELESS, clip_gradients_
from fnostab.clipping.stats import ClipStats, check_choice
from fnostab.clipping.zclip import zclip_
from fnostab.gradients import gradient_of, norm_of_norms, tensor_norms
from fnostab.io.foreign import is_foreign
from fnostab.io.untrusted import shown

#: `rule(module, value, state, **options)` clips in place and keeps what it remembers as tensors in `state`. Those of
#: the built-in rules keep their place in memory, so that a CUDA graph can replay a step.
Rule = Callable[..., ClipStats]

#: The rules that keep a history.
_STATEFUL: Final[Mapping[str, Rule]] = {"zclip": zclip_, "adagc": adagc_, "skip": skip_}


class Clipper:
    """Clips the gradients of a module, step after step, by a built-in rule or one of the user's own.

    - `algorithm`: `none`, `norm`, `value`, `agc` (see `clip_gradients_`), `zclip`, `adagc`, `skip`, or a function of
      the user's as `package.module:name` or `./file.py:name` (see `own.OwnRule`).
    - `value`: its limit; <= 0 means `none`.
    - `granularity`: of agc.
    - `exclude`: patterns of parameter names (`fnmatch`). The rule does not see the gradients of those; they stay as
      they are, and count in both norms of `ClipStats` alone.
    - `options`: further keywords of the rule.

    Raises `ValueError` with one line: parameter, value, rule.
    """

    def __init__(
        self,
        algorithm: str = "none",
        value: float = 0.0,
        *,
        granularity: str = "unit",
        exclude: Iterable[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        check_choice("granularity", granularity, get_args(Granularity))
        if math.isnan(value):
            raise ValueError(f"`value` (={value}) must be a number")
        self._rule = _find(algorithm, value, granularity, options or {})
        self._exclude = tuple(exclude)
        self._state: dict[str, Tensor] = {}
        self._is_placed = True
        self._is_checked = not self._exclude

    @torch.no_grad()
    def clip_(self, module: nn.Module) -> ClipStats:
        """Clip all gradients of `module` in place; nothing waits for the device.

        At the first call, raises `ValueError` for a pattern of `exclude` that matches no parameter.
        """
        if not self._is_checked:
            self._check_patterns(module)
        if not self._is_placed:
            self._place(module)
        excluded = [p for name, p in module.named_parameters() if self._excludes(name)] if self._exclude else []
        hidden = {p: p.grad for p in excluded if p.grad is not None}
        if not hidden:
            return self._rule(module, state=self._state)
        try:
            for parameter in hidden:
                parameter.grad = None
            stats = self._rule(module, state=self._state)
        finally:
            for parameter, gradient in hidden.items():
                parameter.grad = gradient
        others = norm_of_norms(tensor_norms([gradient_of(parameter) for parameter in hidden]))
        return _with_others(stats, others)

    def check(self, module: nn.Module) -> None:
        """Raise `ValueError` for a pattern of `exclude` that matches no parameter of `module`.

        An own rule is tried, too, on a copy of `module` for two steps; see `own.OwnRule.check`.
        """
        self._check_patterns(module)
        if isinstance(self._rule, OwnRule):
            self._rule.check(module)

    def state_dict(self) -> dict[str, Tensor]:
        """What the rule remembers, for a checkpoint."""
        return {name: value.detach().clone() for name, value in self._state.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict`; an empty one, as of a checkpoint from before rules had a state, is a new start."""
        self._state = {name: value.detach().clone() for name, value in state.items()}
        self._is_placed = False

    def _excludes(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._exclude)

    def _check_patterns(self, module: nn.Module) -> None:
        names = [name for name, _ in module.named_parameters()]
        for pattern in self._exclude:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"`exclude` (={shown(pattern)}) must match a parameter's name, as {shown(names[0])}")
        self._is_checked = True

    def _place(self, module: nn.Module) -> None:
        """Bring a state that was loaded to the gradients' device."""
        device = next((p.grad.device for p in module.parameters() if p.grad is not None), None)
        if device is not None:
            self._state = {name: value.to(device) for name, value in self._state.items()}
            self._is_placed = True


def _find(algorithm: str, value: float, granularity: str, options: Mapping[str, Any]) -> Rule:
    """The rule of that name, of which only module and state are left open."""
    rule: Rule
    if is_foreign(algorithm):
        rule = OwnRule(algorithm, value, options)
    elif algorithm in _STATEFUL:
        function = _STATEFUL[algorithm]
        rule = partial(function, value=value, **checked_options(function, options, algorithm))
    else:
        check_choice("algorithm", algorithm, (*STATELESS, *_STATEFUL))
        for name, given in options.items():
            raise ValueError(f"`options.{name}` (={shown(given)}) must be an option of {algorithm}, which takes none")
        rule = partial(_at_once, algorithm=algorithm, value=value, granularity=granularity)
    return rule if value > 0 else partial(_at_once, algorithm="none", value=0.0, granularity=granularity)


def _at_once(
    module: nn.Module, state: dict[str, Tensor], *, algorithm: str, value: float, granularity: str
) -> ClipStats:
    return clip_gradients_(module, algorithm, value, granularity)


def _with_others(stats: ClipStats, others: Tensor) -> ClipStats:
    """`stats` of a part of the gradients as those of all: `others` is the norm of what the rule did not see."""
    others = others.to(stats.norm_preclip.device)
    after = torch.hypot(stats.norm_postclip, others)
    if stats.skip is not None:
        after = after.masked_fill(stats.skip, 0.0)
    return stats._replace(norm_preclip=torch.hypot(stats.norm_preclip, others), norm_postclip=after)
