"""What upstream's reranker guide shows, constructor arguments included, on tiny models of the same names.

`devices` of a GPU are left out; layers are those that the tiny models have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checkpoints_rerankers import build

from actors import (
    FlagAutoReranker,
    FlagLLMReranker,
    FlagReranker,
    LayerWiseFlagLLMReranker,
    LightWeightFlagLLMReranker,
)

BUILD = build
pytestmark = pytest.mark.usefixtures("in_upstream_models")
MODELS = {
    "BAAI/bge-reranker-large": "xlm_roberta",
    "BAAI/bge-reranker-v2-m3": "xlm_roberta",
    "BAAI/bge-reranker-v2-gemma": "gemma",
    "BAAI/bge-reranker-v2-minicpm-layerwise": "minicpm",
    "BAAI/bge-reranker-v2.5-gemma2-lightweight": "cost_wise_gemma",
    "your_model_name_or_path": "bert",
}
AS_SHOWN: dict[str, Any] = {"query_max_length": 256, "passage_max_length": 512, "use_fp16": True, "devices": ["cpu"]}
PAIR = ["query", "passage"]
PAIRS = [["what is panda?", "hi"], ["what is panda?", "The giant panda, or simply panda, is a bear endemic to China."]]


def assert_scores(reranker: Any, **layers: Any) -> None:
    """One pair gives a list of one, as upstream; the sigmoid of scores is what normalize=True gives."""
    one, scores = reranker.compute_score(PAIR, **layers), reranker.compute_score(PAIRS, **layers)
    assert [len(one), len(scores)] == [1, 2]
    assert len(set(scores)) == 2
    np.testing.assert_allclose(reranker.compute_score([PAIR, *PAIRS], **layers), [*one, *scores], atol=1e-5)
    mapped = reranker.compute_score(PAIRS, normalize=True, **layers)
    np.testing.assert_allclose(mapped, 1 / (1 + np.exp(-np.array(scores))), atol=1e-6)


def test_auto_reranker() -> None:
    reranker = FlagAutoReranker.from_finetuned("BAAI/bge-reranker-large", **AS_SHOWN)
    assert isinstance(reranker, FlagReranker)
    assert_scores(reranker)


def test_auto_reranker_of_a_fine_tuned_model() -> None:
    assert_scores(
        FlagAutoReranker.from_finetuned("your_model_name_or_path", model_class="encoder-only-base", **AS_SHOWN)
    )


def test_normal_reranker() -> None:
    assert_scores(FlagReranker("BAAI/bge-reranker-v2-m3", **AS_SHOWN))


def test_llm_reranker() -> None:
    assert_scores(FlagLLMReranker("BAAI/bge-reranker-v2-gemma", **AS_SHOWN))


def test_layerwise_reranker() -> None:
    assert_scores(LayerWiseFlagLLMReranker("BAAI/bge-reranker-v2-minicpm-layerwise", **AS_SHOWN), cutoff_layers=[4])


@pytest.mark.parametrize("name", ["compress_layers", "compress_layer"])
def test_lightweight_reranker(name: str) -> None:
    reranker = LightWeightFlagLLMReranker("BAAI/bge-reranker-v2.5-gemma2-lightweight", **AS_SHOWN)
    assert_scores(reranker, cutoff_layers=[6], compress_ratio=2, **{name: [3, 5]})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BAAI/bge-reranker-v2-gemma", FlagLLMReranker),
        ("BAAI/bge-reranker-v2-minicpm-layerwise", LayerWiseFlagLLMReranker),
        ("BAAI/bge-reranker-v2.5-gemma2-lightweight", LightWeightFlagLLMReranker),
    ],
)
def test_auto_reranker_takes_the_class_of_each_name(name: str, expected: type) -> None:
    assert isinstance(FlagAutoReranker.from_finetuned(name, **AS_SHOWN), expected)
