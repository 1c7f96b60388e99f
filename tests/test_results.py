"""What docs/results says is what the shipped runs give."""

import json
import re
from pathlib import Path

import pytest
import yaml

from fnostab.cli import main
from fnostab.study.plan import plan_file
from results import tables
from results.runs import read_runs

_ROOT = Path(__file__).resolve().parents[1]
_STUDIES = sorted((_ROOT / "docs" / "results" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("page", list(tables.pages()), ids=lambda path: path.name)
def test_the_tables_of_a_page_are_those_of_the_shipped_runs(page):
    text = page.read_text(encoding="utf-8")
    assert tables.with_tables(text) == text


@pytest.mark.parametrize("path", _STUDIES, ids=lambda path: path.stem)
def test_a_study_can_be_planned_and_the_shipped_runs_are_of_its_arms_and_seeds(path):
    text = path.read_text(encoding="utf-8")
    if yaml.safe_load(text)["preset"] == "scan":
        return  # needs the scan
    plan = plan_file(path, {})
    gone = set(re.findall(r"^  # - \{name: (\w+)", text, flags=re.MULTILINE))
    shipped = read_runs(plan.study) if plan.study in tables.STUDIES else ()
    runs = {(run.arm, run.stored.seed) for run in shipped if run.arm.partition("-")[0] not in gone}
    assert runs <= {(run.arm, run.seed) for run in plan.runs}


def test_compare_gives_the_numbers_of_the_pages_from_the_shipped_file(fresh_store):
    study = "q1_curved_phase"
    assert main(["import", str(_ROOT / "docs" / "results" / "data" / f"{study}.jsonl.gz")]) == 0
    assert main(["compare", "--study", study, "--out", "out"]) == 0
    rows = json.loads((fresh_store / "out" / f"{study}_metrics.json").read_text())
    expected = json.loads(json.dumps(tables.ranked(study).to_json_rows()))
    for row in (*rows, *expected):
        del row["best_run_id"]
    assert rows == expected
