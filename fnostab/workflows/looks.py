"""The looks of a study until decided, as the store tells of its runs: which runs are next, and how it stands."""

from collections.abc import Collection, Sequence

from fnostab.config import ConfigError
from fnostab.ranking import BOOTSTRAP_SEED, Ranking, rank_arms
from fnostab.study.plan import Planned, StudyPlan
from fnostab.study.selection import select_runs
from fnostab.study.sequential import Next, Standing, Until, schedule_of
from fnostab.study.stored_run import StoredRun, to_rows
from fnostab.tracking.studies import StudyFolder, design_tags, find_runs, stored_design


class Looks:
    """The looks of the study `plan`; `parent` is its parent run if it was begun before.

    Raises `ConfigError` where `until` does not fit to what the study was begun with, or its runs cannot be compared.
    """

    def __init__(self, plan: StudyPlan, until: Until, data_sha256: str, parent: StoredRun | None) -> None:
        self._plan = plan
        self._data_sha256 = data_sha256
        known = self._results(parent.run_id if parent else None)
        for arm in sorted({run.arm for run in known} - plan.arms.keys()):
            raise ConfigError(f"`until` (=decided) needs all arms of study {plan.study}: {arm} is not among them")
        earlier = stored_design(parent)
        begun = earlier if earlier.looks else None
        self._schedule = schedule_of(until, plan, {run.seed for run in known}, begun)
        self.tags = design_tags(self._schedule.design)

    @property
    def all_runs(self) -> list[Planned]:
        """Every run that the study may come to."""
        return self._schedule.plan.runs

    def next(self, trained: Collection[tuple[str, int]], parent_run_id: str) -> Next:
        """What is to be trained next, by the runs in the store, if those of `trained` have a result."""
        runs = self._results(parent_run_id)

        def rank(seeds: Sequence[int]) -> Ranking:
            rows, _ = to_rows([run for run in runs if run.seed in seeds])
            return rank_arms(rows, BOOTSTRAP_SEED, 0, design=self._schedule.design)

        return self._schedule.next_runs(trained, rank)

    def record(self, found: Next, parent: StudyFolder) -> str:
        """Tell how the study stands, in words, which the parent run then says, too; nothing before the first look."""
        if found.ranking is None:
            return ""
        text = self._schedule.told(found.ranking, over=not found.runs)
        parent.set_tags(Standing.of(found.ranking).tags())
        parent.set_note(f"Study {self._plan.study}: {text}")
        return text

    def _results(self, parent_run_id: str | None) -> Sequence[StoredRun]:
        """The runs that are compared: those of the parent, and others that this study need not train again."""
        found = [
            run
            for run in find_runs(self._plan.study)
            if run.data_sha256 == self._data_sha256
            and (run.tags.get("mlflow.parentRunId", "") == parent_run_id or self._is_planned(run))
        ]
        return select_runs(self._plan.study, found).runs if any(run.is_result for run in found) else []

    def _is_planned(self, run: StoredRun) -> bool:
        if run.arm not in self._plan.arms:
            return False
        return run.tags.get("config_sha256") == self._plan.run(run.arm, run.seed).config.sha256()
