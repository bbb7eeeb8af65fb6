"""Merges fine-tuned models into one by a weighted sum of their parameters (LM-Cocktail)."""

from __future__ import annotations

from actors.mixing.mix import Mix, ModelType, mix_models, mix_models_by_layers, mix_models_with_data

__all__ = ["Mix", "ModelType", "mix_models", "mix_models_by_layers", "mix_models_with_data"]
