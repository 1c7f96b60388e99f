"""HDF5 files are read lazily, within the memory, and without trust."""

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest

from fnostab.formats import links, npz
from fnostab.formats.containers import open_container
from fnostab.formats.hdf5 import Hdf5File, is_hdf5
from fnostab.formats.probe import read_modes

FRAMES = np.arange(6 * 4 * 5, dtype=np.uint16).reshape(6, 4, 5)


def written(path: Path, fill: Callable[[h5py.File], object], **options: object) -> Hdf5File:
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return Hdf5File(path)


@pytest.mark.parametrize("dtype", ["u1", ">u2", "<i4", "u8", "f2", "f4", "f8", ">f8", "?"])
def test_numbers_of_every_type_are_read_as_they_were_written(tmp_path: Path, dtype: str) -> None:
    values = (FRAMES % 2).astype(dtype)
    file = written(tmp_path / "a.h5", lambda f: f.create_dataset("a/b", data=values))
    assert file.keys == ("/a/b",)
    assert np.array_equal(file.read("/a/b"), values)
    assert file.stored("/a/b").dtype == values.dtype


@pytest.mark.parametrize("names", [("r", "i"), ("real", "imag")])
def test_pairs_of_real_and_imaginary_part_are_complex(tmp_path: Path, names: tuple[str, str]) -> None:
    pairs = np.zeros(3, [(name, "f4") for name in names])
    pairs[names[1]] = 2
    file = written(tmp_path / "a.h5", lambda f: f.create_dataset("a", data=pairs))
    assert np.array_equal(file.read("/a"), np.full(3, 2j, np.complex64))
    assert file.stored("/a").dtype == np.complex64


@pytest.mark.parametrize("shape", [(6, 4, 5), (1, 6, 4, 5), (2, 3, 4, 5), (1, 3, 2, 4, 5)])
@pytest.mark.parametrize("options", [{}, {"chunks": True, "compression": "gzip"}])
def test_frames_are_read_in_parts_whatever_their_axes(tmp_path: Path, shape: tuple[int, ...], options: dict) -> None:
    file = written(tmp_path / "a.h5", lambda f: f.create_dataset("a", data=FRAMES.reshape(shape), **options))
    stored = file.stored("/a")
    assert stored.shape == shape
    for start, stop in ((0, 6), (1, 2), (2, 5), (0, 3), (5, 6)):
        assert np.array_equal(stored.read(start, stop), FRAMES[start:stop])
    assert np.array_equal(stored.whole(), FRAMES.reshape(shape))


@pytest.mark.parametrize(
    "packing",
    [hdf5plugin.Bitshuffle(), hdf5plugin.LZ4(), hdf5plugin.Zstd(), hdf5plugin.Blosc(), {"compression": "lzf"}],
)
def test_what_detectors_compress_by_is_read(tmp_path: Path, packing: dict) -> None:
    file = written(tmp_path / "a.h5", lambda f: f.create_dataset("a", data=FRAMES, chunks=(1, 4, 5), **packing))
    assert np.array_equal(file.read("/a"), FRAMES)


def test_the_filters_of_detectors_are_made_known_where_nobody_else_did(tmp_path: Path) -> None:
    written(
        tmp_path / "a.h5", lambda f: f.create_dataset("a", data=FRAMES, chunks=(1, 4, 5), **hdf5plugin.Bitshuffle())
    )
    read = "import sys; from fnostab.formats.hdf5 import Hdf5File; print(Hdf5File(sys.argv[1]).read('/a').sum())"
    done = subprocess.run([sys.executable, "-c", read, tmp_path / "a.h5"], capture_output=True, text=True, check=True)
    assert done.stdout == f"{FRAMES.sum()}\n"


def test_soft_links_and_groups_of_two_names_give_keys(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["real/data"] = FRAMES
        file["absolute"] = h5py.SoftLink("/real/data")
        file["real/sub/relative"] = h5py.SoftLink("up")
        file["real/sub/up"] = h5py.SoftLink("/real/data")
        file["group"] = h5py.SoftLink("real")
        file["hard"] = file["real"]

    file = written(tmp_path / "a.h5", fill)
    assert {"/absolute", "/real/sub/relative", "/group/data", "/hard/data"} <= set(file.keys)
    assert np.array_equal(file.read("/group/sub/relative"), FRAMES)


def test_links_in_circles_and_to_nothing_are_passed_over(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a/data"] = FRAMES
        file["a/again"] = file["a"]
        file["a/root"] = h5py.SoftLink("/")
        file["this"], file["that"] = h5py.SoftLink("/that"), h5py.SoftLink("/this")
        file["self"] = h5py.SoftLink("self/self/self")
        file["nothing"] = h5py.SoftLink("/nowhere/data")

    file = written(tmp_path / "a.h5", fill)
    assert file.keys == ("/a/data",)
    for key in ("/this", "/self", "/nothing", "/a/data/b"):
        with pytest.raises(ValueError, match=rf"must hold `{key}`; it holds /a/data"):
            file.read(key)


def test_soft_links_that_multiply_end_at_once(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        for i in range(30):
            file[str(i)] = h5py.SoftLink("/".join([str(i + 1)] * 10))
        group = file.create_group("30")
        group["30"] = group

    began = time.perf_counter()
    assert written(tmp_path / "a.h5", fill).keys == ()
    assert time.perf_counter() - began < 5


def test_more_links_than_anyone_has_are_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "MAX_LINKS", 200)
    for fill in (
        lambda f: [f.create_group(f"g/{i}") for i in range(250)],
        lambda f: [f.__setitem__(f"{i}/{j}", h5py.SoftLink(f"/{i + 1}")) for i in range(12) for j in range(2)],
    ):
        with pytest.raises(ValueError, match=r"must hold at most 200 groups and arrays$"):
            _ = written(tmp_path / "a.h5", fill).keys


def test_what_lies_in_other_files_is_refused_and_never_opened(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = FRAMES
    (tmp_path / "raw.bin").write_bytes(FRAMES.tobytes())

    def fill(file: h5py.File) -> None:
        file["link"] = h5py.ExternalLink("other.h5", "/data")
        file["folder"] = h5py.ExternalLink("other.h5", "/")
        file["soft"] = h5py.SoftLink("/folder/data")
        file.create_dataset("raw", FRAMES.shape, FRAMES.dtype, external=[(str(tmp_path / "raw.bin"), 0, FRAMES.nbytes)])
        layout = h5py.VirtualLayout(FRAMES.shape, FRAMES.dtype)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", FRAMES.shape)
        file.create_virtual_dataset("virtual", layout)

    file = written(tmp_path / "a.h5", fill)
    assert set(file.keys) == {"/link", "/folder", "/soft", "/raw", "/virtual"}
    for key, where in (
        ("/link", "other.h5"),
        ("/folder/data", "other.h5"),
        ("/soft", "other.h5"),
        ("/raw", f"{tmp_path}/raw.bin"),
        ("/virtual", f"{tmp_path}/other.h5"),
    ):
        rule = f"must hold all of its arrays: `{key}` lies in {where}; copy it into one file"
        with pytest.raises(ValueError, match=rule):
            file.read(key)
    assert file.text("/raw") is None


def test_virtual_arrays_of_the_file_itself_are_read_but_not_through_links(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = FRAMES

    def virtual(file: h5py.File, name: str, source: str) -> None:
        layout = h5py.VirtualLayout(FRAMES.shape, FRAMES.dtype)
        layout[:] = h5py.VirtualSource(".", source, FRAMES.shape)
        file.create_virtual_dataset(name, layout)

    def fill(file: h5py.File) -> None:
        file["data"] = FRAMES
        file["out"] = h5py.ExternalLink("other.h5", "/data")
        virtual(file, "good", "data")
        virtual(file, "linked", "out")
        virtual(file, "itself", "itself")

    file = written(tmp_path / "a.h5", fill)
    assert np.array_equal(file.read("/good"), FRAMES)
    with pytest.raises(ValueError, match=r"must hold all of its arrays: `out` lies in other.h5"):
        file.read("/linked")
    with pytest.raises(ValueError, match=r"`/itself` is made of others that are made of others"):
        file.read("/itself")


def test_what_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["text"] = "scan"
        file["bytes"] = np.array([b"a", b"b"])
        file.create_dataset("ragged", (2,), h5py.vlen_dtype(np.int32))
        file.create_dataset("references", (2,), h5py.ref_dtype)
        file["table"] = np.zeros(3, [("x", "f4"), ("y", "f4")])
        file["opaque"] = np.array(["2026-01-01"], "M8[s]").astype(h5py.opaque_dtype("M8[s]"))
        file["null"] = h5py.Empty("f4")
        file.create_group("group")

    file = written(tmp_path / "a.h5", fill)
    for key, what in (
        ("text", "text"),
        ("bytes", "text"),
        ("ragged", "rows of any length"),
        ("references", "references"),
        ("table", r"\[\('x', '<f4'\), \('y', '<f4'\)\]"),
        ("opaque", r"datetime64\[s\]"),
        ("null", "empty"),
    ):
        with pytest.raises(ValueError, match=rf"a.h5\) must hold numbers, `/{key}` is {what}$"):
            file.read(f"/{key}")
    with pytest.raises(ValueError, match=r"must hold an array `/group`, which is a group there$"):
        file.read("/group")
    assert file.text("/text") == "scan"
    assert file.text("/null") is None


def test_an_unknown_filter_is_named(tmp_path: Path) -> None:
    packed = hdf5plugin.Zfp()
    path = tmp_path / "a.h5"
    written(path, lambda f: f.create_dataset("a", data=FRAMES.astype("f4"), chunks=(6, 4, 5), **packed)).close()
    content = path.read_bytes()
    number = hdf5plugin.ZFP_ID.to_bytes(2, "little")
    assert content.count(number) == 1
    path.write_bytes(content.replace(number, (32767).to_bytes(2, "little")))
    with pytest.raises(
        ValueError, match=r"must be packed by a filter that h5py or hdf5plugin has: `/a` is by filter 32767"
    ):
        Hdf5File(path).stored("/a")


def test_damage_is_said_wherever_it_shows(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    values = np.random.default_rng(1).integers(0, 255, (50, 32, 32), np.uint8)
    written(path, lambda f: f.create_dataset("a", data=values, chunks=(1, 32, 32), compression="gzip")).close()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"must be a whole HDF5 file: truncated file: eof = \d+"):
        Hdf5File(path)
    said = []
    for place in range(200, len(content), len(content) // 60):
        path.write_bytes(content[:place] + bytes(40) + content[place + 40 :])
        try:
            file = Hdf5File(path)
            for key in file.keys:
                file.read(key)
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all("must be a whole HDF5 file" in line and line.isprintable() for line in said)


def test_declared_sizes_beyond_the_memory_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("wide", (12, 10**6, 10**6), "f4", chunks=(1, 100, 100))
        file.create_dataset("long", (10**9, 64, 64), "f4", chunks=(1, 64, 64))

    path = tmp_path / "a.h5"
    written(path, fill)
    file = Hdf5File(path, max_bytes=2**30)
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=r"frames and chunks of at most 1073741824 bytes, one of `/wide` has 4000000000000"
    ):
        file.stored("/wide")
    with pytest.raises(ValueError, match=r"must hold at most 1073741824 bytes, `/long` goes beyond$"):
        file.read("/long")
    assert not file.stored("/long").read(10**8, 10**8 + 10).any()
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_what_is_read_as_a_whole_adds_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAX_BYTES", 2 * FRAMES.nbytes - 1)
    file = written(tmp_path / "a.h5", lambda f: f.create_dataset("a", data=FRAMES))
    file.read("/a")
    with pytest.raises(ValueError, match=r"must hold at most 479 bytes, `/a` goes beyond$"):
        file.read("/a")


def test_a_file_that_another_program_holds_open_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", locking=True) as file:
        file["a"] = FRAMES
        file.flush()
        read = "import sys; from fnostab.formats.hdf5 import Hdf5File; print(Hdf5File(sys.argv[1]).read('/a').sum())"
        done = subprocess.run([sys.executable, "-c", read, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{FRAMES.sum()}\n"


@pytest.mark.parametrize("before", [0, 512, 1024, 4096])
def test_the_signature_is_found_after_another_header(tmp_path: Path, before: int) -> None:
    path = tmp_path / "a.mat"
    written(path, lambda f: f.create_dataset("a", data=FRAMES), userblock_size=before)
    assert is_hdf5(path)
    with open(path, "rb+") as file:
        file.write(b"MATLAB 7.3 MAT-file"[:before])
    container = open_container(path)
    assert np.array_equal(container.read("/a"), FRAMES)


def test_attributes_are_read_and_those_of_unknown_types_are_passed_over(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file["a"] = FRAMES
        file["a"].attrs["units"] = "um"
        file["a"].attrs["nothing"] = h5py.Empty("f4")
        file.attrs["energy"] = 8.0

    file = written(tmp_path / "a.h5", fill)
    assert file.attributes("/a")["units"] == "um"
    assert file.attributes("/")["energy"] == 8.0
    assert file.attributes("/nowhere") == {}


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"\x93NUMPY\x01\0v\0", r"not one bare array \(.npy\): put patterns and positions into one file"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", r"not MATLAB's version 5: save it with -v7.3"),
        (b"\x1f\x8b\x08\0", "not packed by gzip: unpack it with gunzip$"),
        (b"\x80\x04\x95", "not a pickle, which is never read"),
        (b"II*\0", "not TIFF: put its frames and the positions into one file"),
        (b"", r"\.mat of version 7\.3\)$"),
        (b"x,y,counts\n", r"\.mat of version 7\.3\)$"),
    ],
)
def test_another_kind_of_file_is_refused_with_what_to_do(tmp_path: Path, content: bytes, advice: str) -> None:
    path = tmp_path / "scan"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=advice) as refused:
        open_container(path)
    assert str(refused.value).startswith(f"`data.path` (={path}) must be an NPZ file (.npz or .npz.bz2) or HDF5 (")


def test_commands_that_read_no_hdf5_do_not_load_it() -> None:
    modules = "import sys, fnostab.cli, fnostab.dataset, fnostab.formats.registry"
    code = f"{modules}; print({{'h5py', 'hdf5plugin'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "key", ["probe", "probeGuess", "entry_1/instrument_1/source_1/illumination", "entry_1/image_1/data"]
)
def test_a_probe_is_read_from_hdf5_too(tmp_path: Path, key: str) -> None:
    modes = (np.random.default_rng(1).normal(size=(2, 6, 6)) + 1j).astype(np.complex64)
    written(tmp_path / "probe.h5", lambda f: f.create_dataset(key, data=modes[None])).close()
    np.testing.assert_array_equal(read_modes(tmp_path / "probe.h5"), modes)
    with pytest.raises(ValueError, match=r"must hold the key `probe` or `probeGuess`; it holds /light"):
        read_modes(written(tmp_path / "light.h5", lambda f: f.create_dataset("light", data=modes)).path)
