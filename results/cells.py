"""What stands in the cells of the pages' tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fnostab.ranking import wilson_interval
from fnostab.ranking.exact_tests import fewest_seeds
from fnostab.ranking.pairs import p_text
from fnostab.study.text import interval, number, percent_interval
from results.runs import median, of_arm, pair, ranked, row_of


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, all columns but the first to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def loss(row: Mapping[str, Any]) -> str:
    """Median best val_loss of an arm, with its interval."""
    return _estimate(row, "median_best_val_loss", ".4f")


def stitched(row: Mapping[str, Any]) -> str:
    """Median R-factor of the stitched test object of an arm, with its interval."""
    return _estimate(row, "median_r_stitched", ".3f")


def _estimate(row: Mapping[str, Any], name: str, form: str) -> str:
    return f"{number(row[name], form)} {interval(row[f'{name}_low'], row[f'{name}_high'], form)}".rstrip()


def both(study: str, arm: str) -> str:
    """Medians of val_loss and of the stitched R-factor, and what failed: for tables with a column a setting."""
    row = row_of(study, arm)
    parts = [number(row["median_best_val_loss"], ".4f")]
    if math.isfinite(row["median_r_stitched"]):
        parts.append(f"R {row['median_r_stitched']:.3f}")
    if row["failures"]:
        parts.append(f"{row['failures']} of {row['runs']} failed")
    return ", ".join(parts)


def failed(row: Mapping[str, Any]) -> str:
    """How many runs of an arm failed, with the interval of the rate."""
    return f"{row['failures']} of {row['runs']} {percent_interval(row['failure_rate_low'], row['failure_rate_high'])}"


def share(count: int, of: int) -> str:
    """How many `of` so many, with Wilson's interval of the rate."""
    return f"{count} of {of} {percent_interval(*wilson_interval(count, of))}"


def against(study: str, arm: str, other: str, by: str = "best_val_loss") -> str:
    """Probability that a run of `arm` is better than one of `other`, and its p-value; bold if it is clear."""
    if arm == other:
        return ""
    found = pair(study, arm, other, by)
    probability = f"{found.probability:.2f} {interval(found.low, found.high, '.2f')}".rstrip()
    text = f"{probability}, {p_text(found.p_corrected)}"
    return f"**{text}**" if found.better else text


def family(*studies: str) -> str:
    """The line under a table that says what its p-values are corrected for, and what it takes to be clear."""
    rankings = [ranked(study) for study in studies]
    alpha = rankings[0].design.alpha
    many = [ranking.comparisons for ranking in rankings]
    seeds = _listed([str(fewest_seeds(comparisons, alpha)) for comparisons in many])
    if any(pair.better for ranking in rankings for pair in (*ranking.pairs, *ranking.other_pairs)):
        clear = f"Bold is clear, p at most {alpha:g}; that takes at least {seeds} seeds an arm."
    else:
        clear = f"Nothing here is clear (p at most {alpha:g}); that takes at least {seeds} seeds an arm."
    counts = [f"{count} in {study}" for study, count in zip(studies, many, strict=True)]
    of = f"the study's {many[0]} comparison{'s' * (many[0] > 1)}" if len(many) == 1 else "all comparisons of a study"
    named = "" if len(many) == 1 else f" ({_listed(counts)})"
    return f"P-values are corrected for {of}{named}, by each column for itself. {clear}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1]) if len(words) > 1 else words)


def metric(study: str, arm: str, key: str, form: str) -> str:
    """Median of a metric over the converged runs of an arm, as `fnostab compare` has it."""
    return number(median(run.metrics.get(key) for run in of_arm(study, arm) if not run.failed), form)
