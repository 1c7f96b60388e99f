"""What is planned of the studies of why it came out as it did, and how much of it has run: a table of how.md."""

import math
from typing import Final

import yaml

from results.cells import table
from results.runs import DATA, WHY, read_runs

#: Minutes that a run takes of one of two cores with a run on each, by the number of the question; measured there.
MINUTES: Final = {"w1": 4.5, "w2": 2.5, "w3": 3, "w4": 10, "w5": 11, "w6": 11}
#: Studies of networks of width 32, which want a GPU.
_GPU: Final = ("w1_survival_width32", "w1_survival_width32_3e3", "w2_block_clip_full")


def planned(study: str) -> int:
    """The runs of a study's table of arms: arms, by the grid, by seeds."""
    content = yaml.safe_load((DATA.parent / "studies" / f"{study}.yaml").read_text(encoding="utf-8"))
    seeds = content["seeds"]
    grid = math.prod(len(values) for values in content.get("grid", {}).values())
    return len(content["arms"]) * grid * (seeds if isinstance(seeds, int) else len(seeds))


def progress() -> str:
    """A study a row: runs planned, runs shipped, and the hours that the rest takes of two CPU cores."""
    head = ("study", "runs planned", "have run", "hours left, two runs at once on two CPU cores")
    rows = []
    for path in sorted((DATA.parent / "studies").glob("w?_*.yaml")):
        study = path.stem
        of, have = planned(study), len(read_runs(study)) if study in WHY else 0
        hours = (of - have) * MINUTES[study[:2]] / 2 / 60
        rows.append((f"`{study}`", str(of), str(have), "on a GPU" if study in _GPU else f"{hours:.1f}"))
    return table(head, rows)
