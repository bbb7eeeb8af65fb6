"""Trains M3 heads (lexical weights and ColBERT) for an encoder that has none: `fit_heads`."""

from __future__ import annotations

from actors.fitting.fit import fit_heads
from actors.fitting.result import FitConfig, FitResult

__all__ = ["FitConfig", "FitResult", "fit_heads"]
