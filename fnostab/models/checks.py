"""What a network must do before it may train: take patterns, give patches, learn, and keep patterns apart."""

import io
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fnostab.io.untrusted import first_line, raised, shown
from fnostab.models.precision import mixed_precision

#: Largest difference, over the largest number, between a patch alone and the same in a batch: kernels differ by less.
_TOLERANCE: Final = 1e-3
#: Batches of these sizes are tried; a network may take one of them for something else.
_SIZES: Final = (2, 3)


def trial_amplitudes(B: int, C: int, N: int, seed: int = 0) -> Tensor:
    """Random amplitudes float32 (B, C, N, N), of mean 1 as a run's are, the same for the same `seed`."""
    amplitudes = torch.rand((B, C, N, N), generator=torch.Generator().manual_seed(seed))
    return 2 * amplitudes


def check_behaviour(network: nn.Module, label: str, N: int, C: int) -> None:
    """Raise ValueError, in one line that begins with `label`, if `network` cannot train or be resumed.

    It is tried on random amplitudes on the CPU; its buffers may change, its mode is left as `eval`.
    """
    if any(isinstance(parameter, UninitializedParameter) for parameter in network.parameters()):
        raise ValueError(f"{label} must not have lazy layers, whose parameters do not exist before the first step")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(f"{label} must have parameters that learn")
    _check_state(network, label)
    network.train()
    if not _output(network, trial_amplitudes(_SIZES[0], C, N), label).requires_grad:
        raise ValueError(f"{label} must give patches that depend on its parameters")
    network.eval()
    with torch.no_grad():
        outputs = [_output(network, trial_amplitudes(max(_SIZES), C, N)[:size], label) for size in (1, *_SIZES)]
    whole = outputs[-1]
    for part in outputs[:-1]:
        if (part - whole[: len(part)]).abs().max() > _TOLERANCE * whole.abs().max():
            raise ValueError(f"{label} must give a pattern the same patch whatever else is in its batch (in eval mode)")


def check_mixed_precision(network: nn.Module, label: str, N: int, C: int, device: str = "cpu") -> None:
    """Raise ValueError, in one line, if `network` cannot take a training step under autocast to bfloat16.

    As in `check_behaviour`, but on a `device` of torch's, as not every operation that CPUs have in bfloat16 is one of
    GPUs, too. The network comes back to the CPU, without gradients.
    """
    rule = f"`train.precision` (=bf16-mixed) must be 32-true for {label}"
    amplitudes = trial_amplitudes(_SIZES[0], C, N).to(device)
    network.to(device).train()
    try:
        with mixed_precision(device):
            output = network(amplitudes)
        output.float().square().mean().backward()
        finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters())
    except Exception as error:
        raise ValueError(f"{rule}, which raised under autocast: {raised(error)}") from error
    finally:
        network.zero_grad()
        network.cpu().eval()
    if not finite:
        raise ValueError(f"{rule}, whose gradients are not finite under autocast")


def _output(network: nn.Module, amplitudes: Tensor, label: str) -> Tensor:
    """What `network` makes of `amplitudes`, if it is what a network must give."""
    B, C, N, _ = amplitudes.shape
    try:
        output = network(amplitudes)
    except Exception as error:
        raise ValueError(
            f"{label} must take amplitudes (B, C, N, N), here {tuple(amplitudes.shape)}, and raised {raised(error)}"
        ) from error
    if not isinstance(output, Tensor):
        raise ValueError(f"{label} must give a tensor (B, N, N, C, 2), and gave {type(output).__name__}")
    wanted = (B, N, N, C, 2)
    if tuple(output.shape) != wanted:
        raise ValueError(f"{label} must give (B, N, N, C, 2), here {wanted}, and gave {tuple(output.shape)}")
    if output.dtype != torch.float32:
        raise ValueError(f"{label} must give real and imaginary part as float32, and gave {output.dtype}")
    if not output.isfinite().all():
        raise ValueError(f"{label} must give finite numbers before the first step, and gave NaN or infinity")
    return output


def _check_state(network: nn.Module, label: str) -> None:
    """Checkpoints hold a network's state, and are read without running code that they bring."""
    content = io.BytesIO()
    try:
        torch.save(network.state_dict(), content)
        content.seek(0)
        torch.load(content, weights_only=True)
    except Exception as error:
        said = shown(first_line(error))
        raise ValueError(
            f"{label} must have a state_dict of tensors, which torch.load reads with weights_only: {said}"
        ) from error
