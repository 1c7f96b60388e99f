"""`fnostab export-model`: a trained network as a file for programs without torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

import fnostab
from fnostab.config import ConfigError
from fnostab.export.agreement import check_agreement, trial_batches
from fnostab.export.conversion import add_arrays, content_of, convert
from fnostab.export.description import FORMAT, arrays_of
from fnostab.export.layouts import HOLOPTYCHO_BATCH, LAYOUTS, Layout, fnostab_layout, holoptycho_layout
from fnostab.export.packages import FOR_WRITING, require_packages
from fnostab.io.files import atomic_write
from fnostab.io.untrusted import shown
from fnostab.study.names import METRIC
from fnostab.tracking.artifacts import read_run
from fnostab.tracking.models import ShippedModel, load_model
from fnostab.tracking.onnx_files import artifact_name, log_onnx_file
from fnostab.tracking.store import check_store
from fnostab.workflows import PrintLine

FORMATS: Final = ("onnx",)
#: The tags of a run that go into a file, by the same keys.
_TAGS: Final = (
    *("study", "arm", "arch", "seed", "precision", "dataset_sha256", "fnostab_version", "git_commit", "verdict"),
)


@dataclass(frozen=True)
class ExportedModel:
    """The file `path`, made of the model `source`, and its `largest_deviation` from that over the largest magnitude.

    `artifact` is its URI in the store and `versions` are the registered ones that were tagged, NAME/VERSION, if it was
    logged.
    """

    path: Path
    source: str
    signature: str
    largest_deviation: float
    artifact: str | None
    versions: tuple[str, ...]


def export_model(
    model_uri: str,
    out: str | Path,
    *,
    file_format: str = "onnx",
    layout: str = "fnostab",
    normalization: float | None = None,
    batch_size: int | None = None,
    log: bool = False,
    print_line: PrintLine = lambda line: None,
) -> ExportedModel:
    """Write the network at `model_uri` to `out`, once onnxruntime gives the patches that torch gives.

    `model_uri` is what `tracking.models.load_model` takes. The layout fnostab is the contract of the MLflow model; for
    holoptycho, `normalization` is the largest count of the scan, by which it divides, and `batch_size` how many
    patterns it takes at once (default 64). With `log` the file becomes an artifact of the run, and the registered
    versions of that run are tagged. `print_line` takes lines for people.

    `out` appears whole or not at all, and takes the place of a file that is there. Raises `ConfigError`, in one line
    and before anything is written, for bad input and for a network that does not export or deviates.
    """
    out = Path(out)
    _check_arguments(out, file_format, layout, normalization, batch_size)
    if log:
        check_store(must_exist=True)
    model = load_model(model_uri)
    if log and model.run_id is None:
        raise ConfigError(f"`log` (=true) must be false for {model_uri}, which does not say the run that trained it")
    provenance = _provenance(model, print_line, must_be_known=log)
    program = f"fnostab {fnostab.__version__}"
    try:
        made = _layout(model, layout, normalization, batch_size)
        converted = convert(made)
        is_ours = layout == "fnostab"
        add_arrays(
            converted,
            arrays_of(model.modes, model.start_probe, model.mask)
            if is_ours
            else arrays_of(model.modes if model.modes is None else model.modes[:1]),
        )
        description = {
            "format": FORMAT,
            "layout": layout,
            "signature": made.signature,
            "N": str(model.N),
            "gridsize": str(model.gridsize),
            **({} if model.scale is None else {"scale": repr(model.scale)}),
            **({} if model.mean_counts is None else {"mean_counts": repr(model.mean_counts)}),
            **({} if normalization is None else {"normalization": repr(normalization)}),
            **({} if made.batch_size is None else {"batch_size": str(made.batch_size)}),
            **provenance,
            "exported_by": f"{program}, torch {torch.__version__}",
        }
        shape = (model.N, model.N) if model.gridsize == 1 else (model.gridsize**2, model.N, model.N)
        batches = trial_batches(made, shape, model.mean_counts, model.example)
        if model.example is None:
            print_line("note: the model brings no example of its patterns: it was compared on random ones alone")
        deviation = check_agreement(content_of(converted, description, program), made, batches)
        content = content_of(converted, description | {"largest_deviation": f"{deviation:.3g}"}, program)
    except ValueError as error:
        raise ConfigError(f"`model` (={shown(model_uri)}) cannot be exported: {error}") from error
    with atomic_write(out) as partial:
        partial.write_bytes(content)
    versions: list[str] = []
    if log:
        assert model.run_id is not None
        versions = log_onnx_file(model.run_id, out, layout)
    artifact = f"runs:/{model.run_id}/{artifact_name(layout)}" if log else None
    return ExportedModel(out, model.source, made.signature, deviation, artifact, tuple(versions))


def _check_arguments(
    out: Path, file_format: str, layout: str, normalization: float | None, batch_size: int | None
) -> None:
    """Refuse what can be refused before a model is fetched."""
    if file_format not in FORMATS:
        raise ConfigError(f"`format` (={shown(file_format)}) must be {' or '.join(FORMATS)}")
    if layout not in LAYOUTS:
        raise ConfigError(f"`layout` (={shown(layout)}) must be one of {', '.join(LAYOUTS)}")
    if layout == "fnostab":
        for name, value in (("normalization", normalization), ("batch_size", batch_size)):
            if value is not None:
                raise ConfigError(f"`{name}` (={value:g}) is for the layout holoptycho")
    elif normalization is None:
        rule = "must be given for the layout holoptycho: the largest count of the scan, by which it divides"
        raise ConfigError(f"`normalization` (=null) {rule}")
    if not out.name or not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"`out` (={out}) must be a file in a folder that exists")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"`out` (={out}) must lie in a folder that can be written to")
    try:
        require_packages(f"`format` (={file_format})", FOR_WRITING)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _layout(model: ShippedModel, layout: str, normalization: float | None, batch_size: int | None) -> Layout:
    if layout == "fnostab":
        return fnostab_layout(model.network, model.N, model.gridsize**2, has_deviation=model.has_deviation)
    if model.has_deviation:
        raise ValueError("holoptycho takes amplitude and phase, and the network is an ensemble: export a member of it")
    if model.gridsize > 1:
        raise ValueError("holoptycho takes single patterns, and the network takes groups of four")
    if model.probe is None:
        raise ValueError("holoptycho needs the probe, and the model brings none")
    assert normalization is not None
    return holoptycho_layout(model.network, model.N, model.probe, normalization, batch_size or HOLOPTYCHO_BATCH)


def _provenance(model: ShippedModel, print_line: PrintLine, *, must_be_known: bool) -> Mapping[str, str]:
    """What the run says of the network; where the store cannot be asked, less, and a line that says so."""
    known = {"model": model.source} | ({} if model.run_id is None else {"run": model.run_id})
    known |= {"members": ",".join(model.members)} if model.members else {}
    if model.run_id is None:
        return known
    try:
        run, _ = read_run(model.run_id)
    except ConfigError as error:
        if must_be_known:
            raise
        print_line(f"note: the file does not say how the network was trained: {error}")
        return known
    known |= {key: run.tags[key] for key in _TAGS if run.tags.get(key)}
    loss = run.metrics.get(METRIC["best_val_loss"])
    return known if loss is None else known | {"val_loss": repr(loss)}
