"""A table of runs in; ranked arms, tests, intervals and a decision in words out."""

from fnostab.ranking.arms import BOOTSTRAP_SEED, FAILED, VERDICTS, Ranking, rank_arms
from fnostab.ranking.decision import Decision
from fnostab.ranking.intervals import Pair, interquartile_mean, probability_of_improvement, wilson_interval

__all__ = [
    "BOOTSTRAP_SEED",
    "FAILED",
    "VERDICTS",
    "Decision",
    "Pair",
    "Ranking",
    "interquartile_mean",
    "probability_of_improvement",
    "rank_arms",
    "wilson_interval",
]
