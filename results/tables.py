"""The tables and figures of docs/results, from the runs in docs/results/data.

    python -m results.tables            # writes tables into the pages, and the figures
    python -m results.tables --tables   # the tables alone

A page holds `<!-- table NAME: begin -->` and `<!-- table NAME: end -->`; what stands between them is written here, and
tests/test_results.py compares it. Where the runs come from is said on each page.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from fnostab.ranking.intervals import wilson_interval
from fnostab.report.axes import to_png
from fnostab.study.text import interval, number, percent_interval
from results import early_warning
from results.figures import FIGURES
from results.runs import (
    BETTER,
    DEPTHS,
    STUDIES,
    clipped_fraction,
    depth_arm,
    median,
    of_arm,
    ranked,
    rate_arms,
    read_runs,
    rises,
    row_of,
    schedule_arm,
    sensitivity,
)

RESULTS: Final = Path(__file__).resolve().parent.parent / "docs" / "results"

_BEGIN: Final = "<!-- table {}: begin -->"
_END: Final = "<!-- table {}: end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown: words in the first column, numbers in the others."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def _loss(row: Mapping[str, Any]) -> str:
    name = "median_best_val_loss"
    return f"{number(row[name], '.4f')} {interval(row[f'{name}_low'], row[f'{name}_high'], '.4f')}".rstrip()


def _failed(row: Mapping[str, Any]) -> str:
    return f"{row['failures']} of {row['runs']} {percent_interval(row['failure_rate_low'], row['failure_rate_high'])}"


def _against(study: str, arm: str, other: str) -> str:
    """Probability that a run of `arm` has the lower loss than one of `other`."""
    if arm == other:
        return ""
    pair = next(pair for pair in ranked(study).pairs if (pair.a, pair.b) == (arm, other))
    return f"{pair.probability:.2f} {interval(pair.low, pair.high, '.2f')}".rstrip()


def _metric(study: str, arm: str, key: str, form: str) -> str:
    """Median over converged runs, as `fnostab compare` has it."""
    return number(median(run.metrics.get(key) for run in of_arm(study, arm) if not run.failed), form)


def outcome(study: str, control: str = "control") -> str:
    """Question 1 and 7: an arm a row, best first."""
    head = ("arm", "failed", "median best val_loss", "better than control", "epoch the plateau was left")
    head += ("stitched R-factor", "amplitude SSIM")
    rows = [
        (
            *(row["arm"], _failed(row), _loss(row), _against(study, row["arm"], control)),
            _metric(study, row["arm"], "val/plateau_left_epoch", ".1f"),
            _metric(study, row["arm"], "test/r_factor", ".3f"),
            _metric(study, row["arm"], "test/amp_ssim", ".3f"),
        )
        for row in ranked(study).table
    ]
    return table(head, rows)


def depth() -> str:
    """Question 2: median best val_loss by arm and depth."""
    arms = list(dict.fromkeys(run.arm.rpartition("-")[0] for run in read_runs("q2_depth")))
    rows = [
        (arm, *(f"{_loss(row)}, {row['runs']} runs" for d in DEPTHS for row in [row_of("q2_depth", depth_arm(arm, d))]))
        for arm in arms
    ]
    return table(("arm", *(f"{d} blocks" for d in DEPTHS)), rows)


def drift() -> str:
    """Question 2: mean and standard deviation of what the last encoder block of 16 gives, before and after training."""
    head = ("arm", "mean before training", "deviation before", "mean after", "deviation after")
    rows = []
    for arm in ("control", "plain", "stable", "stable_1", "pre"):
        runs = of_arm("q2_depth", depth_arm(arm, 16))
        last = max((key for key in runs[0].health if key.startswith("act_mean/encoder.3.")), key=_block_number)
        rows.append(
            (
                arm,
                *(
                    number(median(run.health[last.replace("mean", kind)][when] for run in runs), ".2f")
                    for when in (0, -1)
                    for kind in ("mean", "std")
                ),
            )
        )
    return table(head, rows)


def _block_number(key: str) -> int:
    return int(key.rpartition(".")[2])


def start() -> str:
    """Question 3: gradients at the first step, and how learning went."""
    head = ("start", "gradient of the branch at step 0", "gradient of its norm weight", "norm weight after 1 epoch")
    head += ("val_loss after epoch 1", "after 4", "best val_loss, median")
    block = "weight_grad_norm/encoder.0.0"
    rows = []
    for row in ranked("q3_start").table:
        runs = of_arm("q3_start", row["arm"])
        branch = median(
            math.hypot(*(run.metrics[f"{block}.{name}.weight"] for name in ("spectral", "local"))) for run in runs
        )
        rows.append(
            (
                row["arm"],
                number(branch, ".2g"),
                number(median(run.metrics[f"{block}.norm.weight"] for run in runs), ".2g"),
                number(median(run.health["norm_weight_absmean"][1] for run in runs), ".3f"),
                *(number(median(run.history["val_loss"][epoch] for run in runs), ".4f") for epoch in (0, 3)),
                _loss(row),
            )
        )
    return table(head, rows)


def by_rate(study: str) -> str:
    """Question 3 and 4, under SGD: median best val_loss by arm and learning rate, best arm first."""
    arms = rate_arms(study)
    head, rows = _rates(study)
    best = {arm: min(row_of(study, name)["median_best_val_loss"] for name in of.values()) for arm, of in arms.items()}
    return table(head, sorted(rows, key=lambda row: best[row[0]]))


def _rates(study: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows, by arm, of a table with a column a learning rate."""
    arms = rate_arms(study)
    rates = next(iter(arms.values()))
    rows = [(arm, *(_rate_cell(study, name) for name in of.values())) for arm, of in arms.items()]
    return ("arm", *(f"{rate:g}" for rate in rates)), rows


def _rate_cell(study: str, arm: str) -> str:
    row = row_of(study, arm)
    failed = f", {row['failures']} of {row['runs']} failed" if row["failures"] else ""
    return f"{number(row['median_best_val_loss'], '.4f')}{failed}"


def clipping() -> str:
    """Question 4: outcome beside the clipped fraction."""
    head = ("rule", "clipped fraction, median over steps", "failed", "median best val_loss")
    rows = [
        (
            row["arm"],
            number(clipped_fraction(row["arm"]), ".3f"),
            _failed(row),
            _loss(row),
        )
        for row in ranked("q4_clip").table
    ]
    return table(head, rows)


def learning_rates() -> str:
    """Question 5: median best val_loss by learning rate, and the sensitivity."""
    head, rows = _rates("q5_lr")
    return table((*head, "sensitivity"), [(*row, number(sensitivity(row[0]), ".3f")) for row in rows])


def candidates() -> str:
    """Question 6: a first look at candidates."""
    arms = list(dict.fromkeys(run.base_arm for run in read_runs("explore")))
    found = {(arm, d): row_of("explore", depth_arm(arm, d)) for arm in arms for d in (4, 8)}
    arms.sort(key=lambda arm: sum(found[arm, d]["median_best_val_loss"] for d in (4, 8)))
    cells = [
        (
            arm,
            *(f"{number(found[arm, d]['median_best_val_loss'], '.4f')}, {found[arm, d]['runs']} runs" for d in (4, 8)),
        )
        for arm in arms
    ]
    return table(("arm", "4 blocks", "8 blocks"), cells)


def better() -> str:
    """Question 6: the better arm beside the control, in the settings that the target names, and in others."""
    head = ("setting", "arm", "failed", "median best val_loss", "under control's", "better than control")
    head += ("stitched R-factor", "amplitude SSIM")
    rows = []
    for setting, (study, control, pre) in BETTER.items():
        limit = row_of(study, control)["median_best_val_loss"]
        for arm, name in ((control, "control"), (pre, "pre")):
            row = row_of(study, arm)
            under = "" if arm == control else f"{100 * (1 - row['median_best_val_loss'] / limit):.0f} %"
            metrics = [_metric(study, arm, f"test/{key}", ".3f") for key in ("r_factor", "amp_ssim")]
            rows.append((setting, name, _failed(row), _loss(row), under, _against(study, arm, control), *metrics))
    return table(head, rows)


def schedules(study: str) -> str:
    """Question 6: arms with a constant learning rate and with one that falls to 0, beside control with the same."""
    head = ("arm", "learning rate", "failed", "median best val_loss", "better than control", "largest rise of val_loss")
    head += ("stitched R-factor", "amplitude SSIM", "phase error, rad")
    rows = []
    for row in ranked(study).table:
        arm, _, schedule = row["arm"].rpartition("-schedule")
        against = _against(study, row["arm"], schedule_arm("control", schedule))
        metrics = [_metric(study, row["arm"], f"test/{key}", ".3f") for key in ("r_factor", "amp_ssim", "phase_mae")]
        rise = f"{max(rises(study, row['arm'])):.2f}"
        rows.append((arm, schedule, _failed(row), _loss(row), against, rise, *metrics))
    return table(head, rows)


def full_size() -> str:
    """One seed at full size: an arm a row, best first."""
    head = ("arm", "best val_loss", "at epoch", "median of the last 10 epochs", "stitched R-factor")
    head += ("amplitude SSIM", "phase error, rad")
    rows = []
    for row in ranked("full_size").table:
        (run,) = of_arm("full_size", row["arm"])
        losses = run.history["val_loss"]
        metrics = [number(run.metrics[f"test/{key}"], ".3f") for key in ("r_factor", "amp_ssim", "phase_mae")]
        best = min(losses)
        rows.append((row["arm"], f"{best:.4f}", str(losses.index(best) + 1), f"{median(losses[-10:]):.4f}", *metrics))
    return table(head, rows)


def warning() -> str:
    """The early-warning rule: runs that were never better than the best constant object after a share of the epochs."""
    head = ("after this share of the epochs", "would be stopped", "of them failed in the end: precision")
    head += ("of all that failed later: recall",)
    rows = []
    for share in early_warning.SHARES:
        found = early_warning.tried(early_warning.Rule(share, 0.0), STUDIES)
        precision = f"{found.precision:.2f} {interval(*wilson_interval(found.right, found.stopped), '.2f')}"
        recall = f"{found.recall:.2f}, {found.right} of {found.failed}"
        rows.append((f"{share:g}", str(found.stopped), precision, recall))
    return table(head, rows)


def cross_validation() -> str:
    """The rule that the other studies choose, on the study that is left out; studies without a failure say nothing."""
    head = ("left out", "rule of the others: share, progress under", "stopped", "of them failed", "failed in all")
    left_out = list(early_warning.cross_validated())
    rows = [
        (study, f"{rule.share:g}, {rule.under:g}", str(found.stopped), str(found.right), str(found.failed))
        for study, rule, found in left_out
        if found.stopped or found.failed
    ]
    total = early_warning.total(found for *_, found in left_out)
    low, high = wilson_interval(total.right, total.stopped)
    said = f"precision {total.precision:.2f} {interval(low, high, '.2f')}, recall {total.recall:.2f}"
    rows.append(("all", said, str(total.stopped), str(total.right), str(total.failed)))
    return table(head, rows)


#: Tables by the name that the pages have for them.
TABLES: Final[Mapping[str, Callable[[], str]]] = {
    **{study: partial(outcome, study) for study in STUDIES if study.startswith(("q1_", "q7_", "champion"))},
    "depth": depth,
    "drift": drift,
    "start": start,
    "clipping": clipping,
    "learning_rates": learning_rates,
    "candidates": candidates,
    "better": better,
    "overlap": partial(schedules, "q6_overlap"),
    "longer": partial(schedules, "q6_longer"),
    "full_size": full_size,
    "start_sgd": partial(by_rate, "q3_start_sgd"),
    "clipping_sgd": partial(by_rate, "q4_clip_sgd"),
    "warning": warning,
    "cross_validation": cross_validation,
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
            (RESULTS / "figures" / f"{name}.png").write_bytes(to_png(draw(), dpi=110))


if __name__ == "__main__":
    main()
