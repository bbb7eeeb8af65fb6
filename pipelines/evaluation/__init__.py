"""Measures an index on judged queries: `evaluate`, `tune`."""

from pipelines.evaluation.qrels import read_qrels, read_queries
from pipelines.evaluation.report import Evaluation, evaluate
from pipelines.evaluation.tune import Tuning, tune

__all__ = ["Evaluation", "Tuning", "evaluate", "read_qrels", "read_queries", "tune"]
