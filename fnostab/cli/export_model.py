"""`fnostab export-model`: a trained network for programs without torch."""

import argparse
from typing import Any

from fnostab.cli.common import add_command, positive_number, say, whole_number
from fnostab.io.garbage import lasting_imports


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "export-model", "write a trained network as an ONNX file (extra `onnx`)", _export)
    uris = "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN or a folder"
    parser.add_argument("--model", required=True, metavar="URI", help=uris)
    parser.add_argument("--out", default="model.onnx", metavar="FILE", help="default: model.onnx")
    parser.add_argument("--format", default="onnx", help="onnx")
    layout = "whose inputs and outputs: fnostab (default; those of the MLflow model) or holoptycho"
    parser.add_argument("--layout", default="fnostab", help=layout)
    normalization = "holoptycho: the largest count of the scan, by which it divides"
    parser.add_argument("--normalization", metavar="COUNTS", help=normalization)
    parser.add_argument("--batch_size", metavar="B", help="holoptycho: patterns at once (default 64)")
    parser.add_argument("--log", action="store_true", help="also log the file to the run, beside its model")


def _export(arguments: argparse.Namespace) -> int:
    normalization = (
        None if arguments.normalization is None else positive_number("normalization", arguments.normalization)
    )
    batch_size = None if arguments.batch_size is None else whole_number("batch_size", arguments.batch_size, at_least=1)
    with lasting_imports():
        from fnostab.workflows.export_model import export_model

    made = export_model(
        arguments.model,
        arguments.out,
        file_format=arguments.format,
        layout=arguments.layout,
        normalization=normalization,
        batch_size=batch_size,
        log=arguments.log,
        print_line=say,
    )
    say(
        f"{made.source} as ONNX: {made.path.absolute()} ({made.path.stat().st_size / 1e6:.1f} MB)\n"
        f"takes {made.signature}\n"
        f"onnxruntime's patches deviate from torch's by at most {made.largest_deviation:.2g} of the largest magnitude"
    )
    if made.artifact:
        tagged = f"; tagged: {', '.join(made.versions)}" if made.versions else ""
        say(f"logged: {made.artifact}{tagged}")
    return 0
