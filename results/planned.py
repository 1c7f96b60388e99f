"""What is planned of the studies of why it came out as it did, and how much of it has run: a table of how.md."""

from typing import Final

from fnostab.study.plan import plan_file
from results.cells import table
from results.runs import DATA, WHY, read_runs

#: Minutes that a run takes of one of two cores with a run on each, by the number of the question; measured there.
MINUTES: Final = {"w1": 4.5, "w2": 2.5, "w3": 3, "w4": 10, "w5": 11, "w6": 11}
#: Networks of this width want a GPU.
_WIDE: Final = 32


def progress() -> str:
    """A study a row: runs planned, runs shipped, and the hours that the rest takes of two CPU cores."""
    head = ("study", "runs planned", "have run", "hours left, two runs at once on two CPU cores")
    rows = []
    for path in sorted((DATA.parent / "studies").glob("w?_*.yaml")):
        plan = plan_file(path, {})
        of, have = len(plan.runs), len(read_runs(path.stem)) if path.stem in WHY else 0
        hours = (of - have) * MINUTES[path.stem[:2]] / 2 / 60
        is_wide = any(arm.model.width >= _WIDE for arm in plan.arms.values())
        rows.append((f"`{path.stem}`", str(of), str(have), "on a GPU" if is_wide else f"{hours:.1f}"))
    return table(head, rows)
