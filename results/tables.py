"""The tables and figures of docs/results, from the runs in docs/results/data.

    python -m results.tables            # writes tables into the pages, and the figures
    python -m results.tables --tables   # the tables alone

A page holds `<!-- table NAME: begin -->` and `<!-- table NAME: end -->`; what stands between them is written here, and
tests/test_results.py compares it. Where the runs come from is said on each page.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from fnostab.report.axes import to_png
from results import (
    activations,
    causes,
    early_warning,
    ensemble,
    groups,
    losses,
    planned,
    power,
    precision,
    questions,
    stability,
    survival,
)
from results.figures import FIGURES
from results.runs import STUDIES, WHY

RESULTS: Final = Path(__file__).resolve().parent.parent / "docs" / "results"

_BEGIN: Final = "<!-- table {}: begin -->"
_END: Final = "<!-- table {}: end -->"


def _why(study: str) -> Callable[[str], str]:
    """What makes the table of a study of why it came out as it did."""
    by_question = {"w1": survival.survival, "w2": causes.blocks, "w4": causes.remedies, "w5": causes.crashes}
    return by_question.get(study[:2], causes.long_runs)


#: Tables by the name that the pages have for them.
TABLES: Final[Mapping[str, Callable[[], str]]] = {
    **{study: partial(questions.outcome, study) for study in STUDIES if study.startswith(("q1_", "q7_", "champion"))},
    **{
        of.__name__: of
        for of in (
            *(questions.depth, questions.depth_pairs, questions.drift, questions.start, questions.clipping),
            *(questions.clipping_cost, questions.learning_rates, questions.candidates, questions.better),
            *(questions.better_short, questions.norms, questions.full_size),
            *(early_warning.warning, early_warning.cross_validation),
            *(stability.verdicts, stability.changed, stability.stability, stability.correlations, stability.no_objects),
        )
    },
    "clipping_rules": partial(questions.outcome, "clipping_rules"),
    "gridsize": partial(groups.gridsize, "gridsize"),
    "gridsize_scan": partial(groups.gridsize, "gridsize_scan"),
    "original_five": partial(questions.outcome, "original_five"),
    "ensemble": ensemble.calibration,
    "ensemble_stitched": ensemble.stitched,
    "precision": precision.precision,
    "precision_pairs": precision.pairs,
    "overlap": partial(questions.schedules, "q6_overlap"),
    "longer": partial(questions.schedules, "q6_longer"),
    "start_sgd": partial(questions.by_rate, "q3_start_sgd"),
    "clipping_sgd": partial(questions.by_rate, "q4_clip_sgd"),
    **{study: partial(_why(study), study) for study in WHY if not study.startswith(("w3_", "w6_rates"))},
    **{f"{study}_stages": partial(losses.stages, study) for study in WHY if study.startswith("w1_")},
    "w4_relative_stages": partial(losses.stages, "w4_relative"),
    "w4_decoder_stages": partial(losses.stages, "w4_decoder", "none"),
    "w4_rate_stages": partial(losses.stages, "w4_rate"),
    **{f"{study}_outcome": partial(questions.outcome, study) for study in WHY if study.startswith("w1_")},
    **{f"{study}_pairs": partial(causes.block_pairs, study) for study in WHY if study.startswith("w2_")},
    "activation_rates": activations.by_rate,
    "lost_by_rate": losses.by_rate,
    "w3_epsilon": causes.epsilon,
    "w3_epsilon_pairs": causes.epsilon_pairs,
    "w6_rates": causes.chosen_rates,
    "champion_long": partial(causes.long_runs, "champion_long", "pre"),
    "power": power.power,
    "later": planned.later,
    "planned": planned.progress,
}


def with_tables(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """`text` of a page with every one of the `tables` that it has a place for."""
    for name in re.findall(_BEGIN.format(r"(\w+)"), text):
        begin, end = _BEGIN.format(name), _END.format(name)
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{tables[name]()}\n\n{end}{after}"
    return text


def pages() -> Iterator[Path]:
    """The pages that have places for tables."""
    root = RESULTS.parent.parent
    for path in (*sorted(RESULTS.glob("*.md")), root / "docs" / "findings.md", root / "README.md"):
        if path.exists() and "<!-- table " in path.read_text(encoding="utf-8"):
            yield path


def main() -> None:
    """Write tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="the tables alone")
    options = parser.parse_args()
    for path in pages():
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not options.tables:
        for name, draw in FIGURES.items():
            (RESULTS / "figures" / f"{name}.png").write_bytes(to_png(draw()))


if __name__ == "__main__":
    main()
