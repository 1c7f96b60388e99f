"""A table of runs in; ranked arms, tests, intervals and a decision in words out."""

from fnostab.ranking.arms import (
    BOOTSTRAP_SEED as BOOTSTRAP_SEED,
    RANKED_BY as RANKED_BY,
    STABILITY_COLUMNS as STABILITY_COLUMNS,
    Ranking as Ranking,
    rank_arms as rank_arms,
)
from fnostab.ranking.decision import Decision as Decision
from fnostab.ranking.intervals import (
    interquartile_mean as interquartile_mean,
    probability_of_improvement as probability_of_improvement,
    wilson_interval as wilson_interval,
)
