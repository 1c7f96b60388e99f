"""Tables of verdicts and stability: what became of every run, and how steadily the runs trained that learnt."""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from scipy import stats

from results.cells import table
from results.runs import STUDIES, Run, of_arm, read_runs

#: A rise of val_loss over these many times the lowest before is counted.
RISES: Final = (1.2, 1.5)
#: Arms that have a column of their own; those of other names are counted together.
ARMS: Final = ("control", "original", "agc", "plain", "pre", "stable", "stable_1")
#: Studies whose runs have the learning rate 1e-3 throughout and 8 epochs, without the overlap term: questions 1, 2, 7.
SMALL: Final = (
    *("q1_curved_phase", "q1_curved_nophase", "q1_flat_phase", "q1_flat_nophase", "q2_depth"),
    *("q7_probe", "q7_1e6", "q7_1e4", "q7_grf", "q7_image"),
)


def all_runs(studies: Iterable[str] = STUDIES) -> Iterator[Run]:
    """The runs of these studies."""
    return (run for study in studies for run in read_runs(study))


def risen(runs: Iterable[Run], over: float) -> list[Run]:
    """Those of `runs` that learnt, and whose val_loss then rose to more than `over` times the lowest before."""
    return [run for run in runs if run.drawdown is not None and run.drawdown > over]


def verdicts() -> str:
    """How many runs have which verdict, by the rules of their day and by today's."""
    counts = Counter((run.first_verdict, run.verdict) for run in all_runs())
    before, now = (list(dict.fromkeys(verdict for verdict in order)) for order in (_old(counts), _new(counts)))
    rows = [(old, *(str(counts[old, new] or "") for new in now)) for old in before]
    total = ("all", *(str(sum(counts[old, new] for old in before)) for new in now))
    return table(("when it was trained", *(f"now {verdict}" for verdict in now)), [*rows, total])


def _old(counts: Counter[tuple[str, str]]) -> list[str]:
    return [old for old, _ in sorted(counts, key=lambda pair: (pair[0] != "converged", pair[0]))]


def _new(counts: Counter[tuple[str, str]]) -> list[str]:
    return [new for _, new in sorted(counts, key=lambda pair: (pair[1] != "converged", pair[1]))]


def changed() -> str:
    """Failures of every study that has any, by verdict, and how many verdicts are other than they were."""
    labels = sorted({run.verdict for run in all_runs() if run.failed})
    rows = []
    for study in STUDIES:
        counts = Counter(run.verdict for run in read_runs(study))
        failures, was = (sum(of) for of in zip(*_failures(study), strict=True))
        if failures:
            cells = [str(counts[label] or "") for label in labels]
            rows.append((study, str(len(read_runs(study))), str(was), str(failures), *cells))
    return table(("study", "runs", "failed when trained", "failed now", *labels), rows)


def _failures(study: str) -> list[tuple[bool, bool]]:
    return [(run.failed, run.first_verdict != "converged") for run in read_runs(study)]


def stability() -> str:
    """Of the runs that learnt, by study and arm, how many rose over each of `RISES`, and relapses."""
    rows = []
    for study in STUDIES:
        cells = []
        for arm in (*ARMS, "others"):
            runs = [run for run in read_runs(study) if run.drawdown is not None]
            runs = [run for run in runs if run.base_arm == arm or (arm == "others" and run.base_arm not in ARMS)]
            low, high = (len(risen(runs, over)) for over in RISES)
            cells.append(f"{low}, {high} of {len(runs)}" if runs else "")
        rows.append((study, *cells))
    return table(("study", *ARMS, "others"), rows)


def no_object(studies: Iterable[str] = STUDIES) -> list[Run]:
    """Converged runs whose stitched test object has an R-factor not under that of one mean pattern everywhere.

    The mean pattern's is that of the validation patches, except on a measured scan, where it is that of the scan.
    """
    return [
        run
        for run in all_runs(studies)
        if not run.failed
        and run.metrics["test/r_factor"]
        >= run.metrics.get("test/r_factor_mean_pattern", run.history["val_loss_mean_pattern"])
    ]


def no_objects() -> str:
    """Of every study that has any, how many converged runs there are whose patches make no object."""
    found = [(study, len(no_object([study])), sum(not run.failed for run in read_runs(study))) for study in STUDIES]
    rows = [(study, str(runs), str(count)) for study, count, runs in found if count]
    return table(("study", "converged", "R not under the mean pattern's"), rows)


#: Studies that have arms with ten seeds, of which a rank correlation across seeds says something.
TEN_SEEDS: Final = (
    *("q1_curved_phase", "q1_curved_nophase", "q3_start", "q2_depth", "q1_flat_phase", "q1_flat_nophase", "q6_overlap"),
)


def correlation(study: str) -> float:
    """Rank correlation, across seeds, of val_loss with the stitched R-factor: mean over the arms with ten seeds."""
    found = []
    for arm in {run.arm for run in read_runs(study)}:
        runs = [run for run in of_arm(study, arm) if not run.failed]
        if len(of_arm(study, arm)) == 10:
            columns = ([run.metrics[key] for run in runs] for key in ("best_val_loss", "test/r_factor"))
            found.append(float(stats.spearmanr(*columns).statistic))
    return statistics.fmean(found)


def correlations() -> str:
    """The rank correlation of val_loss with the stitched R-factor, by study."""
    return table(("study", "rank correlation"), [(study, f"{correlation(study):.2f}") for study in TEN_SEEDS])
