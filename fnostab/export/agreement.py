"""Whether an ONNX file gives what the network in torch gives."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fnostab.export.layouts import Layout
from fnostab.export.sessions import open_session
from fnostab.io.untrusted import raised

#: Largest deviation that is taken for rounding, over the largest magnitude of the patches.
TOLERANCE: Final = 2e-5
#: Batches of these sizes are tried, where the layout leaves the size free.
BATCH_SIZES: Final = (1, 3, 16)


def trial_batches(
    layout: Layout, counts_shape: Sequence[int], mean_counts: float | None, example: NDArray[np.float32] | None
) -> list[NDArray[np.float32]]:
    """Counts to try a network with: random ones of every size, and the measured `example` if there is one.

    `counts_shape` is that of one pattern or group; random patterns hold `mean_counts` (default: 100 a pixel) on
    average, exponentially distributed over their pixels. The example (B, ...) is repeated to the size of a batch.
    """
    rng = np.random.default_rng(0)
    mean = 100.0 if mean_counts is None else mean_counts / counts_shape[-1] ** 2
    batches = []
    for size in (layout.batch_size,) if layout.batch_size else BATCH_SIZES:
        batches.append(rng.exponential(mean, (size, *counts_shape)).astype(np.float32))
        if example is not None:
            batches.append(example[np.arange(size) % len(example)])
    return batches


def check_agreement(content: bytes, layout: Layout, batches: Sequence[NDArray[np.float32]]) -> float:
    """The largest deviation of onnxruntime's patches from torch's, over the largest magnitude of the latter's.

    Raises ValueError, with the number, where it is over `TOLERANCE` or not finite, and if onnxruntime cannot run it.
    """
    worst = 0.0
    try:
        session = open_session(content)
        for counts in batches:
            given = layout.make_input(counts)
            (output,) = session.run([layout.output_name], {layout.input_name: given})
            with torch.inference_mode():
                expected = layout.to_patches(layout.network(torch.from_numpy(given)).numpy())
            difference = np.abs(layout.to_patches(output) - expected).max()
            worst = max(worst, float(difference / np.abs(expected).max()), key=_nan_last)
    except Exception as error:
        raise ValueError(f"the network must run in onnxruntime, which raised {raised(error)}") from error
    if not worst <= TOLERANCE:
        raise ValueError(
            f"the network's patches must be the same in onnxruntime within {TOLERANCE:g} of the largest magnitude, "
            f"and deviate by {worst:.3g}"
        )
    return worst


def _nan_last(value: float) -> float:
    return np.inf if np.isnan(value) else value
