"""The precision of training steps: what is asked for, what the device has, and where it holds."""

import contextlib
from collections.abc import Mapping

import torch

from fnostab.config import ARCHITECTURES, ArmConfig, ConfigError
from fnostab.models.precision import mixed_precision

#: Names that CPUs give their bfloat16 instructions in `torch.cpu.get_capabilities`: x86's, then Arm's.
_CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
#: CUDA devices from this compute capability on have TF32.
_FIRST_WITH_TF32 = (8, 0)


def device_kind(config: ArmConfig) -> str:
    """The kind of device that a run trains on here: cpu, gpu or mps."""
    if config.train.accelerator != "auto":
        return config.train.accelerator
    return "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def torch_device(config: ArmConfig) -> str:
    """What torch calls the kind of device that a run trains on here."""
    kind = device_kind(config)
    return "cuda" if kind == "gpu" else kind


def has_bf16(kind: str) -> bool:
    """Whether this machine's devices of that kind have instructions for bfloat16; without, torch emulates them."""
    if kind == "gpu":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", None)
        if capabilities is None:  # torch 2.6
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        found = capabilities()
        return any(found.get(name, False) for name in _CPU_BF16)
    return False


def settle_precision(arms: Mapping[str, ArmConfig]) -> dict[str, ArmConfig]:
    """The configs of a study's arms, or of one run, with a precision in place of `auto`.

    That is `bf16-mixed` if the device of each such arm has bfloat16 and its network is a built-in one; else `32-true`
    for all of them, since arms of different precisions are not compared.
    """
    open_ = [config for config in arms.values() if config.train.precision == "auto"]
    mixed = all(has_bf16(device_kind(config)) and config.model.arch in ARCHITECTURES for config in open_)
    settled = "bf16-mixed" if mixed else "32-true"
    return {
        name: in_precision(config, settled) if config.train.precision == "auto" else config
        for name, config in arms.items()
    }


def in_precision(config: ArmConfig, precision: str) -> ArmConfig:
    """`config` with another precision."""
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def check_precision(config: ArmConfig) -> None:
    """Raise `ConfigError` if the device of `config` cannot train in its precision at all."""
    kind, precision = device_kind(config), config.train.precision
    if precision == "tf32" and not (
        kind == "gpu" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= _FIRST_WITH_TF32
    ):
        raise ConfigError(
            "`train.precision` (=tf32) must be 32-true or bf16-mixed here: NVIDIA GPUs from the A100's generation on"
            " have TF32"
        )


def slower_than_single(config: ArmConfig) -> str | None:
    """A line for people if the precision of `config` costs time on this machine; else None."""
    kind = device_kind(config)
    if config.train.precision == "bf16-mixed" and not has_bf16(kind):
        return f"train.precision=bf16-mixed will be slower than 32-true: this {kind} has no instructions for bfloat16"
    return None


def set_matrix_precision(config: ArmConfig) -> None:
    """Let CUDA multiply float32 matrices in TF32, or not, from now on in this process.

    Convolutions are left as torch has them: cuDNN takes TF32 wherever the GPU has it.
    """
    torch.set_float32_matmul_precision("high" if config.train.precision == "tf32" else "highest")


def step_precision(config: ArmConfig, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The context in which the network of a training step is called, its output being cast to float32 outside."""
    if config.train.precision == "bf16-mixed":
        return mixed_precision(device.type)
    return contextlib.nullcontext()
