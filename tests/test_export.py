"""A trained network as an ONNX file: the same patches in onnxruntime, and all that the file says of itself."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_runs import write_small_scan

from fnostab.cli import main
from fnostab.config import ConfigError, resolve_config
from fnostab.export import agreement, description
from fnostab.export.agreement import check_agreement, trial_batches
from fnostab.export.conversion import OPSET, add_arrays, content_of, convert
from fnostab.export.description import KEYS, arrays_of, has_its_checksum
from fnostab.export.layouts import fnostab_layout, holoptycho_layout
from fnostab.export.onnx_model import OnnxModel
from fnostab.models.registry import GENERATORS, build_generator
from fnostab.training.shipped_model import CountsToObject
from fnostab.workflows.export_model import export_model
from fnostab.workflows.train import train_arm

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "using-a-model.md"


def _shipped(arch="hybrid", N=16, gridsize=1, mask=None, scale=0.1):
    """A network as a run ships it, exported to pt2 as MLflow does, with random weights; its layout fnostab."""
    keys = {"arch": arch, "data.N": N, "width": 2, "fno_blocks": 1, "model.modes": 4, "data.gridsize": gridsize}
    config = resolve_config(keys)
    torch.manual_seed(0)
    C = gridsize**2
    network = build_generator(config.model, N, C)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or "gamma" in name:  # of stable blocks 0, as if they were not there
                parameter.normal_()
    shipped = CountsToObject(network, scale, C, None if mask is None else torch.from_numpy(mask)).eval()
    example = torch.rand((2, N, N) if C == 1 else (2, C, N, N))
    exported = torch.export.export(shipped, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    return exported.module(), N, C


#: Every architecture, and with them patterns of every size and groups: (N, gridsize).
_SIZES = {
    "stable_hybrid": (64, 1),
    "hybrid": (128, 1),
    "cnn": (256, 1),
    "prenorm_hybrid": (32, 2),
    **dict.fromkeys(("hybrid_original", "stable_original", "hybrid_onesided", "fno"), (16, 1)),
}


@pytest.mark.parametrize("arch", sorted(GENERATORS))
def test_every_architecture_gives_the_same_patches_in_onnxruntime(arch):
    N, gridsize = _SIZES[arch]
    mask = np.ones((N, N), bool)
    mask[3, 5] = False
    network, N, C = _shipped(arch, N, gridsize, mask)
    layout = fnostab_layout(network, N, C)
    model = convert(layout)
    content = content_of(model, {"layout": "fnostab"}, "fnostab 0")
    batches = trial_batches(layout, (N, N) if C == 1 else (C, N, N), None, None)
    assert [len(batch) for batch in batches] == [1, 3, 16]
    assert check_agreement(content, layout, batches) <= 2e-5
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    first = [each.type.tensor_type.shape.dim[0].dim_param for each in (*model.graph.input, *model.graph.output)]
    assert first == ["batch", "batch"]
    assert str(Path(__file__).resolve().parents[1]).encode() not in content  # torch notes where its code lies
    hot = batches[1].copy()
    hot[..., 3, 5] = np.nan  # masked pixels count as 0, whatever stands there
    session = onnxruntime.InferenceSession(content)
    (expected,), (patches,) = (session.run(["patches"], {"counts": each}) for each in (batches[1], hot))
    assert patches.shape == (*hot.shape, 2)
    np.testing.assert_array_equal(patches, expected)


@pytest.fixture(scope="module")
def small():
    """(A layout, the content of its file): of a network that tests may not change."""
    layout = fnostab_layout(*_shipped())
    return layout, content_of(convert(layout), {}, "fnostab 0")


def test_a_network_that_deviates_is_refused_with_the_number(small):
    layout, content = small
    other = replace(layout, network=_shipped(scale=0.101)[0])
    counts = np.ones((3, 16, 16), np.float32)
    assert check_agreement(content, layout, [counts]) <= 2e-5
    with pytest.raises(ValueError, match=r"must be the same in onnxruntime within 2e-05 .*, and deviate by 0\.00\d+"):
        check_agreement(content, other, [counts])


def test_patches_that_are_not_finite_are_refused(small):
    layout, content = small
    counts = np.ones((3, 16, 16), np.float32)
    with pytest.raises(ValueError, match="deviate by nan"):
        check_agreement(content, layout, [counts, np.full_like(counts, np.inf), counts])


def test_a_network_that_does_not_export_is_refused_in_one_line():
    class Bessel(torch.nn.Module):
        def forward(self, counts):
            return torch.special.bessel_j0(counts)[..., None]

    with pytest.raises(ValueError, match=r"must export to ONNX, and torch\.onnx\.export raised \w+: ") as caught:
        convert(fnostab_layout(Bessel(), 16, 1))
    assert str(caught.value).isprintable()
    assert "[" not in str(caught.value)  # of colours


def test_a_file_is_read_without_torch_and_mlflow(small, tmp_path):
    layout, _ = small
    path = tmp_path / "m.onnx"
    said = {"format": description.FORMAT, "layout": "fnostab", "N": "16", "gridsize": "1"}
    path.write_bytes(content_of(convert(layout), said, "fnostab 0"))
    code = f"""
import sys
import numpy as np
from fnostab.export.onnx_model import OnnxModel
assert OnnxModel.load({str(path)!r}).predict(np.ones((2, 16, 16), np.float32)).shape == (2, 16, 16)
print(sorted({{"torch", "mlflow", "lightning"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")


# The command, with networks of real runs.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of a network that was trained in bfloat16 on a scan, whose probe it learnt, with two modes."""
    path = tmp_path_factory.mktemp("scan") / "scan.npz"
    source = write_small_scan(path)
    probe = source.probe * source.scale
    write_small_scan(path, probe=np.stack([probe, 0.3 * np.roll(probe, 3, axis=0)]))
    keys = {"preset": "scan", "data.path": str(path), "data.N": 32, "width": 4, "fno_blocks": 1, "epochs": 1}
    keys |= {"train.precision": "bf16-mixed", "train.learn_probe": True, "study": "to_export"}
    result = train_arm(resolve_config(keys), lambda line: None)
    client = mlflow.MlflowClient()
    client.create_registered_model("fnostab-to-export")
    version = mlflow.register_model(f"runs:/{result.run_id}/model", "fnostab-to-export")
    client.set_registered_model_alias("fnostab-to-export", "champion", version.version)
    return client.get_run(result.run_id)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """(What the command returned for the champion, the counts of the model's own example)."""
    out = tmp_path_factory.mktemp("exported") / "m.onnx"
    made = export_model("models:/fnostab-to-export@champion", out, log=True)
    counts = np.random.default_rng(1).poisson(50, (5, 32, 32)).astype(np.float32)
    return made, counts


def test_the_file_gives_what_the_mlflow_model_gives(run, exported):
    made, counts = exported
    expected = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model").predict(counts)
    model = OnnxModel.load(made.path)
    patches = model.predict(counts)
    np.testing.assert_allclose(
        patches, expected[..., 0] + 1j * expected[..., 1], rtol=0, atol=2e-5 * np.abs(expected).max()
    )
    assert (model.N, model.C, patches.dtype) == (32, 1, np.complex64)
    assert made.largest_deviation <= agreement.TOLERANCE


def test_the_file_brings_probe_scaling_and_provenance(run, exported):
    made, _ = exported
    model, tags = OnnxModel.load(made.path), run.data.tags
    beside = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model/extra_files/probe.npz")
    with np.load(beside) as known:
        np.testing.assert_array_equal(model.modes, known["modes"])
        np.testing.assert_array_equal(model.probe, known["probe"])
        np.testing.assert_array_equal(model.start_probe, known["start_probe"])
        assert (model.scale, model.mean_counts) == (float(known["scale"]), float(known["mean_counts"]))
    said = model.description
    for key in ("study", "arm", "arch", "seed", "dataset_sha256", "fnostab_version", "git_commit", "verdict"):
        assert said[key] == tags[key]
    assert said["precision"] == "bf16-mixed"
    assert float(said["val_loss"]) == run.data.metrics["best_val_loss"]
    assert (said["run"], said["model"]) == (run.info.run_id, "models:/fnostab-to-export/1")
    assert set(said) <= set(KEYS)
    assert set(KEYS) - set(said) == {"normalization", "batch_size", "members"}


def test_with_log_the_same_file_lies_beside_the_model_and_the_version_says_so(run, exported):
    made, _ = exported
    run_id = run.info.run_id
    assert (made.artifact, made.versions) == (f"runs:/{run_id}/model.onnx", ("fnostab-to-export/1",))
    content = made.path.read_bytes()
    assert Path(mlflow.artifacts.download_artifacts(made.artifact)).read_bytes() == content
    tags = mlflow.MlflowClient().get_model_version("fnostab-to-export", "1").tags
    assert (tags["onnx"], tags["onnx_sha256"]) == (made.artifact, hashlib.sha256(content).hexdigest())
    after = mlflow.MlflowClient().get_run(run_id).info
    assert (after.status, after.end_time) == (run.info.status, run.info.end_time)


def test_the_example_of_the_docs_gives_the_patches_and_needs_no_fnostab(exported, tmp_path, monkeypatch):
    made, counts = exported
    (code,) = re.findall(r"<!-- onnx example -->\n\n((?:(?:    .*)?\n)+)", _PAGE.read_text())
    code = re.sub("^    ", "", code, flags=re.MULTILINE)
    assert "fnostab" not in code
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(made.path.read_bytes())
    np.savez("scan.npz", counts=counts.astype(np.uint16))
    names = {}
    exec(code, names)
    model = OnnxModel.load("model.onnx")
    np.testing.assert_array_equal(names["patches"], model.predict(counts[:16]))
    np.testing.assert_array_equal(names["probe"], model.probe)


def test_the_docs_list_the_keys_that_a_file_may_have():
    rows = re.findall(r"^\| `fnostab\.(\w+)` \| (.+) \|$", _PAGE.read_text(), flags=re.MULTILINE)
    assert dict(rows) == KEYS


def test_the_layout_of_holoptycho_has_its_names_shapes_order_and_probe(run, exported, tmp_path, capsys):
    made, counts = exported
    uri, out = f"runs:/{run.info.run_id}", tmp_path / "h.onnx"
    options = ["--layout", "holoptycho", "--normalization", "80", "--batch_size", "5"]
    assert main(["export-model", "--model", uri, "--out", str(out), *options]) == 0
    assert "amplitude and phase" in capsys.readouterr().out
    amplitudes = np.sqrt(counts / 80 * 10_000)[:, None].astype(np.float32)  # as holoptycho's preprocessing does
    session = onnxruntime.InferenceSession(out)
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("input", [5, 1, 32, 32])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("output", [5, 2, 32, 32]),
        ("probe_real", [32, 32]),
        ("probe_imag", [32, 32]),
    ]
    (output,) = session.run(["output"], {"input": amplitudes})
    model = OnnxModel.load(made.path)
    patches, light = model.predict(counts), np.abs(model.probe) ** 2
    np.testing.assert_allclose(output[:, 0], np.abs(patches), atol=2e-5 * np.abs(patches).max())
    mean = (light * patches).sum(axis=(1, 2), keepdims=True)
    expected = np.abs(patches) * np.exp(1j * np.angle(patches * mean.conj()))
    np.testing.assert_allclose(output[:, 0] * np.exp(1j * output[:, 1]), expected, atol=1e-4 * np.abs(patches).max())
    # As holoptycho looks for it: among the initializers.
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(out).graph.initializer}
    np.testing.assert_array_equal(arrays["probe_real"] + 1j * arrays["probe_imag"], model.probe)
    with pytest.raises(ValueError, match="must be of the layout fnostab to be read by this package, and is of the l"):
        OnnxModel.load(out)


def test_a_masked_network_takes_amplitudes_as_it_took_counts():
    mask = np.ones((16, 16), bool)
    mask[4, 4] = False
    network, N, _ = _shipped(mask=mask)
    counts = np.full((2, N, N), 9, np.float32)
    counts[:, 4, 4] = np.nan
    layout = holoptycho_layout(network, N, np.ones((N, N), np.complex64), 10_000, 2)
    with torch.inference_mode():
        amplitudes = np.abs(network(torch.from_numpy(counts)).numpy().view(np.complex64)[..., 0])
        output = layout.network(torch.from_numpy(layout.make_input(counts))).numpy()
    np.testing.assert_allclose(output[:, 0], amplitudes, rtol=1e-5)


def test_holoptycho_is_refused_a_network_without_a_square_root():
    class Plain(torch.nn.Module):
        def forward(self, counts):
            return torch.stack([counts, counts], dim=-1)

    network = torch.export.export(Plain(), (torch.ones(2, 16, 16),)).module()
    with pytest.raises(ValueError, match="must begin with the square root of its counts"):
        holoptycho_layout(network, 16, np.ones((16, 16), np.complex64), 1.0, 2)


# What is refused: nothing is written, and what was there stays.


@pytest.fixture
def earlier(tmp_path):
    """A file that is there already."""
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")
    return path


def test_a_file_that_is_there_is_replaced_only_by_a_network_that_agrees(run, earlier, monkeypatch, capsys):
    argv = ["export-model", "--model", f"runs:/{run.info.run_id}", "--out", str(earlier)]
    with monkeypatch.context() as context:
        context.setattr(agreement, "TOLERANCE", -1.0)
        assert main(argv) == 2
    said = capsys.readouterr()
    assert re.fullmatch(
        r"fnostab: error: `model` \(=runs:/\w+\) cannot be exported: the network's patches .* deviate by \S+\n",
        said.err,
    )
    assert [path.name for path in earlier.parent.iterdir()] == ["m.onnx"]
    assert earlier.read_bytes() == b"earlier"
    assert main(argv) == 0
    assert [path.name for path in earlier.parent.iterdir()] == ["m.onnx"]
    assert OnnxModel.load(earlier).N == 32


def test_without_the_extra_one_line_names_what_is_missing(run, earlier, monkeypatch, capsys):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else find(name, *rest))
    assert main(["export-model", "--model", f"runs:/{run.info.run_id}", "--out", str(earlier)]) == 2
    needs = "needs onnx and onnxscript and onnxruntime: pip install fnostab[onnx]"
    assert capsys.readouterr().err == f"fnostab: error: `format` (=onnx) {needs}\n"
    assert earlier.read_bytes() == b"earlier"
    with pytest.raises(ValueError, match=r"needs onnx and onnxruntime: pip install fnostab\[onnx\]"):
        OnnxModel.load(earlier)


def test_what_cannot_be_logged_is_refused_before_anything_is_written(run, tmp_path):
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model", dst_path=str(tmp_path)))
    about = folder / "MLmodel"
    about.write_text(re.sub("^run_id: .*$", f"run_id: {'f' * 32}", about.read_text(), flags=re.MULTILINE))
    with pytest.raises(ConfigError, match=f"`run` \\(={'f' * 32}\\) must be a run in the tracking store"):
        export_model(str(folder), tmp_path / "m.onnx", log=True)
    assert not (tmp_path / "m.onnx").exists()
    lines = []
    export_model(str(folder), tmp_path / "m.onnx", print_line=lines.append)
    assert [line for line in lines if line.startswith("note: the file does not say how the network was trained")]
    assert "study" not in OnnxModel.load(tmp_path / "m.onnx").description


def _flipped(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def _resaved(content):
    model = onnx.ModelProto.FromString(content)
    model.metadata_props[0].value += "0"
    return model.SerializeToString()


def _foreign(content):
    model = onnx.ModelProto.FromString(content)
    del model.metadata_props[:]
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda content: content[:-100], "must be a whole ONNX file: "),
        (lambda content: content[:1000], "must be a whole ONNX file: "),
        (lambda content: b"PK\x03\x04" + content, "must be a whole ONNX file: "),
        (lambda content: b"", "must be an ONNX file that `fnostab export-model` wrote: it has no fnostab.checksum"),
        (_foreign, "must be an ONNX file that `fnostab export-model` wrote: it has no fnostab.checksum"),
        (_flipped, "must be as `fnostab export-model` wrote it: its content does not fit its checksum"),
        (_resaved, "must be as `fnostab export-model` wrote it: its content does not fit its checksum"),
    ],
    ids=["cut at its end", "cut early", "an archive", "empty", "of another program", "one bit flipped", "changed"],
)
def test_a_damaged_file_is_refused_in_one_line(damage, rule, exported, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(damage(exported[0].path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"`model` (={path}) {rule}")) as caught:
        OnnxModel.load(path)
    assert str(caught.value).isprintable()


def test_a_file_that_is_not_there_and_patterns_of_another_size_are_refused(exported, tmp_path):
    with pytest.raises(ValueError, match="must be a readable file: No such file or directory"):
        OnnxModel.load(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="must be a readable file: Is a directory"):
        OnnxModel.load(tmp_path)
    model = OnnxModel.load(exported[0].path)
    with pytest.raises(ValueError, match=r"`counts` \(=4 x 64 x 64\) must be patterns of 32 x 32 for the model "):
        model.predict(np.ones((4, 64, 64), np.float32))


def test_a_file_of_another_format_or_for_groups_says_so(tmp_path):
    network, N, C = _shipped("cnn", gridsize=2)
    layout = fnostab_layout(network, N, C)
    for number, path in ((description.FORMAT, tmp_path / "ours.onnx"), ("9", tmp_path / "later.onnx")):
        model = convert(layout)
        add_arrays(model, arrays_of(None))
        said = {"format": number, "layout": "fnostab", "N": "16", "gridsize": "2"}
        path.write_bytes(content_of(model, said, "fnostab 0"))
        assert has_its_checksum(path.read_bytes())
    model = OnnxModel.load(tmp_path / "ours.onnx")
    assert (model.modes, model.probe, model.mask, model.scale, model.run_id) == (None, None, None, None, None)
    assert model.predict(np.ones((8, 16, 16), np.float32)).shape == (8, 16, 16)
    with pytest.raises(ValueError, match=r"must be groups of 4 patterns"):
        model.predict(np.ones((6, 16, 16), np.float32))
    with pytest.raises(ValueError, match=r"must have fnostab.format 1, and has 9"):
        OnnxModel.load(tmp_path / "later.onnx")
