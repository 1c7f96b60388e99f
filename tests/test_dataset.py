import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from scipy.sparse.csgraph import connected_components

from fnostab import optics
from fnostab.config import DataConfig
from fnostab.dataset import Dataset, cache, describe, import_scan, load_or_build, simulated
from fnostab.dataset.neighbours import validation_blocks
from fnostab.formats import own
from fnostab.io.cache import cache_folder
from fnostab.scan import extract_patches, grid_positions

SMALL = DataConfig(N=16, object_size=48, nimgs_train=2, nimgs_test=1, stride_train_px=4, nphotons=1e6)
Arrays = dict[str, np.ndarray]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_star = pytest.mark.skipif(not DATA.is_dir(), reason=f"the measured Siemens star is not in {DATA}")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_or_build(SMALL, cache_dir=tmp_path_factory.mktemp("small"))


def entries(cache: Path) -> list[str]:
    """What is in the cache but the locks."""
    return (
        sorted(path.name for path in cache.iterdir() if path.suffix not in (".lock", ".pid")) if cache.exists() else []
    )


def changed(**values: Any) -> DataConfig:
    return SMALL.model_copy(update=values)


def write_scan(path: Path, M: int = 32, n: int = 25, **changes: Any) -> Path:
    """A noise-free scan of a smooth random object, in this package's layout."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(-20, 20, (n, 2)).round()
    obj = np.exp(1j * rng.normal(size=(M + 41, M + 41))).astype(np.complex64)
    probe = optics.curved_disk(M)
    patches = torch.from_numpy(extract_patches(obj, positions + 20, M))
    counts = (100 * optics.far_field_amplitude(patches, torch.from_numpy(probe)).numpy()) ** 2
    own.write_scan(path, **{"counts": counts, "positions_px": positions, "probe": probe, **changes})
    return path


# Simulated.


def test_same_config_same_content_whatever_chunks_and_threads(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated, "_CHUNK_PIXELS", 7 * 16**2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again = load_or_build(SMALL, cache_dir=tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert again.sha256 == small.sha256


def test_another_fft_and_another_order_of_sums_give_the_same_content(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other processors and libraries round the last bits otherwise: that moves no count."""
    tensordot = np.tensordot

    def fft2(field: torch.Tensor, norm: str) -> torch.Tensor:
        return torch.from_numpy(scipy.fft.fft2(field.mT.numpy(), norm=norm)).mT

    def backwards(first: np.ndarray, second: np.ndarray, axes: int) -> np.ndarray:
        return tensordot(first[:, ::-1], second[::-1], axes) * (1 + 2e-16)

    monkeypatch.setattr(torch.fft, "fft2", fft2)
    monkeypatch.setattr(np, "tensordot", backwards)
    again = load_or_build(SMALL, cache_dir=tmp_path)
    assert again.sha256 == small.sha256


def test_another_seed_gives_another_dataset(small: Dataset, tmp_path: Path) -> None:
    other = load_or_build(changed(seed=1), cache_dir=tmp_path)
    assert other.sha256 != small.sha256
    assert other.config_sha256 != small.config_sha256


def test_more_test_objects_leave_the_other_data_unchanged(small: Dataset, tmp_path: Path) -> None:
    more = load_or_build(changed(nimgs_test=2), cache_dir=tmp_path)
    assert small.test_objects is not None
    assert more.test_objects is not None
    np.testing.assert_array_equal(more.test_objects[0], small.test_objects[0])
    np.testing.assert_array_equal(more.train.counts, small.train.counts)
    np.testing.assert_array_equal(more.val.counts, small.val.counts)
    np.testing.assert_array_equal(more.test.counts[: len(small.test.counts)], small.test.counts)


def test_splits_have_different_objects_on_their_grids(small: Dataset) -> None:
    assert small.val_objects is not None
    assert small.test_objects is not None
    assert not np.allclose(small.val_objects[0], small.test_objects[0])
    n = len(grid_positions(48, 16, 4))
    assert len(small.train.counts) == 2 * n
    np.testing.assert_array_equal(small.train.object_index, np.repeat([0, 1], n))
    np.testing.assert_array_equal(small.train.positions_px[n:], grid_positions(48, 16, 4))
    assert not np.array_equal(small.train.counts[:n], small.train.counts[n:])


def test_patterns_follow_the_forward_model(small: Dataset) -> None:
    assert small.test_objects is not None
    patches = extract_patches(small.test_objects[0], small.test.positions_px, 16)
    model = optics.far_field_amplitude(torch.from_numpy(patches), torch.from_numpy(small.probe)).numpy()
    residual = np.sqrt(small.test.counts) - small.scale * model
    assert residual.var() == pytest.approx(0.25, abs=0.05)  # that of the square root of Poisson counts
    assert abs(residual.mean()) < 0.1


def test_the_mean_training_pattern_holds_nphotons_and_the_input_has_mean_square_one(small: Dataset) -> None:
    assert small.train.counts.sum(axis=(1, 2), dtype=np.float64).mean() == pytest.approx(1e6, rel=1e-3)
    assert np.square(np.sqrt(small.train.counts) * small.input_scale).mean() == pytest.approx(1, rel=1e-5)


def test_amplitudes_are_divided_by_the_mean_peak_of_training_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = iter([2.0, 4.0, 6.0, 9.0])  # two training objects, one for validation, one for the test
    monkeypatch.setattr(simulated, "synthetic_object", lambda *_: np.full((48, 48), next(levels), dtype=np.complex64))
    flat = load_or_build(SMALL, cache_dir=tmp_path)
    assert flat.val_objects is not None
    assert flat.test_objects is not None
    np.testing.assert_allclose(flat.val_objects, 6 / 3)
    np.testing.assert_allclose(flat.test_objects, 9 / 3)


def test_a_limit_keeps_a_sorted_subset_without_repeats(small: Dataset, tmp_path: Path) -> None:
    few = load_or_build(changed(max_train_patches=40, max_val_patches=5), cache_dir=tmp_path)
    assert (len(few.train.counts), len(few.val.counts)) == (40, 5)
    assert len(few.test.counts) == len(small.test.counts)
    places = np.column_stack([few.train.object_index, few.train.positions_px])
    np.testing.assert_array_equal(places, np.unique(places, axis=0))
    assert set(few.train.object_index.tolist()) == {0, 1}


def neighbours(positions: np.ndarray, step: float) -> bool:
    """Whether one can go from each position to every other in steps of at most `step`."""
    near = np.abs(positions[:, None] - positions).max(axis=-1) <= step
    return int(connected_components(near)[0]) == 1


def test_validation_patches_are_neighbours_around_the_middle_of_each_object(small: Dataset, tmp_path: Path) -> None:
    few = load_or_build(changed(max_val_patches=9, nimgs_val=2, stride_val_px=4), cache_dir=tmp_path)
    assert np.bincount(few.val.object_index).tolist() == [5, 4]
    for index in (0, 1):
        positions = few.val.positions_px[few.val.object_index == index]
        assert neighbours(positions, 4)
        assert np.abs(positions - 16).max() <= 4  # the middle of the positions, 0 to 32
    assert len(load_or_build(changed(max_val_patches=1, nimgs_val=2), cache_dir=tmp_path).val.counts) == 1
    np.testing.assert_array_equal(
        load_or_build(changed(max_val_patches=10**6), cache_dir=tmp_path).val.counts, small.val.counts
    )


def test_validation_patches_may_be_drawn_as_before_under_the_key_that_they_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = load_or_build(changed(val_choice="random", max_val_patches=5), cache_dir=tmp_path)
    monkeypatch.setattr(cache, "_SIMULATED_FORMAT", 2)
    drawn = load_or_build(changed(val_choice="random", max_val_patches=5), cache_dir=tmp_path)
    assert drawn.config_sha256 != now.config_sha256  # other data since then
    assert drawn.config_sha256 == "b757d456f50889d5884a9af2851f2fc7dd43e5ce14988826301d37d3c605f65c"
    assert not neighbours(drawn.val.positions_px, 10)


def test_validation_may_be_on_the_test_objects(tmp_path: Path, small: Dataset) -> None:
    built = load_or_build(changed(val="test", nimgs_test=2, max_val_patches=6), cache_dir=tmp_path)
    assert built.val_objects is not None
    assert built.test_objects is not None
    np.testing.assert_array_equal(built.val_objects, built.test_objects)
    assert built.val.object_index.tolist() == [0, 0, 0, 1, 1, 1]
    whole = load_or_build(changed(val="test"), cache_dir=tmp_path)
    np.testing.assert_array_equal(whole.val.counts, whole.test.counts)
    np.testing.assert_array_equal(whole.train.counts, small.train.counts)


def test_objects_have_the_mean_amplitude_that_is_asked_for(tmp_path: Path, small: Dataset) -> None:
    built = load_or_build(changed(object_mean=0.17, stride_train_px=1), cache_dir=tmp_path)
    assert built.test_objects is not None
    assert small.test_objects is not None
    ratio = np.abs(built.test_objects) / np.abs(small.test_objects)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-5)  # all are scaled by one factor
    assert built.train.counts.sum(axis=(1, 2)).mean() == pytest.approx(SMALL.nphotons, rel=0.01)
    same = load_or_build(changed(object_mean=0.17, nimgs_val=2, nimgs_test=2), cache_dir=tmp_path)
    plan = simulated._plan(changed(), "train")
    assert np.abs(plan.objects / simulated._level(same.config, plan)).mean() == pytest.approx(0.17)


def test_a_simulated_beam_out_of_focus_is_a_dataset_of_its_own(tmp_path: Path, small: Dataset) -> None:
    beam = changed(probe="defocused", probe_curvature_rad=4.0)
    built = load_or_build(beam, cache_dir=tmp_path)
    np.testing.assert_array_equal(built.probe, optics.defocused(16, curvature_rad=4.0))
    square = load_or_build(beam.model_copy(update={"probe_aperture": "square"}), cache_dir=tmp_path)
    assert len({built.sha256, square.sha256, small.sha256}) == 3


def test_auto_and_curved_disk_are_one_dataset(small: Dataset) -> None:
    cache = Path(small.train.counts.filename).parents[1]  # type: ignore[attr-defined]
    assert load_or_build(changed(probe="curved_disk"), cache_dir=cache).config_sha256 == small.config_sha256
    assert entries(cache) == [small.config_sha256]


def test_a_probe_file_is_used_for_simulation(tmp_path: Path) -> None:
    probe = optics.disk(16) * np.complex64(2j)
    np.savez(tmp_path / "probe.npz", probe=probe)
    built = load_or_build(changed(probe=str(tmp_path / "probe.npz")), cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(built.probe, probe)


@pytest.mark.parametrize("kind", ["lines", "grf", "image"])
def test_every_kind_of_object_builds(tmp_path: Path, kind: str) -> None:
    built = load_or_build(changed(objects=kind, phase="none"), cache_dir=tmp_path)
    assert built.train.counts.max() > 0


def test_progress_counts_patterns_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    built = load_or_build(SMALL, cache_dir=tmp_path, progress=lambda done, total: seen.append((done, total)))
    total = len(built.train.counts) + len(built.val.counts) + len(built.test.counts)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


# The cache.


def test_patterns_are_mapped_and_read_only(small: Dataset) -> None:
    assert isinstance(small.train.counts, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        small.train.counts[0, 0, 0] = 1


def test_an_entry_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_build(SMALL, cache_dir=tmp_path)
    monkeypatch.setattr(cache, "simulated_writer", lambda config: pytest.fail("built again"))
    second = load_or_build(SMALL, cache_dir=tmp_path)
    assert (second.sha256, second.scale, second.input_scale) == (first.sha256, first.scale, first.input_scale)
    assert entries(tmp_path) == [first.config_sha256]


def test_the_cache_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FNOSTAB_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    built = load_or_build(SMALL)
    assert entries(tmp_path / "here") == [built.config_sha256]


def flip_a_byte(entry: Path) -> None:
    path = entry / "train_counts.npy"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_the_scale(entry: Path) -> None:
    meta = json.loads((entry / "meta.json").read_text())
    meta["scalars"]["scale"] *= 2
    (entry / "meta.json").write_text(json.dumps(meta))


DAMAGE = {
    "flipped byte": flip_a_byte,
    "changed scale": change_the_scale,
    "truncated array": lambda entry: os.truncate(entry / "test_counts.npy", 5000),
    "empty array": lambda entry: os.truncate(entry / "probe.npy", 0),
    "missing array": lambda entry: (entry / "val_positions_px.npy").unlink(),
    "missing meta": lambda entry: (entry / "meta.json").unlink(),
    "broken meta": lambda entry: (entry / "meta.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_built_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = load_or_build(SMALL, cache_dir=tmp_path)
    DAMAGE[damage](tmp_path / first.config_sha256)
    with caplog.at_level(logging.WARNING):
        second = load_or_build(SMALL, cache_dir=tmp_path)
    assert second.sha256 == first.sha256
    assert [record.message for record in caplog.records] == [
        f"the cache entry {tmp_path / first.config_sha256} is damaged and was built anew"
    ]
    assert entries(tmp_path) == [first.config_sha256]


def test_threads_that_build_at_once_get_one_entry(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: load_or_build(SMALL, cache_dir=tmp_path), range(4)))
    assert len({each.sha256 for each in built}) == 1
    assert entries(tmp_path) == [built[0].config_sha256]


SCRIPT = """
import os, signal, sys
from pathlib import Path
from fnostab.config import DataConfig
from fnostab.dataset import load_or_build

def progress(done, total):
    if sys.argv[3] == "die":
        os.kill(os.getpid(), signal.SIGKILL)

config = DataConfig.model_validate_json(sys.argv[1])
print(load_or_build(config, cache_dir=Path(sys.argv[2]), progress=progress).sha256)
"""


def start(cache: Path, fate: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", SCRIPT, SMALL.model_dump_json(), str(cache), fate]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[1])


def test_processes_that_build_at_once_or_are_killed_leave_one_whole_entry(small: Dataset, tmp_path: Path) -> None:
    with start(tmp_path, "die") as killed:
        assert killed.wait(60) == -signal.SIGKILL
    assert entries(tmp_path) == [f".{small.config_sha256}.partial"]
    with start(tmp_path, "live") as first, start(tmp_path, "live") as second:
        outputs = [process.communicate(timeout=60)[0].strip() for process in (first, second)]
    assert outputs == [small.sha256] * 2
    assert entries(tmp_path) == [small.config_sha256]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_build(SMALL, cache_dir=tmp_path, progress=stop)
    assert entries(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^`FNOSTAB_CACHE` \(=.*file\) must be a writable directory: "):
        load_or_build(SMALL, cache_dir=tmp_path / "file")


# Measured.


def raster(rows: int, columns: int) -> np.ndarray:
    """Positions of a raster scan, row by row."""
    return np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2) * 3.0


def test_a_tenth_of_a_scan_in_compact_blocks_is_validation_and_the_others_train(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.npz", n=100, positions_px=raster(10, 10), counts=np.ones((100, 32, 32)))
    built = load_or_build(DataConfig(path=str(path), N=32), cache_dir=tmp_path / "cache")
    assert (len(built.val.counts), len(built.train.counts), len(built.test.counts)) == (10, 90, 100)
    both = np.concatenate([built.val.positions_px, built.train.positions_px])
    np.testing.assert_array_equal(np.unique(both, axis=0), built.test.positions_px)
    assert neighbours(built.val.positions_px, 3)
    assert np.ptp(built.val.positions_px, axis=0).max() <= 15  # 2 x 5 positions


@pytest.mark.parametrize(
    "positions",
    [raster(1, 19), raster(1000, 1), raster(30, 40), np.repeat(raster(5, 8), 3, axis=0), raster(2, 1), raster(3, 3)],
    ids=["short line", "long line", "raster", "repeated", "two places", "nine places"],
)
def test_whatever_the_scan_its_validation_is_about_a_tenth_of_it_at_places_of_its_own(positions: np.ndarray) -> None:
    chosen = validation_blocks(positions, None)
    places = {tuple(place) for place in positions[chosen].tolist()}
    others = {tuple(place) for place in np.delete(positions, chosen, axis=0).tolist()}
    assert places
    assert others
    assert not places & others
    assert len(chosen) <= max(1, math.ceil(len(positions) / 8))
    limited = validation_blocks(positions, 3)
    assert len(limited) == min(3, len(chosen))
    assert set(limited) <= set(chosen)
    assert neighbours(positions[limited], 6)


def test_the_validation_of_a_large_scan_is_several_blocks() -> None:
    positions = raster(40, 50)
    chosen = positions[validation_blocks(positions, None)]
    near = np.abs(chosen[:, None] - chosen).max(axis=-1) <= 3
    blocks, of_block = connected_components(near)
    assert len(chosen) == 200
    assert blocks == 8
    assert np.bincount(of_block).tolist() == [25] * 8


def test_a_random_tenth_of_the_positions_is_validation_if_asked_for_and_the_test_is_the_whole_scan(
    tmp_path: Path,
) -> None:
    path = write_scan(tmp_path / "scan.npz")
    built = load_or_build(DataConfig(path=str(path), N=32, val_choice="random"), cache_dir=tmp_path / "cache")
    scan = import_scan(path)
    assert built.measured
    assert built.test_objects is None
    assert built.val_objects is None
    np.testing.assert_array_equal(built.test.counts, scan.counts)
    np.testing.assert_array_equal(built.test.positions_px, scan.positions_px - scan.positions_px.min(axis=0))
    held_out = (built.test.positions_px[:, None] == built.val.positions_px).all(axis=2).any(axis=1)
    assert held_out.sum() == 3
    np.testing.assert_array_equal(built.val.counts, scan.counts[held_out])
    np.testing.assert_array_equal(built.train.counts, scan.counts[~held_out])


def test_a_random_validation_set_is_in_many_columns_of_a_raster_and_takes_all_exposures_of_a_place(
    tmp_path: Path,
) -> None:
    positions = np.repeat(raster(10, 10), 2, axis=0)
    path = write_scan(tmp_path / "scan.npz", n=200, positions_px=positions)
    built = load_or_build(DataConfig(path=str(path), N=32, val_choice="random"), cache_dir=tmp_path / "cache")
    places, exposures = np.unique(built.val.positions_px, axis=0, return_counts=True)
    assert len(places) == 10
    assert (exposures == 2).all()
    assert len(np.unique(places[:, 1])) > 3
    assert not (built.train.positions_px[:, None] == places).all(axis=2).any()


def test_the_object_that_comes_with_a_scan_lies_in_the_frame_of_the_test_positions(tmp_path: Path) -> None:
    write_scan(tmp_path / "bare.npz")
    bare = import_scan(tmp_path / "bare.npz")
    obj = np.exp(1j * np.random.default_rng(0).normal(size=(80, 90))).astype(np.complex64)
    positions = bare.positions_px + 21
    path = write_scan(tmp_path / "scan.npz", object=obj, positions_px=positions)
    built = load_or_build(DataConfig(path=str(path), N=32), cache_dir=tmp_path / "cache")
    assert built.reference is not None
    np.testing.assert_array_equal(
        extract_patches(built.reference, built.test.positions_px, 32), extract_patches(obj, positions, 32)
    )
    far = write_scan(tmp_path / "far.npz", object=obj, positions_px=bare.positions_px)
    shifted = load_or_build(DataConfig(path=str(far), N=32), cache_dir=tmp_path / "cache").reference
    first = bare.positions_px.min(axis=0).astype(int)
    assert shifted is not None
    assert not shifted[: -first[0]].any()  # positions from before the object's first pixel
    np.testing.assert_array_equal(shifted[-first[0], -first[1] :], obj[0, : shifted.shape[1] + first[1]])
    assert load_or_build(DataConfig(path=str(tmp_path / "bare.npz"), N=32)).reference is None


def test_the_object_of_a_cropped_scan_has_larger_pixels(tmp_path: Path) -> None:
    rows = np.arange(74)[:, None]
    smooth = (1 + 0.2 * np.cos(2 * np.pi * rows / 18.5) * np.ones((1, 73))).astype(np.complex64)
    half = import_scan(write_scan(tmp_path / "scan.npz", object=smooth), 16)
    assert half.object is not None
    assert half.object.shape == (37, 37)
    np.testing.assert_allclose(half.object, smooth[::2, ::2], atol=1e-5)


def test_an_object_of_ones_has_the_mean_counts_of_the_scan(tmp_path: Path) -> None:
    built = load_or_build(DataConfig(path=str(write_scan(tmp_path / "scan.npz")), N=32), cache_dir=tmp_path / "cache")
    energy = np.square(np.abs(built.probe)).sum()
    assert built.scale**2 * energy == pytest.approx(built.test.counts.sum(axis=(1, 2)).mean(), rel=1e-5)
    assert np.square(np.sqrt(built.train.counts) * built.input_scale).mean() == pytest.approx(1, rel=1e-5)


def test_larger_patterns_are_cropped_with_probe_and_positions(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.npz")
    whole, half = import_scan(path), import_scan(path, 16)
    np.testing.assert_array_equal(half.counts, whole.counts[:, 8:24, 8:24])
    np.testing.assert_array_equal(half.positions_px, whole.positions_px / 2)
    np.testing.assert_array_equal(half.probe, optics.crop_probe(whole.probe, 16))


@pytest.mark.parametrize("size", [16, 32])
def test_a_named_probe_stands_in_for_that_of_the_scan(tmp_path: Path, size: int) -> None:
    path, probe = write_scan(tmp_path / "scan.npz", probe=None), optics.disk(size)
    np.savez(tmp_path / "probe.npz", probe=probe)
    config = DataConfig(path=str(path), N=16, probe=str(tmp_path / "probe.npz"))
    built = load_or_build(config, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(built.probe, probe if size == 16 else optics.crop_probe(probe, 16))
    np.testing.assert_array_equal(built.probe, import_scan(path, 16, probe=tmp_path / "probe.npz").probe)


@pytest.mark.parametrize("kind", ["disk", "curved_disk"])
def test_a_synthetic_probe_stands_in_for_that_of_the_scan(tmp_path: Path, kind: str) -> None:
    config = DataConfig(path=str(write_scan(tmp_path / "scan.npz")), N=32, probe=kind, probe_radius_px=6)
    built = load_or_build(config, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(built.probe, optics.disk(32, 6) if kind == "disk" else optics.curved_disk(32, 6))


def test_limits_hold_for_measured_scans_too(tmp_path: Path) -> None:
    config = DataConfig(path=str(write_scan(tmp_path / "scan.npz")), N=32, max_train_patches=7, max_val_patches=2)
    built = load_or_build(config, cache_dir=tmp_path / "cache")
    assert [len(split.counts) for split in (built.train, built.val, built.test)] == [7, 2, 25]


def test_a_changed_scan_or_probe_is_never_taken_for_the_old_one(tmp_path: Path) -> None:
    scan, probe = write_scan(tmp_path / "scan.npz"), tmp_path / "probe.npz"
    np.savez(probe, probe=optics.disk(32))
    config = DataConfig(path=str(scan), N=32, probe=str(probe))
    hashes = [load_or_build(config, cache_dir=tmp_path / "cache").sha256]
    np.savez(probe, probe=optics.disk(32, 5))
    hashes.append(load_or_build(config, cache_dir=tmp_path / "cache").sha256)
    write_scan(scan, n=26)
    hashes.append(load_or_build(config, cache_dir=tmp_path / "cache").sha256)
    assert len(set(hashes)) == 3


def test_a_moved_scan_is_found_in_the_cache(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.npz")
    before = load_or_build(DataConfig(path=str(scan), N=32), cache_dir=tmp_path / "cache")
    after = load_or_build(DataConfig(path=str(scan.rename(tmp_path / "moved.npz")), N=32), cache_dir=tmp_path / "cache")
    assert after.config_sha256 == before.config_sha256
    assert after.config.path.endswith("moved.npz")


@needs_star
def test_the_measured_star_reads_the_right_way_round(tmp_path: Path) -> None:
    config = DataConfig(
        path=str(DATA / "siemens-star-small.npz.bz2"), N=128, probe=str(DATA / "siemens-star-probe-refined.npz")
    )
    built = load_or_build(config, cache_dir=tmp_path)
    assert built.test.counts.shape == (516, 128, 128)
    assert built.test.counts.sum(axis=(1, 2)).mean() == pytest.approx(461_213, abs=1)
    ones = optics.far_field_amplitude(torch.ones(128, 128), torch.from_numpy(built.probe)).numpy()
    amplitudes = np.sqrt(built.test.counts) / built.scale
    assert np.abs(amplitudes - ones).sum() / amplitudes.sum() == pytest.approx(0.262, abs=0.005)


# Refusals: one line, and nothing in the cache.


def assert_refused(config: DataConfig, message: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_or_build(config, cache_dir=cache)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def only_edge(arrays: Arrays) -> np.ndarray:
    """Patterns that are dark but for their first row."""
    return arrays["counts"] * (np.arange(32) == 0)[:, None]


def only_validation(arrays: Arrays) -> np.ndarray:
    """Counts at validation positions alone."""
    counts = np.zeros_like(arrays["counts"])
    held_out = validation_blocks(arrays["positions_px"], None)
    counts[held_out] = arrays["counts"][held_out]
    return counts


BAD_SCANS: dict[str, tuple[Callable[[Arrays], dict[str, Any]], int, str]] = {
    "nan": (
        lambda a: {"counts": a["counts"] * np.nan},
        32,
        r"^`counts` \(=nan at .*\) must be finite; .*npz$",
    ),
    "infinite": (
        lambda a: {"counts": a["counts"] + np.inf},
        32,
        r"^`counts` \(=inf at .*\) must be finite; ",
    ),
    "negative": (lambda a: {"counts": -a["counts"]}, 32, r"^`counts` \(=-.* at .*\) must be >= 0; .* clip takes"),
    "fewer positions": (lambda a: {"positions_px": a["positions_px"][:-1]}, 32, r"must match the 24 positions, in"),
    "few positions": (lambda a: {"positions_px": a["positions_px"][:9]}, 32, r"\(=9 positions\) must be at least 10"),
    "pickled": (lambda a: {"counts": np.array([None])}, 32, r"^`data.path` \(=.*\) must not hold pickled objects"),
    "unknown layout": (
        lambda a: {"positions_px": None},
        32,
        r"^`data.path` .* a known .*holds counts, probe$",
    ),
    "no probe": (lambda a: {"probe": None}, 32, r"^`data.probe` \(=auto\) must name a probe: there is none in .*npz$"),
    "small patterns": (lambda a: {}, 64, r"^`data.N` \(=64\) must be <= 32, the size of the patterns, in .*npz$"),
    "dark middle": (
        lambda a: {"counts": only_edge(a)},
        16,
        r"^`data.N` \(=16\) must be larger: .* holds no",
    ),
    "dark training": (lambda a: {"counts": only_validation(a)}, 32, r"^`data.path` .* counts in its training patterns"),
}


@pytest.mark.parametrize("case", BAD_SCANS)
def test_a_bad_scan_is_refused(tmp_path: Path, case: str) -> None:
    edit, N, message = BAD_SCANS[case]
    arrays = dict(np.load(write_scan(tmp_path / "scan.npz")))
    arrays = {key: value for key, value in {**arrays, **edit(arrays)}.items() if value is not None}
    np.savez(tmp_path / "scan.npz", **arrays)
    assert_refused(DataConfig(path=str(tmp_path / "scan.npz"), N=N), message, tmp_path / "cache")


def test_a_truncated_or_missing_scan_is_refused(tmp_path: Path) -> None:
    path = write_scan(tmp_path / "scan.npz")
    os.truncate(path, 5000)
    cache = tmp_path / "cache"
    assert_refused(DataConfig(path=str(path), N=32), r"^`data.path` \(=.*npz\) must be a whole NPZ file: ", cache)
    path.unlink()
    assert_refused(DataConfig(path=str(path), N=32), r"^`data.path` \(=.*npz\) must be a readable file: ", cache)


def test_a_smaller_probe_is_refused_for_a_simulation(tmp_path: Path) -> None:
    probe = str(tmp_path / "probe.npz")
    np.savez(probe, probe=np.ones((12, 12)))
    rule = r"^`probe` \(=12 x 12\) must be at least N x N = 16 x 16, in .*probe\.npz$"
    assert_refused(changed(probe=probe), rule, tmp_path / "cache")


def test_simulated_patterns_take_a_measured_probe_of_a_finer_grid(tmp_path: Path) -> None:
    probe = optics.curved_disk(32)
    np.savez(tmp_path / "probe.npz", probe=probe)
    built = load_or_build(changed(probe=str(tmp_path / "probe.npz")), cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(built.probe, optics.crop_probe(probe, 16))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"probe": "curvd"}, r"^`data.probe` \(=curvd\) must be curved_disk, disk, defocused or a readable file: "),
        ({"probe_radius_px": 9.0}, r"^`radius_px` \(=9\) must be > 0 and <= 4, a quarter of N=16$"),
        ({"nphotons": 1e17}, r"^`data.nphotons` \(=1e\+17\) must be 0\.\d+ to 1e\+16$"),
        ({"nphotons": 1e-3}, r"^`data.nphotons` \(=0.001\) must be 0\.\d+ to 1e\+16$"),
    ],
)
def test_a_bad_simulation_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    assert_refused(changed(**values), message, tmp_path / "cache")


# The summary.


def test_describe_tells_counts_sizes_and_overlap(small: Dataset) -> None:
    summary = describe(small)
    per_pattern = small.train.counts.sum(axis=(1, 2), dtype=np.float64)
    assert summary["sha256"] == small.sha256
    assert summary["source"] == "simulated lines, phase tanh"
    assert [summary[f"{split}_patterns"] for split in ("train", "val", "test")] == [162, 16, 16]
    assert summary["counts_per_pattern_mean"] == pytest.approx(per_pattern.mean())
    assert summary["counts_max"] == small.train.counts.max()
    assert summary["probe_energy"] == pytest.approx(np.square(np.abs(small.probe)).sum())
    assert summary["step_px"] == 4
    assert 0.3 < summary["lit_fraction"] < 1
    json.dumps(summary)


def test_lit_fraction_of_one_position_is_that_of_the_probe(tmp_path: Path) -> None:
    one = load_or_build(changed(object_size=16, nimgs_train=1), cache_dir=tmp_path)
    intensity = np.square(np.abs(one.probe))
    summary = describe(one)
    assert summary["lit_fraction"] == pytest.approx((intensity > 0.01 * intensity.max()).mean())
    assert math.isnan(summary["step_px"])
