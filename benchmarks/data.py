"""Building the Stage A dataset, beside a NumPy loop over its patches.

    python -m benchmarks.data --repeats 3

Ours is everything: objects, patterns, photon noise, files, hashes. The loop makes the patterns alone: of each position,
exit wave, FFT, amplitude, Poisson numbers, as a list in memory. Half of its time is NumPy's Poisson generator, which
both use.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.timing import ratio, spread
from fnostab.config import DataConfig, resolve_config
from fnostab.dataset import Dataset, load_or_build


def build_s(config: DataConfig) -> tuple[float, Dataset]:
    """Seconds that an empty cache takes to hold the dataset, and the dataset."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        dataset = load_or_build(config, cache_dir=Path(folder))
        return time.perf_counter() - start, dataset


def loop_s(dataset: Dataset) -> tuple[float, float]:
    """Seconds of a NumPy loop over as many patches, and the part that the Poisson numbers take."""
    N, rng = dataset.config.N, np.random.default_rng(0)
    patches = []
    for split, objects in ((dataset.val, dataset.val_objects), (dataset.test, dataset.test_objects)):
        assert objects is not None
        patches.append((objects, split.positions_px.astype(int), split.object_index))
    total = sum(len(split.positions_px) for split in (dataset.train, dataset.val, dataset.test))
    # The training objects are not kept: the loop goes round those of the other splits instead.
    places = [
        (objects[k], row, col)
        for objects, positions, index in patches
        for (row, col), k in zip(positions, index, strict=True)
    ]
    patterns, poisson_s = [], 0.0
    start = time.perf_counter()
    for i in range(total):
        field, row, col = places[i % len(places)]
        wave = dataset.probe * field[row : row + N, col : col + N]
        rates = (dataset.scale * np.abs(np.fft.fftshift(np.fft.fft2(wave, norm="ortho")))) ** 2
        before = time.perf_counter()
        patterns.append(rng.poisson(rates).astype(np.float32))
        poisson_s += time.perf_counter() - before
    return time.perf_counter() - start, poisson_s


def measure(repeats: int = 3, preset: str = "stage_a") -> dict[str, list[float]]:
    """Seconds of every repeat: `ours`, `loop`, and `poisson`, the loop's photon noise alone."""
    config = resolve_config({"preset": preset}).data
    times: dict[str, list[float]] = {"ours": [], "loop": [], "poisson": []}
    for _ in range(repeats):
        seconds, dataset = build_s(config)
        times["ours"].append(seconds)
        whole, poisson = loop_s(dataset)
        times["loop"].append(whole)
        times["poisson"].append(poisson)
    return times


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="at least 2")
    parser.add_argument("--preset", default="stage_a")
    arguments = parser.parse_args()
    times = measure(arguments.repeats, arguments.preset)
    print("| what | s, median (quartiles) | over ours |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {spread(values)} | {ratio(values, times['ours'])} |")


if __name__ == "__main__":
    main()
