"""Properties that hold for any input: configs, NPZ files and the comparison of objects."""

import bz2
import io
import math
import tempfile
import zipfile
from pathlib import Path

import hostile
import numpy as np
import pytest
from hypothesis import assume, example, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from fnostab.config import CONFIG_KEYS, FLAT_KEYS, PRESETS, ConfigError, ReadingConfig, read_config_file, resolve_config
from fnostab.dataset import import_scan
from fnostab.formats.own import write_scan
from fnostab.formats.probe import read_probe
from fnostab.formats.scan import MIN_POSITIONS, Scan
from fnostab.metrics import SCALARS, compare_objects

quick = settings(max_examples=40, deadline=None, derandomize=True)

# Configs.

#: For every key another valid value than the default.
OTHER = {
    "preset": "seed_study",
    "study": "mine",
    "arm": "first",
    "seed": 1,
    "data.path": "scan.npz",
    "data.format": "tike",
    "data.paths": "patterns=a,x=b,y=c",
    "data.positions": "positions.npz",
    "data.unit": "um",
    "data.orient": "swap+flip_rows",
    "data.object_pixel_m": 2e-8,
    "data.energy_keV": 8.8,
    "data.distance_m": 2.5,
    "data.detector_pixel_m": 75e-6,
    "data.fft_order": "corner",
    "data.center": "30,33",
    "data.bin": 2,
    "data.mask": "mask.npz",
    "data.mask_value": -1.0,
    "data.bad_pixels": "mask",
    "data.skip_frames": "3,10-12",
    "data.scan_index": 1,
    "data.modes": 2,
    "data.photons_per_pattern": 1e6,
    "data.quantity": "counts",
    "data.N": 128,
    "data.gridsize": 2,
    "data.probe": "disk",
    "data.probe_radius_px": 12.5,
    "data.probe_curvature_rad": -3.0,
    "data.probe_aperture": "square",
    "data.objects": "grf",
    "data.phase": "none",
    "data.object_mean": 0.17,
    "data.object_size": 300,
    "data.nimgs_train": 3,
    "data.nimgs_val": 2,
    "data.nimgs_test": 1,
    "data.stride_train_px": 5,
    "data.stride_val_px": 9,
    "data.stride_test_px": 8,
    "data.max_train_patches": 100,
    "data.max_val_patches": 10,
    "data.val_choice": "random",
    "data.nphotons": 1e6,
    "data.val": "test",
    "data.seed": 2**40,
    "data.seeds": 2,
    "model.arch": "fno",
    "model.options": {"depth": 3, "widths": [1, 2.5], "kind": "wide"},
    "model.source_sha256": 64 * "a",
    "model.width": 7,
    "model.fno_blocks": 8,
    "model.modes": 5,
    "model.min_resolution": 4,
    "model.max_channels": 64,
    "model.gamma_init": 0.5,
    "model.layerscale_init": 1e-3,
    "model.norm_centred": False,
    "model.norm_bias": False,
    "clip.algo": "agc",
    "clip.val": 0.3,
    "clip.granularity": "tensor",
    "clip.exclude": ["out.*"],
    "clip.options": {"alpha": 0.9},
    "clip.source_sha256": 64 * "0",
    "optim.name": "adamw",
    "optim.lr": 1e-4,
    "optim.weight_decay": 0.1,
    "optim.momentum": 0.5,
    "optim.betas": [0.8, 0.9],
    "optim.eps": 1e-6,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 7,
    "train.epochs": 3,
    "train.mode": "supervised",
    "train.give_up_after": 0.5,
    "train.batch_size": 4,
    "train.loss": "poisson",
    "train.loss_scale": "batch",
    "train.learn_probe": True,
    "train.probe_lr": 0.1,
    "train.overlap_weight": 0.25,
    "train.accelerator": "cpu",
    "train.devices": 2,
    "train.nodes": 2,
    "train.strategy": "ddp",
    "train.threads": 3,
    "train.checkpoint_every_s": 5.0,
    "train.layer_norms_every_steps": 11,
    "train.watch_every_steps": 13,
    "train.select_by": "r_stitched",
    "train.init_from": "models:/other@champion",
    "train.picture_every_epochs": 2,
    "train.artifacts": "numbers",
    "train.precision": "bf16-mixed",
    "train.cuda_graph": False,
}
#: Tags and paces, and the one name of the one strategy: they change no number.
WITHOUT_EFFECT = {
    *("preset", "study", "arm", "train.strategy", "train.cuda_graph"),
    *("train.checkpoint_every_s", "train.layer_norms_every_steps", "train.picture_every_epochs"),
    "train.watch_every_steps",
}
_VALUES = (
    st.text(max_size=20)
    | st.integers()
    | st.integers(min_value=10**4290, max_value=10**4310)
    | st.floats()
    | st.floats().map(str)
    | st.integers().map(str)
    | st.none()
    | st.booleans()
    | st.binary(max_size=5)
    | st.lists(st.integers(), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    | st.sampled_from(["auto", "null", "", "nan", "hybrid", "smoke", "scan", "none"])
)
_KEYS = st.sampled_from(sorted({*CONFIG_KEYS, *FLAT_KEYS})) | st.text(max_size=12)


@settings(quick, max_examples=200)
@given(st.dictionaries(_KEYS, _VALUES, max_size=4), st.dictionaries(_KEYS, _VALUES, max_size=2))
def test_any_values_of_any_keys_give_a_config_or_one_line(overrides, base):
    try:
        config = resolve_config(overrides, base)
    except ConfigError as error:
        line = str(error)
    else:
        line = "`fine`"
        assert resolve_config({}, config.flat()) == config
    assert line.startswith("`")
    assert line.isprintable()
    assert len(line) < 1000


@quick
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | st.text("{}[]:,-&*<!|>'\"\n a1", max_size=60))
@example(b"? [a]: b")
@example(b"!!timestamp 1")
@example(b"a: !!int x")
@example(b"a: !!float x")
@example(b"%YAML 9.9\n---\na: 1")
@example(b"a: 1\n---\nb: 2")
@example(b"!!set {a, b}")
@example(b"a: !!omap [b]")
@example(b"<<: 1")
@example(b"a: =")
def test_any_bytes_as_a_config_file_give_values_or_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arm.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            line = resolve_config({}, read_config_file(path)).sha256()
        except ConfigError as error:
            line = str(error)
    assert line.isprintable()


def _through_yaml(config):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arm.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        return resolve_config({}, read_config_file(path))


def _valid(keys, preset):
    """A config of `preset` with other values of some keys, or None where they exclude each other."""
    values = {key: OTHER[key] for key in keys}
    try:
        return resolve_config({**values, "preset": preset})
    except ConfigError:
        return None


@quick
@given(st.sets(st.sampled_from(sorted(set(OTHER) - {"preset"})), max_size=12), st.sampled_from(sorted(PRESETS)))
def test_a_config_read_back_from_its_yaml_is_the_same(keys, preset):
    config = _valid(keys, preset)
    assume(config is not None)
    again = _through_yaml(config)
    assert again == config
    assert again.sha256() == config.sha256()


@quick
@given(st.text(min_size=1, max_size=30), st.floats(min_value=1e-300, max_value=1e30))
def test_names_and_numbers_survive_yaml_to_the_last_bit(name, lr):
    try:
        config = resolve_config({"study": name, "arm": name, "lr": lr})
    except ConfigError:
        assume(False)
    assert _through_yaml(config) == config


def test_every_key_of_the_config_has_another_value_here():
    assert set(OTHER) == set(CONFIG_KEYS)


@pytest.mark.parametrize("key", sorted(CONFIG_KEYS))
def test_the_hash_changes_with_whatever_decides_numbers(key):
    given = {"model.modes": 9}
    if key.removeprefix("data.") in ReadingConfig.model_fields:
        given["data.path"] = "scan.npz"
    base = resolve_config(given)
    # A preset's defaults decide numbers, its name does not.
    only_name = base.model_copy(update={"preset": OTHER["preset"]})
    changed = only_name if key == "preset" else resolve_config({**given, key: OTHER[key]})
    assert changed != base
    assert (changed.sha256() == base.sha256()) == (key in WITHOUT_EFFECT)


# NPZ files.

_COUNTS = st.sampled_from(["?", "u1", "u2", "<u4", ">i4", "i8", "f2", "<f4", ">f8"])


@st.composite
def _scans(draw):
    """A scan as `write_scan` takes it: any real type, with or without probe and object."""
    n, M = draw(st.integers(MIN_POSITIONS, 13)), draw(st.integers(4, 7))
    counts = draw(hnp.arrays(draw(_COUNTS), (n, M, M), elements=st.integers(0, 1), fill=st.just(0)))
    counts[0, 0, 0] = 1
    positions = draw(hnp.arrays("f8", (n, 2), elements=st.floats(-15, 15), fill=st.just(0.5)))
    positions[0] = positions[1] + 2
    fields = st.complex_numbers(max_magnitude=1e3, min_magnitude=1e-3)
    probe = draw(
        st.none() | hnp.arrays(draw(st.sampled_from(["c8", "c16"])), (M, M), elements=fields.map(np.complex64))
    )
    image = draw(
        st.none() | hnp.arrays("c8", draw(hnp.array_shapes(min_dims=2, max_dims=2)), elements=fields.map(np.complex64))
    )
    return counts, positions, probe, image


@quick
@given(_scans(), st.sampled_from(["scan.npz", "scan.npz.bz2"]))
def test_a_scan_reads_back_as_it_was_written(scan, name):
    counts, positions, probe, image = scan
    with tempfile.TemporaryDirectory() as folder:
        write_scan(Path(folder) / name, counts, positions, probe, image)
        found = import_scan(Path(folder) / name, probe_needed=False)
    np.testing.assert_array_equal(found.counts, counts.astype(np.float32), strict=True)
    np.testing.assert_array_equal(found.positions_px, positions, strict=True)
    for array, written in ((found.probe, probe), (found.object, image)):
        assert (array is None) == (written is None)
        if array is not None:
            np.testing.assert_array_equal(array, written.astype(np.complex64), strict=True)


def _read(content: bytes) -> Scan | None:
    """The scan in a file of `content`; None if it is refused in one line. Anything else is raised."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.npz"
        path.write_bytes(content)
        _outcome(read_probe, path)
        return _outcome(lambda path: import_scan(path, probe_needed=False), path)


def _outcome(read, path: Path):
    try:
        return read(path)
    except ValueError as error:
        line = str(error)
    assert line.startswith("`")
    assert line.isprintable()
    return None


def _whole(compressed: bool) -> bytes:
    packed = io.BytesIO()
    image = np.full((8, 9), 0.5j, np.complex64)
    arrays = {"counts": hostile.COUNTS, "positions_px": hostile.POSITIONS, "probe": hostile.PROBE, "object": image}
    (np.savez_compressed if compressed else np.savez)(packed, **arrays)
    return packed.getvalue()


_WHOLE = {"stored": _whole(False), "deflated": _whole(True), "bz2": bz2.compress(_whole(False))}
_EXPECTED = _read(_WHOLE["stored"])


def _equal(found: Scan) -> bool:
    """Whether `found` is the scan that was written; its object may be left out if that is said."""
    names = ["counts", "positions_px", "probe", "object"]
    if found.object is None and any("object is left out" in note for note in found.notes):
        names.remove("object")
    return all(np.array_equal(getattr(found, name), getattr(_EXPECTED, name)) for name in names)


@settings(quick, max_examples=60)
@given(st.sampled_from(sorted(_WHOLE)), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_changes_nothing(kind, place, mask):
    content = bytearray(_WHOLE[kind])
    content[int(place * len(content))] ^= mask
    found = _read(bytes(content))
    assert found is None or _equal(found)


@pytest.mark.parametrize("kind", ["stored", "deflated"])
def test_a_flipped_byte_of_the_directory_is_refused_or_changes_nothing(kind):
    """Few bytes of the file, and those that say where everything is."""
    whole = _WHOLE[kind]
    start = whole.index(b"PK\x01\x02")
    for place in range(start, len(whole)):
        found = _read(whole[:place] + bytes([whole[place] ^ 0x21]) + whole[place + 1 :])
        assert found is None or _equal(found), place - start


@quick
@given(st.sampled_from(sorted(_WHOLE)), st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(kind, share):
    assert _read(_WHOLE[kind][: int(share * len(_WHOLE[kind]))]) is None


@quick
@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"BZh9", b"BZh91AY&SY", b"PK"]))
def test_any_bytes_are_refused(content, start):
    assert _read(start + content) is None


_HEADERS = st.text("{}[]()',:<>|=!?0123456789OVSUfic#\n\\ \"abdehloprst_xFT", max_size=60).map(
    str.encode
) | st.sampled_from(
    [
        b"{'descr': 'a', 'fortran_order': False, 'shape': (1,)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (12L, 16L, 16L)}",
        b"{'descr': [('x', '<f4'), ('x', 'O')], 'fortran_order': False, 'shape': (0, 9, 9)}",
        b"{'descr': ('<f4', (2, 2)), 'fortran_order': True, 'shape': (12, 16, 16)}",
        b"{'descr': 'c99999999999', 'fortran_order': False, 'shape': (12, 16, 16)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2.5)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4611686018427387904, 4611686018427387904)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 200 + b")" * 200 + b"}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 70 + b")}",
        b"{'descr': '<f4', 'fortran_order': 1, 'shape': (2,)}",
        b"-" * 9000,
    ]
)


@settings(quick, max_examples=60)
@given(
    _HEADERS, st.binary(max_size=64), st.sampled_from(["counts", "positions_px", "probe"]), st.sampled_from([1, 2, 3])
)
def test_an_array_of_any_header_and_content_is_refused(header, content, key, version):
    arrays = {"counts": hostile.COUNTS, "positions_px": hostile.POSITIONS, "probe": hostile.PROBE}
    parts = {f"{name}.npy": hostile.member(array) for name, array in arrays.items()}
    parts[f"{key}.npy"] = hostile.raw_member(header, content, version)
    assert _read(hostile.archive(*parts.items(), packed_by=zipfile.ZIP_DEFLATED)) is None


# Metrics.

#: Of any scale that an object in single precision may have.
_FIELDS = hnp.arrays(
    np.complex128,
    (9, 8),
    elements=st.complex_numbers(min_magnitude=1e-30, max_magnitude=1e3) | st.just(0) | st.just(1),
    fill=st.sampled_from([0, 1, 1j]),
)


@settings(quick, max_examples=60)
@given(_FIELDS, _FIELDS, hnp.arrays(bool, (9, 8), fill=st.just(True)), st.booleans())
def test_metrics_of_any_images_are_in_range_or_nan(predicted, truth, mask, ramp):
    assume(mask.any())
    found = compare_objects(predicted, truth, mask, ramp=ramp)
    for name in ("amp_ssim", "phase_ssim"):
        assert math.isnan(found[name]) or -1 - 1e-9 <= found[name] <= 1 + 1e-9
    assert found["amp_mae"] >= 0
    assert math.isnan(found["phase_mae"]) or 0 <= found["phase_mae"] <= np.pi + 1e-9
    for name in ("frc50", "frc_one_seventh"):
        assert math.isnan(found[name]) or 0 <= found[name] <= 0.5


@quick
@given(_FIELDS, st.floats(0.1, 10), st.floats(-3, 3))
def test_the_truth_itself_is_perfect_or_vacuous_whatever_its_phase_and_scale(truth, scale, phase):
    found = compare_objects(scale * np.exp(1j * phase) * truth, truth)
    for name in ("amp_ssim", "phase_ssim"):
        assert math.isnan(found[name]) or found[name] == pytest.approx(1, abs=1e-6)
    span = np.abs(truth).max()
    assert found["amp_mae"] <= 1e-9 * max(1, span)


@quick
@given(st.integers(0, 2**16), st.complex_numbers(min_magnitude=1e-3, max_magnitude=1e3), st.booleans())
def test_a_constant_never_scores(seed, constant, as_truth):
    rng = np.random.default_rng(seed)
    image, flat = rng.normal(size=(12, 12)) + 1j * rng.normal(size=(12, 12)), np.full((12, 12), constant)
    found = compare_objects(image, flat) if as_truth else compare_objects(flat, image)
    assert [name for name in SCALARS if name.endswith(("ssim", "50", "seventh")) and not math.isnan(found[name])] == []
