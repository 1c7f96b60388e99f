"""Bad input as a table: what is given to `fnostab`, and the one line that it is refused with.

`python tests/hostile.py docs/reliability.md` writes the table into the docs.
"""

import bz2
import io
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Maker = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One bad input: `argv` as `fnostab` gets it, the files it speaks of, and the `message` it is refused with.

    `make` writes the files into the working directory, `environment` is set besides that of all tests, `max_bytes`
    stands in for `fnostab.formats.npz.MAX_BYTES`. With `in_store` the working directory is that of `prepare_store`.
    """

    what: str
    argv: tuple[str, ...]
    message: str
    make: Maker | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int | None = None
    in_store: bool = False
    code: int = 2


# Measured scans: a valid one of 12 patterns in tike's layout, and what may be wrong with it.

N_POSITIONS, M = 12, 16
POSITIONS = np.stack([np.arange(N_POSITIONS) * 1.5, np.arange(N_POSITIONS) * -2.0], axis=1)
COUNTS = np.arange(N_POSITIONS * M * M, dtype=np.float32).reshape(N_POSITIONS, M, M) % 7
PROBE = (np.eye(M) + 1j).astype(np.complex64)
SCAN = {"data": COUNTS, "scan": POSITIONS, "probe": PROBE}


def npz(**changes: Any) -> bytes:
    """The valid scan with `changes`; None leaves an array out."""
    packed = io.BytesIO()
    np.savez(packed, **{key: value for key, value in {**SCAN, **changes}.items() if value is not None})
    return packed.getvalue()


def member(array: Any, **changes: Any) -> bytes:
    """An NPY file whose header says what `changes` say."""
    array = np.asarray(array)
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **changes}
    return raw_member(repr(header).encode(), array.tobytes())


def raw_member(header: bytes, content: bytes, version: int = 1) -> bytes:
    """An NPY file with any text for a header."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def archive(*members: tuple[str, bytes], packed_by: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of anything, names twice included."""
    packed = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", packed_by) as file:
        warnings.simplefilter("ignore")  # names twice
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, packed_by)
    return packed.getvalue()


def scan_of(**members: bytes) -> bytes:
    """The valid scan, some members replaced by any bytes."""
    parts = {key: member(array) for key, array in SCAN.items()} | members
    return archive(*((f"{key}.npy", content) for key, content in parts.items()))


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    """`content` with `old`, which it must hold, replaced by `new` everywhere."""
    if old not in content:
        raise AssertionError(f"{old!r} is not there")
    return content.replace(old, new)


def holding(value: float, at: tuple[int, ...] = (3, 2, 1)) -> np.ndarray:
    """The counts with one other value."""
    counts = COUNTS.copy()
    counts[at] = value
    return counts


def moved(value: float) -> np.ndarray:
    """The positions, one of them elsewhere."""
    positions = POSITIONS.copy()
    positions[4, 1] = value
    return positions


def declaring(content: bytes, size: int, name: bytes = b"data.npy") -> bytes:
    """`content`, an archive, whose directory and local header say that the member `name` unpacks to `size` bytes."""
    changed = bytearray(content)
    for signature, offset, at_name in ((b"PK\x03\x04", 22, 30), (b"PK\x01\x02", 24, 46)):
        start = changed.find(signature)
        while changed[start + at_name : start + at_name + len(name)] != name:
            start = changed.find(signature, start + 1)
        changed[start + offset : start + offset + 4] = size.to_bytes(4, "little")
    return bytes(changed)


def flagged(content: bytes, method: int | None = None, flags: int | None = None) -> bytes:
    """`content`, an archive, whose members claim another compression method or other flags."""
    changed = bytearray(content)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = changed.find(signature)
        while start >= 0:
            if flags is not None:
                changed[start + offset : start + offset + 2] = flags.to_bytes(2, "little")
            if method is not None:
                changed[start + offset + 2 : start + offset + 4] = method.to_bytes(2, "little")
            start = changed.find(signature, start + 1)
    return bytes(changed)


def file(content: bytes | Callable[[], bytes], name: str = "scan.npz") -> Maker:
    """Write `content` when the test runs."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(content() if callable(content) else content)

    return make


def scan(**changes: Any) -> Maker:
    """Write the valid scan with `changes`."""
    return file(lambda: npz(**changes))


def with_probe(content: Callable[[], bytes]) -> Maker:
    """Write the valid scan and, as a file of its own, a bad probe."""

    def make(folder: Path) -> None:
        scan()(folder)
        file(content, "probe.npz")(folder)

    return make


IMPORT = ("data", "import", "scan.npz", "--N", "16")
TERABYTES = (10**6, 10**6)


def _pairs(**changes: Any) -> Maker:
    """A PtychoPINN-style scan."""
    arrays = {"diffraction": COUNTS, "xcoords": POSITIONS[:, 1], "ycoords": POSITIONS[:, 0], "probeGuess": PROBE}
    nothing = dict.fromkeys(SCAN)
    return scan(**nothing, **{**arrays, **changes})


#: What several messages have in common.
KNOWN = (
    "`data.path` (=scan.npz) must hold `counts` and `positions_px` or `data` and `scan` or "
    "`diffraction` or `diff3d` and `ycoords` and `xcoords`; it holds "
)
NAME = (
    " must be a name without quotes, control characters or any of / \\ : * ? < > | # %, and not begin "
    "with a dot or a space"
)
EXPORTED = (
    "`model` (=model) must be a network that this package exported (pt2, float32 counts (-1, N, N) to "
    "float32 (-1, N, N, 2)): "
)

SCANS = (
    Case(
        "a file that is not there", IMPORT, "`data.path` (=scan.npz) must be a readable file: No such file or directory"
    ),
    Case("a folder", ("data", "import", ".", "--N", "16"), "`data.path` (=.) must be a readable file: Is a directory"),
    Case(
        "a device without an end",
        ("data", "import", "/dev/zero", "--N", "16"),
        "`data.path` (=/dev/zero) must be a readable file: it is a device or a pipe",
    ),
    Case("an empty file", IMPORT, "`data.path` (=scan.npz) must be an NPZ file (.npz or .npz.bz2)", file(b"")),
    Case(
        "text", IMPORT, "`data.path` (=scan.npz) must be an NPZ file (.npz or .npz.bz2)", file(b"x,y,counts\n1,2,3\n")
    ),
    Case(
        "a pickle",
        IMPORT,
        "`data.path` (=scan.npz) must be an NPZ file (.npz or .npz.bz2)",
        file(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94."),
    ),
    Case(
        "a bare NPY file",
        IMPORT,
        "`data.path` (=scan.npz) must be an NPZ file (.npz or .npz.bz2)",
        file(lambda: member(COUNTS)),
    ),
    Case(
        "a truncated file",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: File is not a zip file",
        file(lambda: npz()[:-30]),
    ),
    Case(
        "a truncated .npz.bz2",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: Compressed file ended before the end-of-stream "
        "marker was reached",
        file(lambda: bz2.compress(npz())[:-30]),
    ),
    Case(
        "one byte flipped",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: _flipped(npz(), len(npz()) // 3)),
    ),
    Case(
        "an archive of nothing",
        IMPORT,
        KNOWN + "nothing",
        file(lambda: archive()),
    ),
    Case(
        "unknown keys",
        IMPORT,
        KNOWN + "patterns, probe, scan",
        scan(data=None, patterns=COUNTS),
    ),
    Case(
        "patterns without positions",
        IMPORT,
        KNOWN + "data, probe",
        scan(scan=None),
    ),
    Case(
        "PtychoPINN style, quantity not said",
        IMPORT,
        "`data.quantity` (=auto) must be counts or amplitude for scan.npz: patterns of such files are "
        "often amplitudes, and nothing in the file says so",
        _pairs(),
    ),
    Case(
        "more rows than columns",
        (*IMPORT, "--quantity", "counts"),
        "`ycoords, xcoords` (=12 and 11) must be as many rows as columns, in scan.npz",
        _pairs(xcoords=POSITIONS[1:, 1]),
    ),
    Case(
        "pickled objects",
        IMPORT,
        "`data.path` (=scan.npz) must not hold pickled objects, `data` is one",
        scan(data=np.array([{"a": 1}] * N_POSITIONS, dtype=object)),
    ),
    Case(
        "patterns of text",
        IMPORT,
        "`data.path` (=scan.npz) must hold numbers, `data` is <U1",
        scan(data=np.full((N_POSITIONS, M, M), "7")),
    ),
    Case(
        "patterns of dates",
        IMPORT,
        "`data.path` (=scan.npz) must hold numbers, `data` is datetime64[s]",
        scan(data=COUNTS.astype("datetime64[s]")),
    ),
    Case(
        "structured patterns",
        IMPORT,
        "`data.path` (=scan.npz) must hold numbers, `data` is [('a', '<f4'), ('b', '<i2')]",
        scan(data=np.zeros(COUNTS.shape, [("a", "f4"), ("b", "i2")])),
    ),
    Case(
        "complex patterns",
        IMPORT,
        "`data` (=12 x 16 x 16 complex64) must be n square real patterns, (n, M, M), in scan.npz",
        scan(data=COUNTS * 1j),
    ),
    Case(
        "one pattern",
        IMPORT,
        "`data` (=16 x 16 float32) must be n square real patterns, (n, M, M), in scan.npz",
        scan(data=COUNTS[0]),
    ),
    Case(
        "patterns that are not square",
        IMPORT,
        "`data` (=12 x 16 x 14 float32) must be n square real patterns, (n, M, M), in scan.npz",
        scan(data=COUNTS[..., :-2]),
    ),
    Case(
        "patterns smaller than N",
        ("data", "import", "scan.npz", "--N", "64"),
        "`data.N` (=64) must be <= 16, the size of the patterns in scan.npz",
        scan(),
    ),
    Case(
        "more patterns than positions",
        IMPORT,
        "`data` (=12 patterns) must match the 11 positions, in scan.npz",
        scan(scan=POSITIONS[:-1]),
    ),
    Case(
        "a NaN count",
        IMPORT,
        "`data` (=nan at pattern, row, column 3, 2, 1) must be finite, in scan.npz",
        scan(data=holding(np.nan)),
    ),
    Case(
        "an infinite count",
        IMPORT,
        "`data` (=inf at pattern, row, column 3, 2, 1) must be finite, in scan.npz",
        scan(data=holding(np.inf)),
    ),
    Case(
        "a negative count",
        IMPORT,
        "`data` (=-1.0 at pattern, row, column 3, 2, 1) must be >= 0, in scan.npz",
        scan(data=holding(-1)),
    ),
    Case(
        "a count beyond float32",
        IMPORT,
        "`data` (=1e+300 at pattern, row, column 0, 0, 1) must be finite, in scan.npz",
        scan(data=COUNTS.astype(np.float64) * 1e300),
    ),
    Case("dark patterns", IMPORT, "`data` (=0 everywhere) must hold some counts, in scan.npz", scan(data=0 * COUNTS)),
    Case(
        "nine positions",
        IMPORT,
        "`scan` (=9 positions) must be at least 10 positions, in scan.npz",
        scan(data=COUNTS[:9], scan=POSITIONS[:9]),
    ),
    Case(
        "positions with three columns",
        IMPORT,
        "`scan` (=12 x 3) must be row and column of n positions, (n, 2), in scan.npz",
        scan(scan=np.ones((N_POSITIONS, 3))),
    ),
    Case("a NaN position", IMPORT, "`scan` (=nan) must be finite, in scan.npz", scan(scan=moved(np.nan))),
    Case("an infinite position", IMPORT, "`scan` (=inf) must be finite, in scan.npz", scan(scan=moved(np.inf))),
    Case(
        "positions that are all equal",
        IMPORT,
        "`scan` (=extent 0) must span 1 to 32768 px; are they in pixels?, in scan.npz",
        scan(scan=0 * POSITIONS),
    ),
    Case(
        "positions in metres",
        IMPORT,
        "`scan` (=extent 2.2e-08) must span 1 to 32768 px; are they in pixels?, in scan.npz",
        scan(scan=1e-9 * POSITIONS),
    ),
    Case(
        "positions whose distance overflows",
        IMPORT,
        "`scan` (=extent 1.1e+308) must span 1 to 32768 px; are they in pixels?, in scan.npz",
        scan(scan=POSITIONS * 5e306),
    ),
    Case(
        "one position far away",
        IMPORT,
        "`scan` (=a rectangle of 32 x 20038 px) must cover at most 49152 px, 16 times the 12 windows of 16 "
        "x 16: is one of them wrong?, in scan.npz",
        scan(scan=moved(20000)),
    ),
    Case(
        "complex positions", IMPORT, "`scan` (=complex128) must be real numbers, in scan.npz", scan(scan=POSITIONS * 1j)
    ),
    Case("no probe", IMPORT, "`data.probe` (=auto) must name a probe: there is none in scan.npz", scan(probe=None)),
    Case(
        "a probe of another size",
        IMPORT,
        "`probe` (=14 x 14) must be 16 x 16, the size of the patterns, in scan.npz",
        scan(probe=PROBE[:-2, :-2]),
    ),
    Case(
        "a probe that is not square",
        IMPORT,
        "`probe` (=14 x 16) must be one square array, (M, M), in scan.npz",
        scan(probe=PROBE[:-2]),
    ),
    Case(
        "several probe modes",
        IMPORT,
        "`probe` (=2 x 16 x 16 complex64) must be one array of numbers with two axes, in scan.npz",
        scan(probe=np.stack([PROBE, PROBE])),
    ),
    Case("a dark probe", IMPORT, "`probe` (=0 everywhere) must hold some light, in scan.npz", scan(probe=0 * PROBE)),
    Case("a NaN probe", IMPORT, "`probe` (=(nan+nanj)) must be finite, in scan.npz", scan(probe=np.nan * PROBE)),
    Case(
        "a probe too bright for float32",
        IMPORT,
        "`probe` (=at most 1.41421e+30) must have its largest amplitude within 1e-12 to 1e+12, in scan.npz",
        scan(probe=1e30 * PROBE),
    ),
    Case(
        "a probe file that is none",
        (*IMPORT, "--probe", "probe.npz"),
        "`data.probe` (=probe.npz) must be an NPZ file (.npz or .npz.bz2)",
        with_probe(lambda: b"PK nonsense"),
    ),
    Case(
        "a probe file of N x N NaN",
        (*IMPORT, "--probe", "probe.npz"),
        "`probe` (=(nan+0j)) must be finite, in probe.npz",
        with_probe(lambda: npz(probe=np.full((M, M), np.nan))),
    ),
    Case(
        "a header that declares terabytes",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: scan_of(data=member(COUNTS, shape=TERABYTES))),
    ),
    Case(
        "a header and a directory that declare 3 GB in a small file",
        IMPORT,
        "`data.path` (=scan.npz) must hold at most 1073741824 bytes, `data` goes beyond",
        file(lambda: _promising(3 * 10**9)),
        max_bytes=2**30,
    ),
    Case(
        "the same within the limit: a megabyte that is not there",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: _promising(10**6)),
    ),
    Case(
        "a deflated array larger than the archive says",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: _overflowing()),
    ),
    Case(
        "arrays beyond the limit together",
        IMPORT,
        "`data.path` (=scan.npz) must hold at most 1048576 bytes, `data` goes beyond",
        scan(data=np.zeros((N_POSITIONS, 256, 256), np.float32)),
        max_bytes=2**20,
    ),
    Case(
        "a .bz2 bomb",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: it unpacks to more than 1048576 bytes",
        file(lambda: bz2.compress(bytes(2**22))),
        max_bytes=2**20,
    ),
    Case(
        "members packed by bzip2, which zipfile unpacks without a limit",
        IMPORT,
        "`data.path` (=scan.npz) must be stored or deflated, `data` is packed by method 12",
        file(lambda: archive(*_members(), packed_by=zipfile.ZIP_BZIP2)),
    ),
    Case(
        "members packed by an unknown method",
        IMPORT,
        "`data.path` (=scan.npz) must be stored or deflated, `data` is packed by method 99",
        file(lambda: flagged(npz(), method=99)),
    ),
    Case(
        "encrypted members",
        IMPORT,
        "`data.path` (=scan.npz) must not be encrypted, `data` is",
        file(lambda: flagged(npz(), flags=1)),
    ),
    Case(
        "an array that is there twice",
        IMPORT,
        "`data.path` (=scan.npz) must hold each array once, `scan` is there 2 times",
        file(lambda: archive(*_members(), ("scan.npy", member(0)))),
    ),
    Case(
        "member names that lead out of the folder",
        IMPORT,
        KNOWN + "../evil, /abs",
        file(lambda: archive(("../evil.npy", member(0)), ("/abs.npy", member(0)))),
    ),
    Case(
        "member names that drive the terminal",
        IMPORT,
        KNOWN + "\\x1b[2J\\x1b]0;owned\\x07, a\\nfnostab: error: b\\r",
        file(lambda: archive(("\x1b[2J\x1b]0;owned\x07.npy", member(0)), ("a\nfnostab: error: b\r.npy", member(0)))),
    ),
    Case(
        "a member name of 60,000 letters",
        IMPORT,
        KNOWN + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...",
        file(lambda: archive((f"{'a' * 60000}.npy", member(0)))),
    ),
    Case(
        "a member name with NUL, which zipfile cuts there",
        IMPORT,
        KNOWN + "data",
        file(lambda: patched(archive(("data.npyX", member(0))), b"data.npyX", b"data.npy\0")),
    ),
    Case(
        "NPY version 9",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: scan_of(data=patched(member(COUNTS), b"NUMPY\x01", b"NUMPY\x09"))),
    ),
    Case(
        "a header that is code",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: scan_of(data=raw_member(b"__import__('os').system('touch owned')", bytes(64)))),
    ),
    Case(
        "a header of brackets without end",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: scan_of(data=raw_member(b"[" * 9000, bytes(64)))),
    ),
    Case(
        "a header with a negative shape",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: scan_of(data=member(COUNTS, shape=(-12, 16, 16)))),
    ),
    Case(
        "a header with an unknown type",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: scan_of(data=member(COUNTS, descr="<q9"))),
    ),
    Case(
        "a header with a shape beyond 64 bits",
        IMPORT,
        "`data.path` (=scan.npz) must be a whole NPZ file: `data` cannot be read",
        file(lambda: scan_of(data=member(np.zeros(0), shape=(0, 10**30)))),
    ),
    Case(
        "a good scan for an arm at another N",
        ("train", "--preset", "scan", "--data", "scan.npz", "--N", "32"),
        "`data.N` (=32) must be <= 16, the size of the patterns in scan.npz",
        scan(),
    ),
    Case(
        "a bad scan for an arm",
        ("train", "--preset", "scan", "--data", "scan.npz", "--N", "16"),
        "`model.modes` (=12) must be <= 9 at N=16",
        file(b"PK"),
    ),
    Case(
        "a bad scan for a study",
        ("study", "--preset", "scan", "--data", "scan.npz", "--N", "16"),
        "`model.modes` (=12) must be <= 9 at N=16",
        file(b"PK"),
    ),
    Case(
        "output of another kind", (*IMPORT, "--out", "own.txt"), "`out` (=own.txt) must end in .npz or .npz.bz2", scan()
    ),
    Case(
        "output into a folder that is not there",
        (*IMPORT, "--out", "nowhere/own.npz"),
        "`out` (=nowhere/own.npz) must lie in a folder that exists",
        scan(),
    ),
)


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def _promising(size: int) -> bytes:
    """A scan whose patterns are nothing but a header, and `size` bytes as that and the directory say."""
    patterns = member(np.zeros(0, np.uint8), shape=(size,))
    return declaring(scan_of(data=patterns), len(patterns) + size)


def _overflowing() -> bytes:
    """A scan whose patterns go on for 8 MB after the end that header and directory declare."""
    whole = member(COUNTS)
    parts = {**dict(_members()), "data.npy": whole + bytes(2**23)}
    return declaring(archive(*parts.items(), packed_by=zipfile.ZIP_DEFLATED), len(whole))


def _members() -> Iterator[tuple[str, bytes]]:
    return ((f"{key}.npy", member(array)) for key, array in SCAN.items())


# Configurations.

#: A value out of range for every key, and the rule that it breaks; a test walks the fields.
BAD_VALUES: Mapping[str, tuple[str, str]] = {
    "preset": ("qick", "must be one of seed_study, stage_a, quick, scan, smoke; did you mean quick?"),
    "study": (
        "../evil",
        "must be a name without quotes, control characters or any of / \\ : * ? < > | # %, and not begin "
        "with a dot or a space",
    ),
    "arm": (
        "it's",
        "must be a name without quotes, control characters or any of / \\ : * ? < > | # %, and not begin "
        "with a dot or a space",
    ),
    "seed": ("4294967296", "must be < 4294967296"),
    "data.path": ("nowhere.npz", "must be a readable file: No such file or directory"),
    "data.quantity": ("intensity", "must be 'auto', 'counts' or 'amplitude'"),
    "data.N": ("63", "must be even"),
    "data.gridsize": ("2", "must be 1: networks over several patches at once are not built"),
    "data.probe": ("nowhere.npz", "must be curved_disk, disk or a readable file: No such file or directory"),
    "data.probe_radius_px": ("0", "must be > 0"),
    "data.probe_curvature_rad": ("1e9", "must be <= 1000"),
    "data.objects": ("cats", "must be 'lines', 'grf' or 'image'"),
    "data.phase": ("yes", "must be 'tanh' or 'none'"),
    "data.object_size": ("1000000000", "must be <= 16384"),
    "data.nimgs_train": ("1000000", "must be <= 1000"),
    "data.nimgs_val": ("0", "must be >= 1"),
    "data.nimgs_test": ("1001", "must be <= 1000"),
    "data.stride_train_px": ("0", "must be >= 1"),
    "data.stride_val_px": ("-10", "must be >= 1"),
    "data.stride_test_px": ("2.5", "must be a valid integer, unable to parse string as an integer"),
    "data.max_train_patches": ("0", "must be >= 1"),
    "data.max_val_patches": ("none", "must be a valid integer, unable to parse string as an integer"),
    "data.nphotons": ("1e30", "`data.nphotons` (=1e+30) must be 0.52 to 1e+16"),
    "data.seed": ("-1", "must be >= 0"),
    "model.arch": (
        "hybird",
        "must be one of hybrid, stable_hybrid, prenorm_hybrid, hybrid_original, fno, cnn; did you mean hybrid?",
    ),
    "model.width": ("100000", "must be <= 1024"),
    "model.fno_blocks": ("65", "must be <= 64"),
    "model.modes": ("40", "must be <= 17 at N=32"),
    "model.min_resolution": ("1", "must be >= 2"),
    "model.max_channels": ("0", "must be >= 1"),
    "model.gamma_init": ("1e300", "must be <= 1000"),
    "model.layerscale_init": ("-1e300", "must be >= -1000"),
    "model.norm_centred": ("2", "must be a valid boolean, unable to interpret input"),
    "model.norm_bias": ("maybe", "must be a valid boolean, unable to interpret input"),
    "clip.algo": ("nrom", "must be 'none', 'norm', 'value' or 'agc'"),
    "clip.val": ("1e300", "must be <= 1000000000000000000000000000000"),
    "clip.granularity": ("layer", "must be 'unit' or 'tensor'"),
    "optim.name": ("lion", "must be 'adam', 'adamw' or 'sgd'"),
    "optim.lr": ("0", "must be > 0"),
    "optim.weight_decay": ("-0.1", "must be >= 0"),
    "optim.momentum": ("1", "must be < 1"),
    "optim.schedule": ("linear", "must be 'constant' or 'cosine'"),
    "optim.warmup_steps": ("-1", "must be >= 0"),
    "train.epochs": ("0", "must be >= 1"),
    "train.give_up_after": ("1", "must be < 1"),
    "train.batch_size": ("1e99", "must be a valid integer, unable to parse string as an integer"),
    "train.loss": ("mse", "must be 'mae' or 'poisson'"),
    "train.learn_probe": ("maybe", "must be a valid boolean, unable to interpret input"),
    "train.probe_lr": ("inf", "must be a finite number"),
    "train.overlap_weight": ("1.01", "must be <= 1"),
    "train.accelerator": ("tpu", "must be 'auto', 'cpu', 'gpu' or 'mps'"),
    "train.devices": ("0", "must be >= 1"),
    "train.nodes": ("0", "must be >= 1"),
    "train.strategy": ("fsdp", "must be 'auto' or 'ddp'"),
    "train.threads": ("0", "must be >= 1"),
    "train.cuda_graph": ("auto", "must be a valid boolean, unable to interpret input"),
    "train.checkpoint_every_s": ("0", "must be > 0"),
    "train.layer_norms_every_steps": ("0", "must be >= 1"),
    "train.picture_every_epochs": ("0", "must be >= 1"),
    "train.artifacts": ("none", "must be 'all' or 'numbers'"),
}

TRAIN = ("train", "--preset", "smoke")


def _one_key(key: str, value: str, rule: str) -> Case:
    """A bad value of one key; the dataset is what finds the files that are not there."""
    message = rule if rule.startswith("`") else f"`{key}` (={value}) {rule}"
    return Case(
        f"a bad value of {key}", ("train", *(() if key == "preset" else TRAIN[1:]), f"--{key}={value}"), message
    )


def yaml(text: str | bytes | Callable[[], str], name: str = "arm.yaml") -> Maker:
    """Write a YAML file."""

    def content() -> bytes:
        found = text() if callable(text) else text
        return found if isinstance(found, bytes) else found.encode()

    return file(content, name)


def _laughs(first: str, rest: str) -> str:
    """Ten lines, each of which stands for ten times the one before."""
    lines = [f"a0: &a0 {first}"]
    for depth in range(1, 11):
        lines.append(f"a{depth}: &a{depth} {rest.format(', '.join([f'*a{depth - 1}'] * 10), depth=depth)}")
    return "\n".join(lines) + "\n"


CONFIG = ("train", "--config", "arm.yaml")
ARMS = ("study", "--preset", "smoke", "--arms", "arms.yaml")

CONFIGS = (
    *(_one_key(key, value, rule) for key, (value, rule) in BAD_VALUES.items()),
    Case(
        "a misspelt key",
        (*TRAIN, "--model.mdoes", "8"),
        "`model.mdoes` (=8) is no parameter; did you mean model.modes?",
    ),
    Case("a key without a value", (*TRAIN, "--lr"), "argument --lr: expected one argument"),
    Case(
        "a value that looks like an option",
        (*TRAIN, "--study", "--print-config"),
        "argument --study: expected one argument",
    ),
    Case("a stray word", (*TRAIN, "stray"), "`stray` is no argument of this command"),
    Case("NaN", (*TRAIN, "--lr", "nan"), "`optim.lr` (=nan) must be a finite number"),
    Case("infinity", (*TRAIN, "--lr=-inf"), "`optim.lr` (=-inf) must be a finite number"),
    Case(
        "a fraction for a whole number",
        (*TRAIN, "--width", "8.5"),
        "`model.width` (=8.5) must be a valid integer, unable to parse string as an integer",
    ),
    Case(
        "an empty value of a dotted key",
        (*TRAIN, "--model.width", ""),
        "`model.width` (=) must be a valid integer, unable to parse string as an integer",
    ),
    Case(
        "a number of 401 digits",
        (*TRAIN, "--epochs", "1" + 400 * "0"),
        f"`train.epochs` (=1{99 * '0'}...{100 * '0'}, 401 characters) must be <= 1000000",
    ),
    Case(
        "a number of 5000 digits, more than Python converts",
        (*TRAIN, "--epochs", 5000 * "9"),
        f"`train.epochs` (={100 * '9'}...{100 * '9'}, 5000 characters) must be an integer of at most 4300 digits",
    ),
    Case(
        "a value of 100,000 letters",
        (*TRAIN, "--loss", 100_000 * "x"),
        f"`train.loss` (={100 * 'x'}...{100 * 'x'}, 100000 characters) must be 'mae' or 'poisson'",
    ),
    Case(
        "a value that drives the terminal",
        (*TRAIN, "--loss", "\x1b[31mmae\x07\nfnostab: fine"),
        "`train.loss` (=\\x1b[31mmae\\x07\\nfnostab: fine) must be 'mae' or 'poisson'",
    ),
    Case(
        "a name with a line break",
        (*TRAIN, "--study", "a\nb"),
        "`study` (=a\\nb)" + NAME,
    ),
    Case("a key that drives the terminal", (*TRAIN, "--\x1b[2J", "1"), "`\\x1b[2J` (=1) is no parameter"),
    Case(
        "two values for one key, flat and dotted",
        (*TRAIN, "--lr", "0.1", "--optim.lr", "0.2"),
        "`optim.lr` (=0.2) is given twice, also as 0.1",
    ),
    Case(
        "an object smaller than a patch",
        (*TRAIN, "--N", "64", "--data.object_size", "40"),
        "`data.object_size` (=40) must be >= `data.N` (=64)",
    ),
    Case(
        "a stride for ten billion patches",
        (*TRAIN, "--data.object_size", "16384", "--data.stride_val_px", "1"),
        "`data.stride_val_px` (=1) must be larger: 267420609 patches are more than 16777216",
    ),
    Case(
        "the preset scan without a scan",
        ("train", "--preset", "scan"),
        "`data` (=) must name a measured scan (.npz or .npz.bz2) with preset scan",
    ),
    Case(
        "a config that is not there", CONFIG, "`config` (=arm.yaml) must be a readable file: No such file or directory"
    ),
    Case(
        "a config that is a folder", ("train", "--config", "."), "`config` (=.) must be a readable file: Is a directory"
    ),
    Case(
        "a binary config",
        CONFIG,
        "`config` (=arm.yaml) must be YAML: it is no text in UTF-8",
        yaml(b"\x93NUMPY\x01\x00\xff\xfe\x00"),
    ),
    Case(
        "a config with control characters",
        CONFIG,
        "`config` (=arm.yaml) must be YAML: it holds the character \\x1b",
        yaml(b"study: a\x1b[2J\n"),
    ),
    Case("a config that is a list", CONFIG, "`config` (=arm.yaml) must hold keys and values", yaml("- 1\n- 2\n")),
    Case(
        "a config that is not YAML",
        CONFIG,
        "`config` (=arm.yaml) must be YAML: expected ',' or ']', but got '<stream end>', line 2",
        yaml("lr: [0.1\n"),
    ),
    Case("an empty config", CONFIG, "`config` (=arm.yaml) must hold keys and values", yaml("")),
    Case(
        "a config that calls a function",
        CONFIG,
        "`config` (=arm.yaml) must be YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system', line 1",
        yaml("lr: !!python/object/apply:os.system ['touch owned']\n"),
    ),
    Case(
        "a config that makes an object",
        CONFIG,
        "`config` (=arm.yaml) must be YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/name:os.system', line 1",
        yaml("lr: !!python/name:os.system\n"),
    ),
    Case(
        "aliases of aliases of lists: billions of values",
        CONFIG,
        "`config` (=arm.yaml) must hold at most 50000 keys and values, aliases written out",
        yaml(lambda: _laughs("[x]", "[{}]")),
    ),
    Case(
        "aliases of aliases of mappings: billions of keys",
        CONFIG,
        "`config` (=arm.yaml) must hold at most 50000 keys and values, aliases written out",
        yaml(lambda: _laughs("{x: 1}", "{{a: [{}], b: 1}}")),
    ),
    Case(
        "merged aliases: billions of keys",
        CONFIG,
        "`config` (=arm.yaml) must hold at most 50000 keys and values, aliases written out",
        yaml(lambda: _laughs("{x: 1}", "{{<<: [{}], y{depth}: 1}}")),
    ),
    Case(
        "a config that holds itself",
        CONFIG,
        "`config` (=arm.yaml) must not hold itself",
        yaml("model: &a {width: 8, more: *a}\n"),
    ),
    Case(
        "a config nested 5000 deep",
        CONFIG,
        "`config` (=arm.yaml) must be YAML that is nested less deeply",
        yaml(lambda: "a: " + 5000 * "[\n"),
    ),
    Case(
        "a config of a megabyte",
        CONFIG,
        "`config` (=arm.yaml) must have at most 262144 bytes",
        yaml(lambda: "# comment\n" * 100_000),
    ),
    Case(
        "a key twice in a config",
        CONFIG,
        "`config` (=arm.yaml) must have each key once, and has `lr` 2 times",
        yaml("lr: 0.1\nlr: 0.2\n"),
    ),
    Case(
        "a key twice, nested and dotted",
        CONFIG,
        "`config` (=arm.yaml) must have each key once, and has `model.width` twice",
        yaml("model: {width: 8}\nmodel.width: 16\n"),
    ),
    Case(
        "a date that is none in a config",
        CONFIG,
        "`config` (=arm.yaml) must be YAML: it holds a date or a number that cannot be read",
        yaml("study: 2026-99-99\n"),
    ),
    Case(
        "a number of 5000 digits in a config",
        CONFIG,
        "`config` (=arm.yaml) must be YAML: it holds a date or a number that cannot be read",
        yaml(lambda: f"epochs: {5000 * '9'}\n"),
    ),
    Case(
        "a hexadecimal number of 5000 digits",
        CONFIG,
        "`train.epochs` (=a number of 20000 bits) must be <= 1000000",
        yaml(lambda: f"epochs: 0x{5000 * 'f'}\n"),
    ),
    Case(
        "a truth value for a number", CONFIG, "`train.epochs` (=True) must not be true or false", yaml("epochs: yes\n")
    ),
    Case("a list for a number", CONFIG, "`train.epochs` (=[1, 2]) must be a valid integer", yaml("epochs: [1, 2]\n")),
    Case(
        "a file name with NUL",
        CONFIG,
        "`data.path` (=scan\\x00.npz) must be the name of a file",
        yaml('preset: smoke\ndata.path: "scan\\0.npz"\n'),
    ),
    Case("a key that is a number", CONFIG, "`1` (=2) is no parameter", yaml("1: 2\n")),
    Case(
        "an unknown key in a config",
        CONFIG,
        "`model.widht` (=8) is no parameter; did you mean model.width?",
        yaml("model: {widht: 8}\n"),
    ),
    Case(
        "arms that are no list",
        ARMS,
        "`arms` (=arms.yaml) must hold a list `arms`, each with a name and keys",
        yaml("arms: control\n", "arms.yaml"),
    ),
    Case(
        "an arm without a name",
        ARMS,
        "`name` (=None) of an arm must be a name",
        yaml("arms: [{arch: cnn}]\n", "arms.yaml"),
    ),
    Case(
        "an arm whose name is a path",
        ARMS,
        "`arm` (=../x)" + NAME,
        yaml("arms: [{name: ../x, arch: cnn}]\n", "arms.yaml"),
    ),
    Case(
        "an arm with a number for a key",
        ARMS,
        "`1` (=2) is no parameter",
        yaml("arms: [{name: a, 1: 2}]\n", "arms.yaml"),
    ),
    Case(
        "an arm with data of its own",
        ARMS,
        "`data.N` (=16) of arm a must be the same for all arms: give it outside of them",
        yaml("arms: [{name: a, data.N: 16}]\n", "arms.yaml"),
    ),
    Case(
        "two arms of one name",
        ARMS,
        "`arms` (=a) must have each name once",
        yaml("arms: [{name: a}, {name: a}]\n", "arms.yaml"),
    ),
    Case(
        "a grid of two million runs",
        ARMS,
        "`seeds` and `grid` (=2000000 runs) must make at most 10000 runs",
        yaml(
            lambda: f"arms: [{{name: a}}]\ngrid: {{lr: {[*range(1, 2001)]}, width: {[*range(1, 1001)]}}}\n",
            "arms.yaml",
        ),
    ),
    Case(
        "no seeds",
        ("study", "--preset", "smoke", "--seeds", "0"),
        "`seeds` (=0) must be how many there are (1 to 10000), or different seeds with commas between",
    ),
    Case(
        "a trillion seeds",
        ("study", "--preset", "smoke", "--seeds", "1000000000000"),
        "`seeds` (=1000000000000) must be how many there are (1 to 10000), or different seeds with commas between",
    ),
    Case(
        "one seed twice",
        ("study", "--preset", "smoke", "--seeds", "3,3"),
        "`seeds` (=3,3) must be how many there are (1 to 10000), or different seeds with commas between",
    ),
    Case(
        "an unknown launcher",
        ("study", "--preset", "smoke", "--launcher", "moon"),
        "`launcher` (=moon) must be one of processes, inline, ray",
    ),
    Case("no workers", ("study", "--preset", "smoke", "--workers", "0"), "`workers` (=0) must be a whole number >= 1"),
)


# The tracking store, studies and models.


def _torn_database(folder: Path) -> None:
    (folder / "torn.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 16)


def _no_database(folder: Path) -> None:
    (folder / "text.db").write_text("this is no database\n")


def _cache_is_a_file(folder: Path) -> None:
    scan()(folder)
    (folder / "occupied").write_text("a file where the cache should be\n")


def _store(uri: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": uri}


def _model(text: str) -> Maker:
    """A scan and a folder `model` with an `MLmodel` file."""

    def make(folder: Path) -> None:
        scan()(folder)
        (folder / "model").mkdir()
        (folder / "model" / "MLmodel").write_text(text)

    return make


def reconstruct(model: str, *more: str) -> tuple[str, ...]:
    return ("reconstruct", "--model", model, "--data", "scan.npz", *more)


_TENSORS = (
    'signature: {inputs: \'[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 16, 16]}}]\', '
    'outputs: \'[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 16, 16, 2]}}]\'}\n'
)

STORES = (
    Case(
        "no store yet: compare",
        ("compare",),
        "`MLFLOW_TRACKING_URI` (=sqlite:///mlflow.db) must name a tracking store: there is none yet",
    ),
    Case(
        "no store yet: inspect",
        ("inspect", "0123"),
        "`MLFLOW_TRACKING_URI` (=sqlite:///mlflow.db) must name a tracking store: there is none yet",
    ),
    Case(
        "no store yet: registry",
        ("registry", "show"),
        "`MLFLOW_TRACKING_URI` (=sqlite:///mlflow.db) must name a tracking store: there is none yet",
    ),
    Case(
        "no store yet: a registered model",
        reconstruct("models:/fnostab-stage-a@champion"),
        "`MLFLOW_TRACKING_URI` (=sqlite:///mlflow.db) must name a tracking store: there is none yet",
        scan(),
    ),
    Case(
        "a store in a folder that is not there",
        TRAIN,
        "`MLFLOW_TRACKING_URI` (=sqlite:///nowhere/mlflow.db) must lie in a folder that exists",
        None,
        _store("sqlite:///nowhere/mlflow.db"),
    ),
    Case(
        "a store that is no database",
        TRAIN,
        "`MLFLOW_TRACKING_URI` (=sqlite:///text.db) must be a sqlite database",
        _no_database,
        _store("sqlite:///text.db"),
    ),
    Case(
        "a store that is a torn database",
        TRAIN,
        "`MLFLOW_TRACKING_URI` (=sqlite:///torn.db) must be a sqlite database",
        _torn_database,
        _store("sqlite:///torn.db"),
    ),
    Case(
        "a torn database: inspect",
        ("inspect", "0123"),
        "`MLFLOW_TRACKING_URI` (=sqlite:///torn.db) must be a sqlite database",
        _torn_database,
        _store("sqlite:///torn.db"),
    ),
    Case(
        "a store of an unknown kind",
        TRAIN,
        "`MLFLOW_TRACKING_URI` (=carrier-pigeon://coop) must be of a kind that MLflow knows",
        None,
        _store("carrier-pigeon://coop"),
    ),
    Case(
        "a cache that is a file",
        IMPORT,
        "`FNOSTAB_CACHE` (=occupied) must be a writable directory: File exists",
        _cache_is_a_file,
        {"FNOSTAB_CACHE": "occupied"},
    ),
    Case(
        "an unknown study",
        ("compare", "--study", "nothing"),
        "`study` (=nothing) must be the tag of runs in the tracking store: there is none",
        in_store=True,
    ),
    Case(
        "a study with quotes",
        ("compare", "--study", "it's' or 'a' = 'a"),
        "`study` (=it's' or 'a' = 'a)" + NAME,
        in_store=True,
    ),
    Case(
        "a study that is a path",
        ("compare", "--study", "../../evil"),
        "`study` (=../../evil)" + NAME,
        in_store=True,
    ),
    Case(
        "a study without a finished run",
        ("compare", "--study", "unfinished"),
        "`study` (=unfinished) must have a finished run: its 1 are RUNNING",
        in_store=True,
    ),
    Case(
        "an unknown dataset",
        ("compare", "--study", "small", "--dataset", "zz"),
        "`dataset` (=zz) must be the beginning of one of "
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        in_store=True,
    ),
    Case(
        "an unknown parent",
        ("compare", "--study", "small", "--parent", "zz"),
        "`parent` (=zz) must be the parent of runs of study small: it is of none",
        in_store=True,
    ),
    Case(
        "neither true nor false",
        ("compare", "--study", "small", "--promote", "maybe"),
        "`promote` (=maybe) must be true or false",
        in_store=True,
    ),
    Case(
        "a folder that is not there",
        ("compare", "--study", "small", "--out", "no/such"),
        "`out` (=no/such) must be a folder, or a new one in a folder that exists",
        in_store=True,
    ),
    Case(
        "Stage B of an unknown study",
        ("study", "--stage", "b", "--stage_a", "nothing"),
        "`study` (=nothing) must be the tag of runs in the tracking store: there is none",
        in_store=True,
    ),
    Case(
        "an unknown run",
        ("inspect", "0" * 32),
        "`run` (=00000000000000000000000000000000) must be a run in the tracking store "
        "sqlite:///FOLDER/mlflow.db: Run with id=00000000000000000000000000000000 not found",
        in_store=True,
    ),
    Case(
        "a run that is a path",
        ("inspect", "../../etc/passwd"),
        "`run` (=../../etc/passwd) must be a run in the tracking store sqlite:///FOLDER/mlflow.db: Invalid "
        "value \"../../etc/passwd\" for parameter 'run_id' supplied.",
        in_store=True,
    ),
    Case(
        "a run with quotes and a line break",
        ("inspect", "' or '1' = '1\n"),
        "`run` (=' or '1' = '1\\n) must be a run in the tracking store sqlite:///FOLDER/mlflow.db: Invalid "
        "value \"' or '1' = '1\\n\" for parameter 'run_id' supplied.",
        in_store=True,
    ),
    Case(
        "an unknown model",
        ("registry", "show", "fnostab-nothing"),
        "`model` (=fnostab-nothing) must be a model in the registry sqlite:///mlflow.db: it has "
        "fnostab-gone, fnostab-small",
        in_store=True,
    ),
    Case(
        "a model name that cannot be",
        ("registry", "show", "a/b:c"),
        "`model` (=a/b:c) must be a model in the registry sqlite:///mlflow.db: it has fnostab-gone, fnostab-small",
        in_store=True,
    ),
    Case(
        "a rollback of an unknown model",
        ("registry", "rollback", "fnostab-nothing"),
        "`model` (=fnostab-nothing) must be a model in the registry sqlite:///mlflow.db: it has "
        "fnostab-gone, fnostab-small",
        in_store=True,
    ),
    Case(
        "a rollback without a previous champion",
        ("registry", "rollback", "fnostab-small"),
        "`model` (=fnostab-small) must have a version to go back to: none has the alias `previous`, or the "
        "one that had it was deleted",
        in_store=True,
    ),
    Case(
        "a champion that was deleted",
        reconstruct("models:/fnostab-gone@champion"),
        "`model` (=models:/fnostab-gone@champion) must be a model in the tracking store: Registered model "
        "alias champion not found.",
        in_store=True,
    ),
    Case(
        "a version that is not there",
        reconstruct("models:/fnostab-small/7"),
        "`model` (=models:/fnostab-small/7) must be an MLflow model that can be read: Model Version "
        "(name=fnostab-small, version=7) not found",
        in_store=True,
    ),
    Case(
        "no model",
        reconstruct(""),
        "`model` (=) must be an MLflow model that can be read: No such artifact: 'MLmodel'",
        scan(),
    ),
    Case(
        "a run without a model",
        reconstruct(f"runs:/{'0' * 32}/model"),
        "`model` (=runs:/00000000000000000000000000000000/model) must be an MLflow model that can be read: "
        "Run with id=00000000000000000000000000000000 not found",
        in_store=True,
    ),
    Case(
        "a registered model whose files are gone",
        reconstruct("models:/fnostab-small/1"),
        "`model` (=models:/fnostab-small/1) must be an MLflow model that can be read: No such artifact: 'MLmodel'",
        in_store=True,
    ),
    Case(
        "a folder that is no model",
        reconstruct("."),
        "`model` (=.) must be an MLflow model that can be read: No such artifact: 'MLmodel'",
        scan(),
    ),
    Case(
        "a model of another library",
        reconstruct("model"),
        EXPORTED + "its flavors are python_function, sklearn",
        _model("flavors: {sklearn: {}, python_function: {}}"),
    ),
    Case(
        "an MLmodel file of nonsense",
        reconstruct("model"),
        "`model` (=model) must be an MLflow model that can be read: list indices must be integers or slices, not str",
        _model("- 1\n- 2\n"),
    ),
    Case(
        "a model that brings code",
        reconstruct("model"),
        EXPORTED + "it brings code of its own",
        _model("flavors: {pytorch: {model_data: data, code: code}}\n" + _TENSORS),
    ),
    Case(
        "a model with another signature",
        reconstruct("model"),
        EXPORTED + "it takes float32 (-1, 16, 16) to float32 (-1, 16, 16)",
        _model("flavors: {pytorch: {model_data: data}}\n" + _TENSORS.replace("16, 2]", "16]")),
    ),
    Case(
        "a model without weights",
        reconstruct("model"),
        EXPORTED + "it has no data/model.pt2, or a pickle besides",
        _model("flavors: {pytorch: {model_data: data}}\n" + _TENSORS),
    ),
    Case(
        "a model that is not there",
        reconstruct("nowhere"),
        "`model` (=nowhere) must be models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN/model or a folder that exists",
        scan(),
    ),
    Case("a scan that is not there", reconstruct("model"), "`data` (=scan.npz) must be a scan, a file that exists"),
    Case(
        "the scan as output",
        reconstruct("model", "--out", "scan.npz"),
        "`out` (=scan.npz) must be another file than the scan",
        scan(),
    ),
    Case(
        "a reconstruction into a folder that is not there",
        reconstruct("model", "--out", "no/r.npz"),
        "`out` (=no/r.npz) must be a file in a folder that exists",
        scan(),
    ),
    Case(
        "no patterns at a time",
        reconstruct("model", "--batch_size", "0"),
        "`batch_size` (=0) must be a whole number >= 1",
        scan(),
    ),
)

GROUPS: Mapping[str, tuple[Case, ...]] = {
    "Measured scans": SCANS,
    "Configurations": CONFIGS,
    "Stores, studies and models": STORES,
}


def prepare_store(folder: Path) -> None:
    """Fill the store `mlflow.db` in `folder`, the working directory, with what the cases `in_store` speak of."""
    import mlflow

    from fnostab.tracking.store import open_store

    scan()(folder)
    open_store()
    client = mlflow.MlflowClient()
    for study, status in (("small", "FINISHED"), ("unfinished", "RUNNING")):
        run_id = client.create_run("0").info.run_id
        tags = {"study": study, "arm": "control", "seed": "1", "dataset_sha256": "a" * 64}
        tags |= {"verdict": "converged"} if status == "FINISHED" else {}
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        if status == "FINISHED":
            client.set_terminated(run_id, status)
        name = f"fnostab-{'gone' if study == 'unfinished' else study}"
        client.create_registered_model(name)
        client.create_model_version(name, source=str(folder / "no-such-model"), run_id=run_id)
        client.set_registered_model_alias(name, "champion", "1")
    client.delete_model_version("fnostab-gone", "1")


# The docs.

BEGIN, END = "<!-- hostile input: begin -->", "<!-- hostile input: end -->"


def table() -> str:
    """The cases as Markdown, a table a group."""
    parts = []
    for name, cases in GROUPS.items():
        rows = [
            f"| {_cell(case.what + _lowered(case))} | {_code(case.message)} | {case.code} | nothing |" for case in cases
        ]
        head = "| input | message on stderr, after `fnostab: error:` | exit code | written |\n|---|---|---|---|"
        parts.append("\n".join([f"### {name}", "", head, *rows]))
    return "\n\n".join(parts) + "\n"


def _lowered(case: Case) -> str:
    return f" (with the limit of 16 GiB lowered to {case.max_bytes} bytes)" if case.max_bytes else ""


def _cell(text: str) -> str:
    """Text in a cell: a pipe would end it, and Markdown would read the rest."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|" else c for c in text)


def _code(text: str) -> str:
    """Code in a cell; it may hold backticks, and pipes, which end cells even there."""
    return "`` " + text.replace("|", "\\|") + " ``"


def with_table(text: str) -> str:
    """The page `text` with the table between its markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
