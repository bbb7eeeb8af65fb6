"""Plans a job before it runs (`tridex plan`): counts, sizes, time, cost and warnings."""

from __future__ import annotations

from pipelines.plan.figures import EmbedderPlan, Plan
from pipelines.plan.make import Pool, make_plan

__all__ = ["EmbedderPlan", "Plan", "Pool", "make_plan"]
