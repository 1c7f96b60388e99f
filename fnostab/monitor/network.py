"""Somebody else's network: whether it can be monitored, which of its parameters move, what its blocks put out."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from fnostab.gradients import as_real
from fnostab.io.untrusted import shown
from fnostab.models.layers import tensor_fingerprints

#: Kinds of parameters that hold a part of a tensor alone, so that their norms are not those of the whole.
_SHARDED: Final = ("DTensor", "FlatParameter")


class Network:
    """A module whose parameters are watched, and the outputs of its `blocks`, given as patterns of module names.

    Of modules inside each other the outermost is a block. What `DistributedDataParallel` and `torch.compile` wrap
    around a module is taken off. Raises `ValueError` with one line for what is no module with parameters to learn,
    parameters of which a process has a part alone (FSDP, DTensor), and a pattern that matches no module.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[str] = ()) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"`model` (={shown(type(model).__name__)}) must be a torch.nn.Module")
        self.module = _unwrapped(model)
        self.arch = type(self.module).__name__
        self._named = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        if not self._named:
            raise ValueError(f"`model` (={shown(self.arch)}) must have parameters that require a gradient")
        for name, parameter in self._named.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                rule = "must have its shape, which a lazy layer gets from its first batch: call the model once"
                raise ValueError(f"`model` (={shown(self.arch)}), parameter {shown(name)}, {rule}")
            kind = next((base.__name__ for base in type(parameter).__mro__ if base.__name__ in _SHARDED), None)
            if kind:
                rule = f"must be a whole tensor in each process: {kind}, as FSDP makes them, has no norm of its own"
                raise ValueError(f"`model` (={shown(self.arch)}), parameter {shown(name)}, {rule}")
        self.blocks = _matching(self.module, blocks)
        self._fingerprints = self._fingerprint()

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return next(iter(self._named.values())).device

    @property
    def device_name(self) -> str:
        """The same for people."""
        device = self.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def is_on_cpu(self) -> bool:
        """Whether reading a gradient waits for nothing."""
        return self.device.type == "cpu"

    def check_optimizer(self, optimizer: Any) -> None:
        """Raise `ValueError` for what is no optimizer that the monitor can record."""
        kind = type(optimizer).__name__
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ValueError(f"`optimizer` (={shown(kind)}) must be a torch.optim.Optimizer")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("`optimizer` (=LBFGS) must take one gradient a step, and this one calls its closure again")
        known = {id(parameter) for parameter in self.module.parameters()}
        strangers = sum(id(p) not in known for group in optimizer.param_groups for p in group["params"])
        if strangers:
            raise ValueError(
                f"`optimizer` (={shown(kind)}) must have parameters of `model` alone, and has {strangers} others"
            )

    def first_bad(self, loss_is_finite: bool) -> str | None:
        """Name the layer where numbers that are not finite begin, as far as weights and gradients tell.

        A layer whose weights are not finite, else `loss`, else the last layer in the order of definition whose gradient
        is not finite, since gradients come from behind, or has the largest norm.
        """
        owner = {name: name.rpartition(".")[0] or self.arch for name in self._named}
        for name, parameter in self._named.items():
            if not bool(as_real(parameter.detach()).isfinite().all()):
                return f"{owner[name]} (weights)"
        if not loss_is_finite:
            return "loss"
        gradients = {name: as_real(p.grad) for name, p in self._named.items() if p.grad is not None}
        bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        if not bad and gradients:
            bad = [max(gradients, key=lambda name: float(gradients[name].abs().max()))]
        return f"{owner[bad[-1]]} (gradient)" if bad else None

    def moved(self) -> dict[str, float]:
        """Shares of the tensors that changed since the last call: `parameters_moved`, and `moved/<block>` of each."""
        before, self._fingerprints = self._fingerprints, self._fingerprint()
        changed = {name: value != before[name] for name, value in self._fingerprints.items() if name in before}
        shares = {"parameters_moved": _share(changed.values())}
        for block in self.blocks:
            shares[f"moved/{block}"] = _share(now for name, now in changed.items() if name.startswith(f"{block}."))
        return shares

    def _fingerprint(self) -> dict[str, int]:
        tensors = [parameter.detach() for parameter in self._named.values()]
        return dict(zip(self._named, tensor_fingerprints(tensors), strict=True))

    def state_dict(self) -> dict[str, int]:
        """The parameters' fingerprints at the last call of `moved`, for a checkpoint."""
        return dict(self._fingerprints)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Compare with these next time."""
        self._fingerprints = dict(state)


class Activations:
    """Mean and standard deviation of the blocks' outputs, taken at the training step after each `arm`, and no other.

    They are over all numbers of a block's first output tensor, of complex ones over real and imaginary parts. The
    hooks are there from `arm` on until `remove`.
    """

    def __init__(self, blocks: Mapping[str, nn.Module]) -> None:
        self._due: set[str] = set()
        self._found: dict[str, Tensor] = {}
        self._handles = [block.register_forward_hook(partial(self._watch, name)) for name, block in blocks.items()]
        self._names = tuple(blocks)

    def arm(self) -> None:
        """Take them at the next step."""
        self._due = set(self._names)

    def _watch(self, name: str, block: nn.Module, inputs: Any, output: Any) -> None:
        if name not in self._due or not block.training or not torch.is_grad_enabled():
            return
        self._due.discard(name)
        outputs = output if isinstance(output, (tuple, list)) else [output]
        tensors = [one for one in outputs if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex())]
        if tensors and tensors[0].numel():
            values = as_real(tensors[0].detach()).float()
            self._found[name] = torch.stack([values.mean(), values.std(correction=0)])

    def take(self) -> dict[str, float]:
        """What was found since the last call: `act_mean/<block>`, `act_std/<block>`. Waits if there is something."""
        found, self._found = self._found, {}
        if not found:
            return {}
        device = next(iter(found.values())).device
        rows = torch.stack([pair.to(device) for pair in found.values()]).tolist()
        return {
            f"act_{kind}/{name}": row[place]
            for name, row in zip(found, rows, strict=True)
            for place, kind in enumerate(("mean", "std"))
        }

    @property
    def names(self) -> list[str]:
        """All that `take` may give."""
        return [f"act_{kind}/{name}" for name in self._names for kind in ("mean", "std")]

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of what PyTorch wraps around modules."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _matching(module: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Module]:
    named = {name: layer for name, layer in module.named_modules() if name}
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        matching = {name: layer for name, layer in named.items() if fnmatchcase(name, pattern)}
        if not matching:
            example = next(iter(named), "none: it has no modules")
            raise ValueError(f"`blocks` (={shown(pattern)}) must match a module's name, such as {shown(example)}")
        found |= matching
    inner = {name for name in found for other in found if name.startswith(f"{other}.")}
    return {name: layer for name, layer in found.items() if name not in inner}


def _share(changed: Iterable[bool]) -> float:
    values = list(changed)
    return sum(values) / len(values) if values else math.nan
