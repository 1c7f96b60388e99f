"""What docs/results says is what the shipped runs give."""

import json
import re
from pathlib import Path

import pytest
import yaml

from fnostab.cli import main
from fnostab.study.plan import plan_file
from results import tables
from results.answers import ANSWERS
from results.runs import DATA, ranked, read_runs

_ROOT = Path(__file__).resolve().parents[1]
_STUDIES = sorted((_ROOT / "docs" / "results" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("page", list(tables.pages()), ids=lambda path: path.name)
def test_the_tables_of_a_page_are_those_of_the_shipped_runs(page):
    text = page.read_text(encoding="utf-8")
    assert tables.with_tables(text) == text


#: Numbers in words that a run can change: p-values, "3 of 20", ends, per cents, three decimals and more, thousands.
_NUMBERS = (
    r"p = \d[\d.]*\d|\d+ of (?:the )?\d[\d,]*\d|\d[\d.,]* to \d[\d.,]*\d|\d+(?:\.\d+)? %|\d+\.\d{3,}|\d{1,3},\d{3}"
)
#: Those that no run changes: settings, the original's results, intervals of a table beside, what a confidence is.
_GIVEN = {
    "docs/findings.md": {"1,024", "0.003", "7 %"},
    "docs/model-card.md": {"5 %", "10 %", "0.0709 to 0.0831"},
    "docs/results/better-arm.md": {"10 %", "28 %", "13,778"},
    "docs/results/clipping.md": {"0.003"},
    "docs/results/original-outcome.md": {"0.0138", "0.0243", "0.178", "13,778", "35 of 50"},
    "docs/results/verdicts.md": {"1 of 10"},
}


def _words(path):
    """The text of a page without emphasis and line breaks."""
    return " ".join((_ROOT / path).read_text(encoding="utf-8").replace("**", "").split())


@pytest.mark.parametrize("path", ANSWERS)
def test_numbers_in_words_are_those_of_the_shipped_runs(path):
    text = _words(path)
    assert [piece for piece in ANSWERS[path]() if piece not in text] == []


@pytest.mark.parametrize("path", _GIVEN)
def test_a_page_says_no_number_in_words_that_is_not_computed(path):
    lines = re.sub(
        r"<!-- table.*?end -->", "", (_ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL
    ).splitlines()
    text = " ".join(" ".join(line for line in lines if not line.startswith(("|", "    "))).replace("**", "").split())
    for piece in ANSWERS[path]():
        text = text.replace(piece, "")
    text = re.sub(r"\]\([^)]*\)|`[^`]*`", "", text)
    assert set(re.findall(_NUMBERS, text)) <= _GIVEN[path]


@pytest.mark.parametrize("path", _STUDIES, ids=lambda path: path.stem)
def test_a_study_can_be_planned_and_the_shipped_runs_are_of_its_arms_and_seeds(path):
    text = path.read_text(encoding="utf-8")
    if yaml.safe_load(text)["preset"] == "scan":
        return  # needs the scan
    plan = plan_file(path, {})
    gone = set(re.findall(r"^  # - \{name: (\w+)", text, flags=re.MULTILINE))
    shipped = read_runs(plan.study) if (DATA / f"{plan.study}.jsonl.gz").exists() else ()
    runs = {(run.arm, run.stored.seed) for run in shipped if run.arm.partition("-")[0] not in gone}
    assert runs <= {(run.arm, run.seed) for run in plan.runs}


@pytest.mark.parametrize("study", ["champion", "full_size", "q1_curved_phase"])
def test_compare_gives_the_numbers_of_the_pages_from_the_shipped_file(fresh_store, capsys, study):
    assert main(["import", str(_ROOT / "docs" / "results" / "data" / f"{study}.jsonl.gz")]) == 0
    assert main(["compare", "--study", study, "--out", "out"]) == 0
    rows = json.loads((fresh_store / "out" / f"{study}_metrics.json").read_text())
    expected = json.loads(json.dumps(ranked(study).to_json_rows()))
    for row in (*rows, *expected):
        del row["best_run_id"]
    assert rows == expected
    assert ranked(study).decision.text in " ".join(capsys.readouterr().out.replace("**", "").split())
