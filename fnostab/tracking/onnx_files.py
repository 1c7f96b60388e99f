"""An ONNX file beside the model of its run, and on the registered versions of that run the tags that say so."""

import hashlib
import shutil
import tempfile
from pathlib import Path

import mlflow

from fnostab.tracking.errors import HOW_TO_REPEAT, translated_store_errors
from fnostab.tracking.store import all_pages, open_store


def artifact_name(layout: str) -> str:
    """The artifact of a file in `layout`: `model.onnx`, or `model.holoptycho.onnx`."""
    return "model.onnx" if layout == "fnostab" else f"model.{layout}.onnx"


@translated_store_errors(HOW_TO_REPEAT)
def log_onnx_file(run_id: str, path: Path, layout: str) -> list[str]:
    """Log the file at `path` as an artifact of a run, and tag the versions of that run; returns them as NAME/VERSION.

    It is an artifact, not a logged model of MLflow's onnx flavour: that would write the file anew, without the
    checksum that it was checked with, and begin the finished run once more. The tags are `onnx`, the URI of the
    artifact, and `onnx_sha256`, that of the file; with another layout, `onnx_LAYOUT` and `onnx_LAYOUT_sha256`.
    """
    open_store()
    client = mlflow.MlflowClient()
    name = artifact_name(layout)
    with tempfile.TemporaryDirectory() as folder:
        client.log_artifact(run_id, str(shutil.copyfile(path, Path(folder) / name)))
    tag = "onnx" if layout == "fnostab" else f"onnx_{layout}"
    tags = {tag: f"runs:/{run_id}/{name}", f"{tag}_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    tagged = []
    for version in all_pages(client.search_model_versions, f"run_id = '{run_id}'", 100):
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
        tagged.append(f"{version.name}/{version.version}")
    return sorted(tagged)
