"""`tridex plan`: what a job will do, before it does it."""

from __future__ import annotations

from pipelines.plan.figures import EmbedderPlan, Plan
from pipelines.plan.make import Pool, make_plan

__all__ = ["EmbedderPlan", "Plan", "Pool", "make_plan"]
