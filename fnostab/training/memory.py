"""The memory that a training takes, and whether it did not suffice."""

import sys

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory, of the host or of the accelerator, does not suffice."""
    text = str(error).lower()
    signs = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in text for sign in signs))


def peak_bytes(device: torch.device) -> int:
    """Most memory that tensors on a CUDA `device`, or else this process, held at once, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    # Kibibytes, but for macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
