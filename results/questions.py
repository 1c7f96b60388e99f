"""Tables of the questions of docs/results, from the runs in docs/results/data."""

import math

from fnostab.ranking import probability_of_improvement
from fnostab.study.text import number
from results.cells import against, both, failed, family, loss, metric, stitched, table
from results.runs import (
    BETTER,
    CLIPPED,
    DEPTHS,
    NORMS,
    clipped_fraction,
    depth_arm,
    median,
    of_arm,
    pair,
    ranked,
    rate_arms,
    read_runs,
    row_of,
    schedule_arm,
    sensitivity,
    values,
)

#: Heads of columns that many tables have.
_OUTCOME = ("failed", "median best val_loss", "better than control", "stitched R-factor, median", "better by it")


def _outcome(study: str, arm: str, control: str) -> tuple[str, ...]:
    row = row_of(study, arm)
    by_both = [against(study, arm, control, by) for by in ("best_val_loss", "r_stitched")]
    return failed(row), loss(row), by_both[0], stitched(row), by_both[1]


def outcome(study: str) -> str:
    """Question 1 and 7: an arm a row, best first."""
    rows = [
        (row["arm"], *_outcome(study, row["arm"], "control"), metric(study, row["arm"], "test/amp_ssim", ".3f"))
        for row in ranked(study).table
    ]
    return f"{table(('arm', *_OUTCOME, 'amplitude SSIM'), rows)}\n\n{family(study)}"


def depth() -> str:
    """Question 2: median best val_loss and stitched R-factor by arm and depth."""
    arms = list(dict.fromkeys(run.arm.rpartition("-")[0] for run in read_runs("q2_depth")))
    found = {(arm, d): row_of("q2_depth", depth_arm(arm, d)) for arm in arms for d in DEPTHS}
    rows = [(arm, *(f"{loss(row)}, {row['runs']} runs" for row in (found[arm, d] for d in DEPTHS))) for arm in arms]
    by_loss = table(("median best val_loss", *(f"{d} blocks" for d in DEPTHS)), rows)
    rows = [(arm, *(stitched(found[arm, d]) for d in DEPTHS)) for arm in arms]
    by_object = table(("stitched R-factor, median", *(f"{d} blocks" for d in DEPTHS)), rows)
    return f"{by_loss}\n\n{by_object}"


def depth_pairs() -> str:
    """Question 2: what is clear at 8 and at 16 blocks, and between them."""
    control = "control"
    pairs = [
        (f"{arm} than control, {d} blocks", depth_arm(arm, d), depth_arm(control, d))
        for d in (8, 16)
        for arm in _TEN_SEEDS
    ]
    pairs += [(f"{arm}, 16 than 8 blocks", depth_arm(arm, 16), depth_arm(arm, 8)) for arm in (control, *_TEN_SEEDS)]
    rows = [
        (name, *(against("q2_depth", arm, other, by) for by in ("best_val_loss", "r_stitched")))
        for name, arm, other in pairs
    ]
    head = ("which is better", "by val_loss", "by stitched R-factor")
    return f"{table(head, rows)}\n\n{family('q2_depth')}"


#: Arms of question 2 that have ten seeds at 8 and at 16 blocks, besides control.
_TEN_SEEDS = ("pre", "plain", "stable")


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
    head = ("start", "gradient of the branch at step 0", "norm weight after 1 epoch", "val_loss after epoch 1")
    head += ("after 4", "best val_loss, median", "better than gamma_0", "stitched R-factor, median", "better by it")
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
                number(median(run.health["norm_weight_absmean"][1] for run in runs), ".3f"),
                *(number(median(run.history["val_loss"][epoch] for run in runs), ".4f") for epoch in (0, 3)),
                *_outcome("q3_start", row["arm"], "gamma_0")[1:],
            )
        )
    return f"{table(head, rows)}\n\n{family('q3_start')}"


def by_rate(study: str) -> str:
    """Question 3 and 4, under SGD: median best val_loss and stitched R-factor by arm and learning rate, best first."""
    arms = rate_arms(study)
    head, rows = _rates(study)
    best = {arm: min(row_of(study, name)["median_best_val_loss"] for name in of.values()) for arm, of in arms.items()}
    return f"{table(head, sorted(rows, key=lambda row: best[row[0]]))}\n\n{family(study)}"


def _rates(study: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows, by arm, of a table with a column a learning rate."""
    arms = rate_arms(study)
    rates = next(iter(arms.values()))
    rows = [(arm, *(both(study, name) for name in of.values())) for arm, of in arms.items()]
    return ("arm", *(f"{rate:g}" for rate in rates)), rows


def clipping() -> str:
    """Question 4: outcome beside the clipped fraction."""
    head = ("rule", "clipped fraction, median over steps", *_OUTCOME)
    head = tuple(name.replace("control", "none") for name in head)
    rows = [
        (row["arm"], number(clipped_fraction(row["arm"]), ".3f"), *_outcome("q4_clip", row["arm"], "none"))
        for row in ranked("q4_clip").table
    ]
    return f"{table(head, rows)}\n\n{family('q4_clip')}"


def clipping_cost() -> str:
    """Question 4: norm 1.0 (control) beside no clipping (plain), in every setting with five seeds and more."""
    head = ("setting", "seeds", "plain", "control", "clipping costs", "plain is better", "R, plain", "R, control")
    head += ("better by it", "comparisons")
    rows = []
    for setting, (study, control, plain) in CLIPPED.items():
        found = [row_of(study, arm) for arm in (plain, control)]
        losses, objects = ([row[f"median_{by}"] for row in found] for by in ("best_val_loss", "r_stitched"))
        rows.append(
            (
                *(setting, str(found[0]["runs"]), *(number(value, ".4f") for value in losses)),
                *(f"{100 * (losses[1] / losses[0] - 1):.1f} %", against(study, plain, control)),
                *(*(number(value, ".3f") for value in objects), against(study, plain, control, "r_stitched")),
                str(ranked(study).comparisons),
            )
        )
    return table(head, rows)


def learning_rates() -> str:
    """Question 5: medians by learning rate, and the sensitivity."""
    head, rows = _rates("q5_lr")
    rows = [(*row, number(sensitivity(row[0]), ".3f")) for row in rows]
    return f"{table((*head, 'sensitivity'), rows)}\n\n{family('q5_lr')}"


def candidates() -> str:
    """Question 6: a first look at candidates."""
    arms = list(dict.fromkeys(run.base_arm for run in read_runs("explore")))
    found = {(arm, d): row_of("explore", depth_arm(arm, d)) for arm in arms for d in (4, 8)}
    arms.sort(key=lambda arm: sum(found[arm, d]["median_best_val_loss"] for d in (4, 8)))
    cells = [
        (arm, *(f"{both('explore', depth_arm(arm, d))}, {found[arm, d]['runs']} runs" for d in (4, 8))) for arm in arms
    ]
    return table(("arm", "4 blocks", "8 blocks"), cells)


def better() -> str:
    """Question 6: pre beside the control, in the settings that the target names, and in others."""
    head = ("setting", "arm", *_OUTCOME[:2], "under control's", *_OUTCOME[2:], "amplitude SSIM")
    rows = []
    for setting, (study, control, pre) in BETTER.items():
        limit = row_of(study, control)["median_best_val_loss"]
        for arm, name in ((control, "control"), (pre, "pre")):
            cells = list(_outcome(study, arm, control))
            under = 100 * (1 - row_of(study, arm)["median_best_val_loss"] / limit)
            cells.insert(2, "" if arm == control else f"{under:.0f} %")
            rows.append((setting, name, *cells, metric(study, arm, "test/amp_ssim", ".3f")))
    studies = dict.fromkeys(study for study, *_ in BETTER.values())
    return f"{table(head, rows)}\n\n{family(*studies)}"


def better_short() -> str:
    """README's table: medians of pre beside the control's, bold where the difference is clear."""
    head = ("setting", "seeds", "failed, control", "pre", "val_loss, control", "pre", "R of the object, control", "pre")
    rows = []
    for setting, (study, *arms) in BETTER.items():
        both_rows = [row_of(study, arm) for arm in arms]
        cells = [setting, str(both_rows[0]["runs"]), *(str(row["failures"]) for row in both_rows)]
        for by, form in (("best_val_loss", ".4f"), ("r_stitched", ".3f")):
            control, pre = (number(row[f"median_{by}"], form) for row in both_rows)
            cells += [control, f"**{pre}**" if pair(study, arms[1], arms[0], by).better else pre]
        rows.append(tuple(cells))
    clear = "Bold is clear: an exact test, corrected for all comparisons of its study, decides it at 5 %."
    return f"{table(head, rows)}\n\n{clear}"


def norms() -> str:
    """Question 6: the norm in front of the branch (pre) beside one at its end with weight 1 (stable_1)."""
    head = ("setting", "seeds", "pre", "stable_1", "pre is better", "R, pre", "R, stable_1", "better by it")
    head += ("comparisons",)
    rows = []
    for setting, (pre, last) in NORMS.items():
        losses, objects = ([values(*arm, by) for arm in (pre, last)] for by in ("best_val_loss", "r_stitched"))
        better_by = [
            against(pre[0], pre[1], last[1], by) if pre[0] == last[0] else f"{probability_of_improvement(*of):.2f}"
            for by, of in (("best_val_loss", losses), ("r_stitched", objects))
        ]
        rows.append(
            (
                *(setting, str(len(losses[0])), *(number(median(of), ".4f") for of in losses), better_by[0]),
                *(*(number(median(of), ".3f") for of in objects), better_by[1]),
                str(ranked(pre[0]).comparisons) if pre[0] == last[0] else "",
            )
        )
    return table(head, rows)


def schedules(study: str) -> str:
    """Question 6: arms with a constant learning rate and with one that falls to 0, beside control with the same."""
    head = ("arm", "learning rate", *_OUTCOME, "largest rise of val_loss", "amplitude SSIM")
    rows = []
    for row in ranked(study).table:
        arm, _, schedule = row["arm"].rpartition("-schedule")
        rise = max(run.drawdown or math.nan for run in of_arm(study, row["arm"]))
        cells = _outcome(study, row["arm"], schedule_arm("control", schedule))
        ssim = metric(study, row["arm"], "test/amp_ssim", ".3f")
        rows.append((arm, schedule, *cells, f"{rise:.2f}", ssim))
    return f"{table(head, rows)}\n\n{family(study)}"


def full_size() -> str:
    """One seed at full size: an arm a row, best first."""
    head = ("arm", "verdict", "best val_loss", "at epoch", "median of the last 10 epochs", "largest rise")
    head += ("stitched R-factor", "amplitude SSIM", "phase error, rad")
    rows = []
    for row in ranked("full_size").table:
        (run,) = of_arm("full_size", row["arm"])
        losses = run.history["val_loss"]
        metrics = [number(run.metrics[f"test/{key}"], ".3f") for key in ("r_factor", "amp_ssim", "phase_mae")]
        course = (f"{min(losses):.4f}", str(losses.index(min(losses)) + 1), f"{median(losses[-10:]):.4f}")
        rows.append((row["arm"], run.verdict, *course, number(run.drawdown, ".2f"), *metrics))
    return table(head, rows)
