"""The code of docs/monitor.md runs as it stands there."""

import re
from pathlib import Path

import mlflow
import pytest

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "monitor.md"
_BLOCKS = re.findall(r"^```python\n(.*?)^```", _PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore")  # of Lightning and neuraloperator, for whoever copies it
@pytest.mark.parametrize("code", _BLOCKS, ids=["plain", "lightning", "neuraloperator"])
def test_a_recipe_of_the_page_gives_a_run_with_a_verdict(code, fresh_store, capsys):
    exec(compile(code, str(_PAGE), "exec"), {"__name__": "recipe"})
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.data.tags["verdict"] in ("converged", "stagnated")
    assert run.data.tags["clip_algo"] == "agc"
    assert f"{run.data.tags['verdict']} {run.data.tags['verdict_reason']}" in capsys.readouterr().out
