"""onnxruntime on the CPU, with as many threads as one says."""

import os
from typing import Any, Final

#: Of onnxruntime's messages only errors are shown: they become the one line that a user sees.
_ERRORS_ONLY: Final = 3


def open_session(content: bytes, threads: int | None = None) -> Any:
    """An `onnxruntime.InferenceSession` of a file's content; `threads` are by default `OMP_NUM_THREADS`, or all cores.

    onnxruntime itself does not heed that variable. Whatever it raises for a bad file is passed on.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or _default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _default_threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len(cores)
