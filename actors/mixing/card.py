"""Writes the README.md of a merged model: its sources, in front matter that the hub reads and in a table."""

from __future__ import annotations

from collections.abc import Sequence

import yaml


def model_card(names: Sequence[str], weights: Sequence[float], losses: Sequence[float] | None, model_type: str) -> str:
    """Renders Markdown with sources, weights, and the losses on the examples if the weights came from data."""
    head = yaml.safe_dump(
        {"base_model": list(names), "base_model_relation": "merge", "tags": ["lm-cocktail", "merge", model_type]},
        sort_keys=False,
    )
    rows = [
        f"| {name} | {weight:.6g} |" + ("" if losses is None else f" {losses[i]:.6g} |")
        for i, (name, weight) in enumerate(zip(names, weights, strict=True))
    ]
    columns = "| model | weight |" + ("" if losses is None else " loss on the examples |")
    rule = "|---|---|" + ("" if losses is None else "---|")
    made = (
        "" if losses is None else "\nThe weights are softmax(-loss / temperature) over the losses on a few examples.\n"
    )
    table = "\n".join([columns, rule, *rows])
    return (
        f"---\n{head}---\n\n# Mixed {model_type}\n\n"
        f"Each parameter is the weighted sum of the same parameter of these models (LM-Cocktail):\n\n{table}\n{made}\n"
        f"Config, tokenizer and dtypes are those of {names[0]}. Mixed by tridex.\n"
    )
