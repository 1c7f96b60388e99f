"""The model card of a registered version: what it does, what it was trained on, how good it is, and its limits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fnostab.study.names import METRIC
from fnostab.study.selection import StoredRun
from fnostab.study.text import markdown, number

_CARD: Final = """\
# {name}

One diffraction pattern in, the complex object patch that caused it out: counts, float32 (n, {N}, {N}), zero frequency
at index {middle}; real and imaginary part, float32 (n, {N}, {N}, 2), of which each patch's global phase is free.

    model = mlflow.pyfunc.load_model("models:/{name}@champion")
    patches = model.predict(counts)

A whole scan: `fnostab reconstruct --model models:/{name}@champion --data scan.npz --out recon.npz`.

- **Network:** {arch}, width {width}, {blocks} encoder blocks; clipping {clipping}; arm {arm}, seed {seed}.
- **Data:** {data}.
- **How good:** R-factor {best_val_loss} on patterns that were not trained on (0: perfect); of the stitched test object
  {r_factor}, its amplitude's SSIM {amp_ssim}, its phase's {phase_ssim}.
- **Limits:** it knows one probe, that of its data, and objects and counts like those; where a scan's probe or counts
  differ, `fnostab reconstruct` warns. It does not say how sure it is: compare the far field of what it gives with the
  measurement.

"""
#: The numbers that the card tells.
_QUALITY: Final = ("best_val_loss", "r_factor", "amp_ssim", "phase_ssim")


def model_card(name: str, run: StoredRun) -> str:
    """Markdown for a version of the registered model `name` that `run` trained."""
    params = run.params
    N = int(params["data.N"])
    clipping = params["clip.algo"] if params["clip.algo"] == "none" else f"{params['clip.algo']} {params['clip.val']}"
    return _CARD.format(
        name=name,
        N=N,
        middle=N // 2,
        arch=params["model.arch"],
        width=params["model.width"],
        blocks=params["model.fno_blocks"],
        clipping=clipping,
        arm=markdown(run.arm),
        seed=run.seed,
        data=_data(params),
        **{name: number(run.metrics.get(METRIC[name])) for name in _QUALITY},
    )


def _data(params: Mapping[str, str]) -> str:
    probe = params["data.probe"]
    if path := params["data.path"]:
        learnt = "learnt on" if params["train.learn_probe"] == "True" else "as given"
        return f"measured scan {_file(path)}; probe {_file(probe) if probe != 'auto' else 'of the scan'}, {learnt}"
    known = {"auto": "curved\\_disk", "curved_disk": "curved\\_disk", "disk": "disk"}
    patches = "" if params["data.max_train_patches"] == "None" else f", {params['data.max_train_patches']} patches"
    return (
        f"simulated objects ({params['data.objects']}, phase {params['data.phase']}){patches}; "
        f"probe {known.get(probe) or _file(probe)}; {float(params['data.nphotons']):.3g} photons a pattern"
    )


def _file(path: str) -> str:
    return markdown(Path(path).name)
