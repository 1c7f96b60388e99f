"""Bad input as a table: what is given to `fnostab`.

The one line that each is refused with stands in docs/reliability.md, under the same name; `test_hostile.py` compares.
"""

import bz2
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hostile_hdf5
import numpy as np

Maker = Callable[[Path], None]


@dataclass(frozen=True)
class Input:
    """One bad input: `argv` as `fnostab` gets it, and the files it speaks of.

    `make` writes the files into the working directory, `environment` is set besides that of all tests, `max_bytes`
    stands in for `fnostab.formats.npz.MAX_BYTES`. With `in_store` the working directory is that of `prepare_store`.
    """

    argv: Sequence[str]
    make: Maker | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int | None = None
    in_store: bool = False


def _made(argv: Sequence[str], makers: Mapping[str, Maker]) -> dict[str, Input]:
    """One command line with another file each time."""
    return {name: Input(argv, make) for name, make in makers.items()}


def _said(commands: Mapping[str, Sequence[str]], **others: Any) -> dict[str, Input]:
    """Command lines that need no files of their own."""
    return {name: Input(argv, **others) for name, argv in commands.items()}


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


SCANS = {
    **_said(
        {
            "a file that is not there": IMPORT,
            "a folder": ("data", "import", ".", "--N", "16"),
            "a device without an end": ("data", "import", "/dev/zero", "--N", "16"),
        }
    ),
    **_made(
        IMPORT,
        {
            "an empty file": file(b""),
            "text": file(b"x,y,counts\n1,2,3\n"),
            "a pickle": file(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05hello\x94."),
            "a bare NPY file": file(lambda: member(COUNTS)),
            "a truncated file": file(lambda: npz()[:-30]),
            "a truncated .npz.bz2": file(lambda: bz2.compress(npz())[:-30]),
            "one byte flipped": file(lambda: _flipped(npz(), len(npz()) // 3)),
            "an archive of nothing": file(lambda: archive()),
            "unknown keys": scan(data=None, patterns=COUNTS),
            "patterns without positions": scan(scan=None),
            "PtychoPINN style, quantity not said": _pairs(),
            "pickled objects": scan(data=np.array([{"a": 1}] * N_POSITIONS, dtype=object)),
            "patterns of text": scan(data=np.full((N_POSITIONS, M, M), "7")),
            "patterns of dates": scan(data=COUNTS.astype("datetime64[s]")),
            "structured patterns": scan(data=np.zeros(COUNTS.shape, [("a", "f4"), ("b", "i2")])),
            "complex patterns": scan(data=COUNTS * 1j),
            "one pattern": scan(data=COUNTS[0]),
            "more patterns than positions": scan(scan=POSITIONS[:-1]),
            "a NaN count": scan(data=holding(np.nan)),
            "an infinite count": scan(data=holding(np.inf)),
            "a negative count": scan(data=holding(-1)),
            "a count beyond float32": scan(data=COUNTS.astype(np.float64) * 1e300),
            "dark patterns": scan(data=0 * COUNTS),
            "nine positions": scan(data=COUNTS[:9], scan=POSITIONS[:9]),
            "positions with three columns": scan(scan=np.ones((N_POSITIONS, 3))),
            "a NaN position": scan(scan=moved(np.nan)),
            "an infinite position": scan(scan=moved(np.inf)),
            "positions that are all equal": scan(scan=0 * POSITIONS),
            "positions in metres": scan(scan=1e-9 * POSITIONS),
            "positions whose distance overflows": scan(scan=POSITIONS * 5e306),
            "one position far away": scan(scan=moved(20000)),
            "complex positions": scan(scan=POSITIONS * 1j),
            "no probe": scan(probe=None),
            "a probe that is not square": scan(probe=PROBE[:-2]),
            "a dark probe": scan(probe=0 * PROBE),
            "a NaN probe": scan(probe=np.nan * PROBE),
            "a probe too bright for float32": scan(probe=1e30 * PROBE),
            "a header that declares terabytes": file(lambda: scan_of(data=member(COUNTS, shape=TERABYTES))),
            "the same within the limit: a megabyte that is not there": file(lambda: _promising(10**6)),
            "a deflated array larger than the archive says": file(lambda: _overflowing()),
            "members packed by bzip2, which zipfile unpacks without a limit": file(
                lambda: archive(*_members(), packed_by=zipfile.ZIP_BZIP2)
            ),
            "members packed by an unknown method": file(lambda: flagged(npz(), method=99)),
            "encrypted members": file(lambda: flagged(npz(), flags=1)),
            "an array that is there twice": file(lambda: archive(*_members(), ("scan.npy", member(0)))),
            "member names that lead out of the folder": file(
                lambda: archive(("../evil.npy", member(0)), ("/abs.npy", member(0)))
            ),
            "member names that drive the terminal": file(
                lambda: archive(("\x1b[2J\x1b]0;owned\x07.npy", member(0)), ("a\nfnostab: error: b\r.npy", member(0)))
            ),
            "a member name of 60,000 letters": file(lambda: archive((f"{'a' * 60000}.npy", member(0)))),
            "a member name with NUL, which zipfile cuts there": file(
                lambda: patched(archive(("data.npyX", member(0))), b"data.npyX", b"data.npy\0")
            ),
            "NPY version 9": file(lambda: scan_of(data=patched(member(COUNTS), b"NUMPY\x01", b"NUMPY\x09"))),
            "a header that is code": file(
                lambda: scan_of(data=raw_member(b"__import__('os').system('touch owned')", bytes(64)))
            ),
            "a header of brackets without end": file(lambda: scan_of(data=raw_member(b"[" * 9000, bytes(64)))),
            "a header with a negative shape": file(lambda: scan_of(data=member(COUNTS, shape=(-12, 16, 16)))),
            "a header with an unknown type": file(lambda: scan_of(data=member(COUNTS, descr="<q9"))),
            "a header with a shape beyond 64 bits": file(lambda: scan_of(data=member(np.zeros(0), shape=(0, 10**30)))),
        },
    ),
    "more rows than columns": Input((*IMPORT, "--quantity", "counts"), _pairs(xcoords=POSITIONS[1:, 1])),
    "patterns smaller than N": Input(("data", "import", "scan.npz", "--N", "64"), scan()),
    "a probe file that is none": Input((*IMPORT, "--probe", "probe.npz"), with_probe(lambda: b"PK nonsense")),
    "a probe file of N x N NaN": Input(
        (*IMPORT, "--probe", "probe.npz"), with_probe(lambda: npz(probe=np.full((M, M), np.nan)))
    ),
    "a header and a directory that declare 3 GB in a small file, with the limit lowered to 1 GiB": Input(
        IMPORT, file(lambda: _promising(3 * 10**9)), max_bytes=2**30
    ),
    "a .bz2 bomb, with the limit lowered to 1 MiB": Input(
        IMPORT, file(lambda: bz2.compress(bytes(2**22))), max_bytes=2**20
    ),
    "a good scan for an arm at another N": Input(
        ("train", "--preset", "scan", "--data", "scan.npz", "--N", "32"), scan()
    ),
    "a bad scan for an arm": Input(("train", "--preset", "scan", "--data", "scan.npz", "--N", "16"), file(b"PK")),
    "a bad scan for a study": Input(("study", "--preset", "scan", "--data", "scan.npz", "--N", "16"), file(b"PK")),
    "output of another kind": Input((*IMPORT, "--out", "own.txt"), scan()),
    "output into a folder that is not there": Input((*IMPORT, "--out", "nowhere/own.npz"), scan()),
}


# Configurations.

#: A value out of range for every key; a test walks the fields.
BAD_VALUES = dict(
    re.findall(
        r"(\S+?)=(\S+)",
        """
preset=qick study=../evil arm=it's seed=4294967296 data.path=nowhere.npz data.quantity=intensity data.N=63
data.format=a?b data.paths=a?b data.positions=a?b data.mask=a?b data.unit=inch data.orient=upside_down
data.object_pixel_m=0 data.energy_keV=-8 data.distance_m=0 data.detector_pixel_m=75 data.fft_order=middle
data.center=middle data.bin=0 data.mask_value=none data.bad_pixels=keep data.skip_frames=3- data.scan_index=-1
data.modes=0 data.photons_per_pattern=0
data.gridsize=3 data.probe=nowhere.npz data.probe_radius_px=0 data.probe_curvature_rad=1e9 data.objects=cats
data.phase=yes data.object_size=1000000000 data.nimgs_train=1000000 data.nimgs_val=0 data.nimgs_test=1001
data.stride_train_px=0 data.stride_val_px=-10 data.stride_test_px=2.5 data.max_train_patches=0
data.max_val_patches=none data.val=train data.val_choice=middle data.seeds=0 data.object_mean=-1
data.probe_aperture=round train.loss_scale=epoch
data.nphotons=1e30 data.seed=-1 model.arch=hybird model.width=100000 model.fno_blocks=65
model.modes=40 model.min_resolution=1 model.max_channels=0 model.gamma_init=1e300 model.layerscale_init=-1e300
model.norm_centred=2 model.norm_bias=maybe clip.algo=nrom clip.val=1e300 clip.granularity=layer clip.exclude=a,,b
clip.options=alpha clip.source_sha256=none optim.name=lion optim.betas=0.9 optim.eps=0
optim.lr=0 optim.weight_decay=-0.1 optim.momentum=1 optim.schedule=linear optim.warmup_steps=-1 train.epochs=0
train.mode=labels model.options=deep model.source_sha256=abc
train.give_up_after=1 train.select_by=phase_ssim train.batch_size=1e99 train.loss=mse train.learn_probe=maybe
train.probe_lr=inf
train.overlap_weight=1.01 train.accelerator=tpu train.devices=0 train.nodes=0 train.strategy=fsdp train.threads=0
train.precision=16-mixed
train.cuda_graph=auto train.checkpoint_every_s=0 train.layer_norms_every_steps=0 train.picture_every_epochs=0
train.watch_every_steps=0
train.artifacts=none train.init_from=best.ckpt
""",
    )
)

TRAIN = ("train", "--preset", "smoke")
SUPERVISED = (*TRAIN, "--train.mode", "supervised")


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

NETWORK = (*TRAIN, "--arch", "./net.py:Net")


def network(forward: str = "return self.out(x).movedim(1, -1).unsqueeze(3)", init: str = "", **kinds: str) -> Maker:
    """Write a file with a network of one convolution, but for what is given."""
    text = f"""
import torch

class Net({kinds.get("base", "torch.nn.Module")}):
    def __init__(self, depth=1{kinds.get("argument", "")}):
        super().__init__()
        self.out = torch.nn.Conv2d(1, 2, 1)
        {init or "pass"}

    def forward(self, x):
        {forward}
"""
    return yaml(text, "net.py")


RULE = (*TRAIN, "--clip_algo", "./rules.py:rule")


def rule(body: str, argument: str = "") -> Maker:
    """Write a file with a clipping rule that does what is given."""
    return yaml(f"import torch\n\ndef rule(module, value, state{argument}):\n    {body}\n", "rules.py")


RULES = {
    **_made(
        RULE,
        {
            "a rule's file that raises": yaml("raise OSError('no disk')", "rules.py"),
            "a rule's file without the rule": yaml("import torch", "rules.py"),
            "a rule that is no function": yaml("rule = 3", "rules.py"),
            "a rule that takes two arguments": yaml("def rule(module, value): pass", "rules.py"),
            "a rule that raises": rule("1 / 0"),
            "a rule that raises at the second step": rule("1 / (not state); state['x'] = torch.ones(())"),
            "a rule that returns a number": rule("return 1.0"),
            "a rule that remembers a number": rule("state['steps'] = 1"),
            "a rule that puts NaN into gradients": rule("next(module.parameters()).grad.mul_(float('nan'))"),
            "a rule that puts new gradients in place of the old": rule(
                "p = next(module.parameters()); p.grad = p.grad / 2"
            ),
        },
    ),
    **_made((*RULE, "--clip.options.keep", "1"), {"an option that a rule does not take": rule("pass", ", *, top=1")}),
    **_made((*RULE, "--clip.options.top", "all"), {"an option of another type": rule("pass", ", *, top: int = 1")}),
    **_made((*RULE, "--clip.source_sha256", 64 * "0"), {"a rule's file that has changed": rule("pass")}),
    **_made(
        (*TRAIN, "--clip_algo", "./rules.py:agc"),
        {"a rule with the name of a built-in one": yaml("def agc(module, value, state): pass", "rules.py")},
    ),
    **_said(
        {
            "a rule in __main__": (*TRAIN, "--clip_algo", "__main__:rule"),
            "a rule of a module that is not there": (*TRAIN, "--clip_algo", "no_such_package.rules:rule"),
            "a rule of a file that is not there": (*TRAIN, "--clip_algo", "./rules.py:rule"),
            "an option of a rule without options": (*TRAIN, "--clip_algo", "norm", "--clip.options.alpha", "1"),
            "an unknown option of a rule": (*TRAIN, "--clip_algo", "zclip", "--clip.options.beta", "0.9"),
            "an option out of bounds": (*TRAIN, "--clip_algo", "adagc", "--clip.options.beta", "1.5"),
            "a name to exclude that no parameter has": (*TRAIN, "--clip.exclude", "head.*"),
            "the hash of a built-in rule's source": (*TRAIN, "--clip.source_sha256", 64 * "0"),
            "betas of SGD": (*TRAIN, "--optim.name", "sgd", "--optim.betas", "0.9,0.95"),
            "a beta of 1": (*TRAIN, "--optim.betas", "0.9,1"),
            "three betas": (*TRAIN, "--optim.betas", "0.9,0.95,0.99"),
        }
    ),
    **_made(
        ARMS,
        {
            "an arm with a rule that takes other arguments": yaml(
                "arms: [{name: a, clip_algo: 'json:dump'}]", "arms.yaml"
            )
        },
    ),
}

CONFIGS = {
    **RULES,
    **_made(
        NETWORK,
        {
            "a network of a file that is not there": yaml("", "other.py"),
            "a network's file that is not Python": yaml("class Net\n", "net.py"),
            "a network's file that raises": yaml("raise RuntimeError('no luck')\n", "net.py"),
            "a network's file that ends the process": yaml("exit(3)\n", "net.py"),
            "a network's file without the network": yaml("", "net.py"),
            "a class that is no network": network(base="object"),
            "a number for a network": yaml("Net = 3\n", "net.py"),
            "a network in place of its class": yaml("import torch\nNet = torch.nn.Identity()\n", "net.py"),
            "a function that makes no network": yaml("def Net():\n    return 3\n", "net.py"),
            "a network that cannot be built": network(init="raise KeyError('no key')"),
            "a network with an argument that nothing fills": network(argument=", *, units"),
            "a network that learns nothing": network(init="self.out.requires_grad_(False)"),
            "a network with a lazy layer": network(init="self.more = torch.nn.LazyConv2d(2, 1)"),
            "a network that raises": network("return self.out(x, x)"),
            "a network that gives channels first": network("return self.out(x)"),
            "a network that gives two tensors": network("return x, x"),
            "a network that gives complex numbers": network(
                "return torch.fft.fft2(self.out(x)).movedim(1, -1)[:,:,:,None]"
            ),
            "a network that gives NaN": network("return self.out(x).movedim(1, -1).unsqueeze(3) / 0 * 0"),
            "a network whose output its parameters do not decide": network(
                "return torch.stack([x, x], -1).movedim(1, 3)"
            ),
            "a network that normalises over the batch": network(
                "x = self.out(x)\n        return (x - x.mean(0)).movedim(1, -1).unsqueeze(3)"
            ),
            "a network that takes batches of three for something else": network(
                "x = self.out(x).movedim(1, -1).unsqueeze(3)\n        return x[:1] if len(x) == 3 else x"
            ),
            "a network that cannot be exported": network(
                "y = self.out(x).movedim(1, -1).unsqueeze(3)\n        return y if y.sum() > 1e9 else y + 1"
            ),
        },
    ),
    **_said(
        {
            "a network in __main__": (*TRAIN, "--arch", "__main__:Net"),
            "a network of a module that is not there": (*TRAIN, "--arch", "no_such_package.networks:Net"),
            "a network without a name": (*TRAIN, "--arch", "./net.py:"),
            "an option of a built-in network": (*TRAIN, "--model.options.depth", "3"),
            "an option without a value": (*TRAIN, "--model.options.depth"),
            "an option that is no name": (*TRAIN, "--model.options.a-b", "3"),
            "an option that is infinite": (*TRAIN, "--model.options.depth", "-.inf"),
            "an option of a command that takes none": ("compare", "--study", "a", "--model.options.depth", "3"),
            "the hash of a built-in network's source": (*TRAIN, "--model.source_sha256", 64 * "0"),
        }
    ),
    **_made(
        (*NETWORK, "--model.options.width", "3"),
        {"an option that is a key of the config": network(argument=", width=3")},
    ),
    **_made((*NETWORK, "--model.options.size", "3"), {"an option that the network does not take": network()}),
    **_made((*NETWORK, "--data.gridsize", "2"), {"groups of patterns for a network that takes one": network()}),
    **_made((*NETWORK, "--model.source_sha256", 64 * "0"), {"a network's file that has changed": network()}),
    **_said({f"a bad value of {key}": (*TRAIN, f"--{key}={value}") for key, value in BAD_VALUES.items()}),
    **_said(
        {
            "a misspelt key": (*TRAIN, "--model.mdoes", "8"),
            "a misspelt key and its value in one word": (*TRAIN, "--model.mdoes=8"),
            "a key without a value": (*TRAIN, "--lr"),
            "a value that looks like an option": (*TRAIN, "--study", "--print-config"),
            "a stray word": (*TRAIN, "stray"),
            "a webhook of another scheme": (*TRAIN, "--notify", "ftp://a.example/x"),
            "a command to notify by that is not there": (*TRAIN, "--notify", "no-such-program --now"),
            "a command to notify by with an open quote": (*TRAIN, "--notify", "echo 'a"),
            "NaN": (*TRAIN, "--lr", "nan"),
            "infinity": (*TRAIN, "--lr=-inf"),
            "a fraction for a whole number": (*TRAIN, "--width", "8.5"),
            "an empty value of a dotted key": (*TRAIN, "--model.width", ""),
            "a number of 401 digits": (*TRAIN, "--epochs", "1" + 400 * "0"),
            "a number of 5000 digits, more than Python converts": (*TRAIN, "--epochs", 5000 * "9"),
            "a value of 100,000 letters": (*TRAIN, "--loss", 100_000 * "x"),
            "a value that drives the terminal": (*TRAIN, "--loss", "\x1b[31mmae\x07\nfnostab: fine"),
            "a name with a line break": (*TRAIN, "--study", "a\nb"),
            "a key that drives the terminal": (*TRAIN, "--\x1b[2J", "1"),
            "two values for one key, flat and dotted": (*TRAIN, "--lr", "0.1", "--optim.lr", "0.2"),
            "an object smaller than a patch": (*TRAIN, "--N", "64", "--data.object_size", "40"),
            "a stride for ten billion patches": (*TRAIN, "--data.object_size", "16384", "--data.stride_val_px", "1"),
            "groups of four patches in batches of ten": (*TRAIN, "--data.gridsize", "2", "--batch_size", "10"),
            "groups of four patches of an object with three": (
                *(*TRAIN, "--data.gridsize", "2", "--data.max_val_patches", "3"),
            ),
            "the preset scan without a scan": ("train", "--preset", "scan"),
            "a supervised run on a measured scan": (
                *("train", "--preset", "scan", "--data", "scan.npz", "--train.mode", "supervised"),
            ),
            "a supervised run that learns the probe": (*SUPERVISED, "--train.learn_probe", "true"),
            "a supervised run with an overlap term": (*SUPERVISED, "--train.overlap_weight", "0.5"),
            "a supervised run with the loss of counts": (*SUPERVISED, "--loss", "poisson"),
            "a supervised study without a table of arms": ("study", "--preset", "smoke", "--train.mode", "supervised"),
            "a table of arms that is nowhere": ("study", "--preset", "smoke", "--arms", "original_six.yaml"),
            "a config that is not there": CONFIG,
            "a config that is a folder": ("train", "--config", "."),
            "no seeds": ("study", "--preset", "smoke", "--seeds", "0"),
            "a trillion seeds": ("study", "--preset", "smoke", "--seeds", "1000000000000"),
            "one seed twice": ("study", "--preset", "smoke", "--seeds", "3,3"),
            "an unknown launcher": ("study", "--preset", "smoke", "--launcher", "moon"),
            "SLURM's partition for another launcher": ("study", "--preset", "smoke", "--slurm.partition", "gpu"),
            "SLURM's flag for another command": ("compare", "--study", "x", "--slurm.sbatch.qos", "high"),
            "SLURM's flag for a run": ("train", "--preset", "smoke", "--slurm.sbatch.qos", "high"),
            "no workers": ("study", "--preset", "smoke", "--workers", "0"),
            "no seeds at once": ("study", "--preset", "smoke", "--seeds_at_once", "0"),
            "until something else": ("study", "--preset", "smoke", "--until", "bored"),
            "an error rate of 60 %": ("study", "--preset", "smoke", "--until", "decided", "--alpha", "0.6"),
            "an error rate without until": ("study", "--preset", "smoke", "--alpha", "0.05"),
            "a maximum below the seeds": (
                *("study", "--preset", "smoke", "--until", "decided", "--seeds", "6", "--max_seeds", "5"),
            ),
        }
    ),
    **_said(
        {
            name: ("study", "--preset", "smoke", "--launcher", "slurm", *given)
            for name, given in {
                "a partition with a space": ("--slurm.partition", "big gpu"),
                "an account that looks like an option": ("--slurm.account=-x",),
                "a time limit in words": ("--slurm.time", "2 hours"),
                "a time limit in which no run could store anything": ("--slurm.time", "3"),
                "no CPUs for a SLURM job": ("--slurm.cpus", "0"),
                "half a GPU for a SLURM job": ("--slurm.gpus", "0.5"),
                "memory with a space": ("--slurm.mem", "16 GB"),
                "a signal a day before the end": ("--slurm.stop_before_s", "86400"),
                "fewer than no requeues": ("--slurm.requeues", "-1"),
                "a flag of sbatch that has an option": ("--slurm.sbatch.time", "60"),
                "a flag of sbatch that the launcher needs": ("--slurm.sbatch.array", "0-9"),
                "a flag of sbatch in one letter": ("--slurm.sbatch.C", "gpu"),
                "a flag of sbatch on two lines": ("--slurm.sbatch.comment", "a\n#SBATCH --uid=0"),
                "a flag of sbatch without a value": ("--slurm.sbatch.comment",),
            }.items()
        }
    ),
    **_said(
        {"SLURM jobs on a machine without SLURM": ("study", "--preset", "smoke", "--launcher", "slurm")},
        environment={"PATH": "/nowhere"},
    ),
    **_made(
        CONFIG,
        {
            "a binary config": yaml(b"\x93NUMPY\x01\x00\xff\xfe\x00"),
            "a config with control characters": yaml(b"study: a\x1b[2J\n"),
            "a config that is a list": yaml("- 1\n- 2\n"),
            "a config that is not YAML": yaml("lr: [0.1\n"),
            "an empty config": yaml(""),
            "a config that calls a function": yaml("lr: !!python/object/apply:os.system ['touch owned']\n"),
            "a config that makes an object": yaml("lr: !!python/name:os.system\n"),
            "aliases of aliases of lists: billions of values": yaml(lambda: _laughs("[x]", "[{}]")),
            "aliases of aliases of mappings: billions of keys": yaml(lambda: _laughs("{x: 1}", "{{a: [{}], b: 1}}")),
            "merged aliases: billions of keys": yaml(lambda: _laughs("{x: 1}", "{{<<: [{}], y{depth}: 1}}")),
            "a config that holds itself": yaml("model: &a {width: 8, more: *a}\n"),
            "a config nested 5000 deep": yaml(lambda: "a: " + 5000 * "[\n"),
            "a config of a megabyte": yaml(lambda: "# comment\n" * 100_000),
            "a key twice in a config": yaml("lr: 0.1\nlr: 0.2\n"),
            "a key twice, nested and dotted": yaml("model: {width: 8}\nmodel.width: 16\n"),
            "a date that is none in a config": yaml("study: 2026-99-99\n"),
            "a number of 5000 digits in a config": yaml(lambda: f"epochs: {5000 * '9'}\n"),
            "a hexadecimal number of 5000 digits": yaml(lambda: f"epochs: 0x{5000 * 'f'}\n"),
            "a truth value for a number": yaml("epochs: yes\n"),
            "a list for a number": yaml("epochs: [1, 2]\n"),
            "a file name with NUL": yaml('preset: smoke\ndata.path: "scan\\0.npz"\n'),
            "a key that is a number": yaml("1: 2\n"),
            "an unknown key in a config": yaml("model: {widht: 8}\n"),
        },
    ),
    **_made(
        ARMS,
        {
            "arms that are no list": yaml("arms: control\n", "arms.yaml"),
            "an arm without a name": yaml("arms: [{arch: cnn}]\n", "arms.yaml"),
            "an arm whose name is a path": yaml("arms: [{name: ../x, arch: cnn}]\n", "arms.yaml"),
            "an arm with a number for a key": yaml("arms: [{name: a, 1: 2}]\n", "arms.yaml"),
            "an arm with data of its own": yaml("arms: [{name: a, data.N: 16}]\n", "arms.yaml"),
            "two arms of one name": yaml("arms: [{name: a}, {name: a}]\n", "arms.yaml"),
            "a grid of two million runs": yaml(
                lambda: f"arms: [{{name: a}}]\ngrid: {{lr: {[*range(1, 2001)]}, width: {[*range(1, 1001)]}}}\n",
                "arms.yaml",
            ),
        },
    ),
}


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

STORES = {
    **_said(
        {
            "no store yet: compare": ("compare",),
            "no store yet: inspect": ("inspect", "0123"),
            "no store yet: registry": ("registry", "show"),
            "a scan that is not there": reconstruct("model"),
        }
    ),
    **_said(
        {
            "an unknown study": ("compare", "--study", "nothing"),
            "a study with quotes": ("compare", "--study", "it's' or 'a' = 'a"),
            "a study that is a path": ("compare", "--study", "../../evil"),
            "a study without a finished run": ("compare", "--study", "unfinished"),
            "an unknown dataset": ("compare", "--study", "small", "--dataset", "zz"),
            "an unknown parent": ("compare", "--study", "small", "--parent", "zz"),
            "an unknown column": ("compare", "--study", "small", "--by", "psnr"),
            "neither true nor false": ("compare", "--study", "small", "--promote", "maybe"),
            "a folder that is not there": ("compare", "--study", "small", "--out", "no/such"),
            "neither an ensemble nor none": ("compare", "--study", "small", "--ensemble", "maybe"),
            "an ensemble of an unknown study": ("registry", "ensemble", "--study", "nothing"),
            "an ensemble of no study": ("registry", "ensemble"),
            "an ensemble that is not registered": ("compare", "--study", "small", "--register", "false", "--ensemble"),
            "Stage B of an unknown study": ("study", "--stage", "b", "--stage_a", "nothing"),
            "an unknown run": ("inspect", "0" * 32),
            "a run that is a path": ("inspect", "../../etc/passwd"),
            "a run with quotes and a line break": ("inspect", "' or '1' = '1\n"),
            "an unknown model": ("registry", "show", "fnostab-nothing"),
            "a model name that cannot be": ("registry", "show", "a/b:c"),
            "a rollback of an unknown model": ("registry", "rollback", "fnostab-nothing"),
            "a rollback without a previous champion": ("registry", "rollback", "fnostab-small"),
            "a champion that was deleted": reconstruct("models:/fnostab-gone@champion"),
            "a version that is not there": reconstruct("models:/fnostab-small/7"),
            "a run without a model": reconstruct(f"runs:/{'0' * 32}/model"),
            "a registered model whose files are gone": reconstruct("models:/fnostab-small/1"),
        },
        in_store=True,
    ),
    **_made(
        reconstruct("model"),
        {
            "a model of another library": _model("flavors: {sklearn: {}, python_function: {}}"),
            "an MLmodel file of nonsense": _model("- 1\n- 2\n"),
            "a model that brings code": _model("flavors: {pytorch: {model_data: data, code: code}}\n" + _TENSORS),
            "a model with another signature": _model(
                "flavors: {pytorch: {model_data: data}}\n" + _TENSORS.replace("16, 2]", "16]")
            ),
            "a model without weights": _model("flavors: {pytorch: {model_data: data}}\n" + _TENSORS),
        },
    ),
    "no store yet: a registered model": Input(reconstruct("models:/fnostab-stage-a@champion"), scan()),
    "a store in a folder that is not there": Input(TRAIN, environment=_store("sqlite:///nowhere/mlflow.db")),
    "a store that is no database": Input(TRAIN, _no_database, environment=_store("sqlite:///text.db")),
    "a store that is a torn database": Input(TRAIN, _torn_database, environment=_store("sqlite:///torn.db")),
    "a torn database: inspect": Input(("inspect", "0123"), _torn_database, environment=_store("sqlite:///torn.db")),
    "a store of an unknown kind": Input(TRAIN, environment=_store("carrier-pigeon://coop")),
    "a cache that is a file": Input(IMPORT, _cache_is_a_file, environment={"FNOSTAB_CACHE": "occupied"}),
    "no model": Input(reconstruct(""), scan()),
    "a folder that is no model": Input(reconstruct("."), scan()),
    "a model that is not there": Input(reconstruct("nowhere"), scan()),
    "the scan as output": Input(reconstruct("model", "--out", "scan.npz"), scan()),
    "a reconstruction into a folder that is not there": Input(reconstruct("model", "--out", "no/r.npz"), scan()),
    "no patterns at a time": Input(reconstruct("model", "--batch_size", "0"), scan()),
    "an unknown backend": Input(reconstruct("model", "--backend", "tensorrt"), scan()),
    "an unknown precision": Input(reconstruct("model", "--precision", "fp8"), scan()),
    "onnxruntime in bfloat16": Input(reconstruct("model", "--backend", "onnx", "--precision", "bf16-mixed"), scan()),
    "an ONNX file in torch": Input(reconstruct("m.onnx", "--backend", "torch"), scan()),
    "an ONNX file that is not there": Input(reconstruct("m.onnx"), scan()),
    "a refinement of fewer than no steps": Input(reconstruct("model", "--refine", "-1"), scan()),
    "a refinement without a number": Input(reconstruct("model", "--refine", "some"), scan()),
    "a refinement at no rate": Input(reconstruct("model", "--refine", "9", "--refine_rate", "0"), scan()),
    "an interval of nothing": Input(reconstruct("model", "--follow", "--every", "0"), scan()),
    "an end that never comes": Input(reconstruct("model", "--follow", "--idle", "inf"), scan()),
    "an interval without following": Input(reconstruct("model", "--every", "5"), scan()),
}

EXPORTS = _said(
    {
        name: ("export-model", "--model", "nowhere", *more)
        for name, more in {
            "an unknown format of exports": ("--format", "tflite"),
            "an unknown layout of exports": ("--layout", "ptychodus"),
            "holoptycho without a normalization": ("--layout", "holoptycho"),
            "holoptycho with a normalization of nothing": ("--layout", "holoptycho", "--normalization", "0"),
            "holoptycho with no patterns at once": ("--layout", "holoptycho", "--batch_size", "0"),
            "a normalization for counts": ("--normalization", "1000"),
            "an export into a folder that is not there": ("--out", "no/m.onnx"),
            "an export onto a folder": ("--out", "."),
            "an export of a model that is not there": (),
        }.items()
    }
)


def _other_mlproject(folder: Path) -> None:
    (folder / "MLproject").write_text("name: another\n")


def _folder_mlproject(folder: Path) -> None:
    (folder / "mlproject").mkdir()


PROJECTS = {
    "a project in a folder that is not there": Input(("mlproject", "--out", "no/such")),
    "a project in a file": Input(("mlproject", "--out", "scan.npz"), scan()),
    "a project beside another one": Input(("mlproject", "--out", "."), _other_mlproject),
    "a project beside a folder that MLflow takes for it": Input(("mlproject", "--out", "."), _folder_mlproject),
}

HDF5 = {
    **{name: Input(argv, make) for name, (argv, make) in hostile_hdf5.FILES.items()},
    **{name: Input(argv, make, max_bytes=most) for name, (argv, make, most) in hostile_hdf5.LIMITED.items()},
}

#: Every bad input by its name in the docs.
INPUTS: Mapping[str, Input] = {**SCANS, **HDF5, **CONFIGS, **STORES, **EXPORTS, **PROJECTS}


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
