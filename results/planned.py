"""Two tables of how.md: where and when later studies ran, and what is planned of why it came out as it did."""

from typing import Final

from fnostab.study.plan import plan_file
from results.cells import table
from results.runs import DATA, LATER, WHY, read_runs

#: Minutes of a run on one of two cores with a run on each, where it ran, by how the study's name begins.
MINUTES: Final = {"w1": 4.5, "w2": 2.5, "w3": 3, "w4_decoder": 2, "w4_rate": 7.5, "w4": 10, "w5": 11, "w6": 9}
#: Networks of this width want a GPU.
_WIDE: Final = 32


def progress() -> str:
    """A study a row: runs planned, runs shipped, and the hours that all and the rest take of two CPU cores."""
    head = ("study", "runs planned", "have run", "hours of all, two runs at once on two CPU cores", "hours left")
    rows = []
    for path in sorted((DATA.parent / "studies").glob("w?_*.yaml")):
        plan = plan_file(path, {})
        of, have = len(plan.runs), len(read_runs(path.stem)) if path.stem in WHY else 0
        minutes = next(minutes for begin, minutes in MINUTES.items() if path.stem.startswith(begin))
        is_wide = any(arm.model.width >= _WIDE for arm in plan.arms.values())
        hours = ("on a GPU",) * 2 if is_wide else (f"{runs * minutes / 2 / 60:.1f}" for runs in (of, of - have))
        rows.append((f"`{path.stem}`", str(of), str(have), *hours))
    return table(head, rows)


def later() -> str:
    """A study a row that came after the seven questions: its runs, arms and seeds, the commits, its page."""
    rows = []
    for study in (*LATER, *WHY):
        runs = read_runs(study)
        commits = dict.fromkeys(run.stored.tags["git_commit"][:7] for run in runs)
        told = (len(runs), len({run.arm for run in runs}), len({run.stored.seed for run in runs}), ", ".join(commits))
        rows.append((f"[`{study}`]({_page(study)})", *map(str, told)))
    return table(("study", "runs", "arms", "seeds", "commits"), rows)


def _page(study: str) -> str:
    """The page with the table of the `study`."""
    pages = sorted(DATA.parent.glob("*.md"))
    return next(path.name for path in pages if f"<!-- table {study}" in path.read_text(encoding="utf-8"))
