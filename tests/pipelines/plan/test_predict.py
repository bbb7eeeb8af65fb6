"""A prediction's arithmetic: the slowest part sets the pace, and every card of the table has a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import XLMRobertaConfig

from actors.compute.cost import ModelShape, read_shape
from pipelines.config import BuildConfig, ConfigError, validate
from pipelines.plan import Pool, make_plan
from pipelines.plan.predict import CARDS, predict

LENGTHS = np.full(100, 150)


@pytest.fixture
def m3() -> ModelShape:
    config = XLMRobertaConfig(
        vocab_size=250002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    shape = read_shape(config, {"colbert": 1024})
    assert shape is not None
    return shape


@pytest.mark.parametrize("name", list(CARDS))
def test_a_prediction_is_a_range_around_what_is_likely(name: str, m3: ModelShape) -> None:
    found = predict(CARDS[name], m3, LENGTHS, 200, 200)
    assert found.low < found.tokens_per_second < found.high
    assert found.limit == "products"
    assert found.shares["products"] + found.shares["attention"] + found.shares["memory"] == pytest.approx(1)
    assert found.fits


def test_a_faster_card_is_faster(m3: ModelShape) -> None:
    speeds = [predict(CARDS[name], m3, LENGTHS, 200, 200).tokens_per_second for name in ("t4", "l4", "a100", "h100")]
    assert speeds == sorted(speeds)


def test_what_is_written_or_copied_may_set_the_pace(m3: ModelShape) -> None:
    assert predict(CARDS["h100"], m3, LENGTHS, 200, 4096).limit == "writing"
    assert predict(CARDS["h100"], m3, LENGTHS, 10**6, 200).limit == "host link"


def test_a_model_too_large_for_a_card_is_named() -> None:
    large = ModelShape(
        hidden=4096, layers=64, feed_forward=14336, heads=32, kv_heads=8, head_width=128, vocabulary=32000, gated=True
    )
    assert predict(CARDS["a100"], large, LENGTHS, 100, 100).fits
    small = predict(CARDS["t4"], large, LENGTHS, 100, 100)
    assert not small.fits
    assert "DO NOT FIT" in small.text()


def _job(folder: Path, **sections: Any) -> BuildConfig:
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["cat " * 8, "cat " * 40]}), folder / "0.parquet")
    return validate({"input": {"paths": [str(folder)]}, "index": {"uri": str(folder / "idx")}, **sections})


def test_plan_on_a_card_runs_no_model_and_says_that_it_predicts(tmp_path: Path) -> None:
    plan = make_plan(_job(tmp_path), Pool(card="H100"))
    (embedder,) = plan.embedders
    assert embedder.prediction is not None
    assert embedder.tokens_per_second == embedder.prediction.tokens_per_second
    assert not embedder.measured
    assert "H100 SXM 80 GB: about" in plan.text()
    assert "each, predicted" in plan.text()
    assert plan.to_dict()["embedders"][0]["prediction"]["limit"]


def test_int8_on_a_card_is_warned_of(tmp_path: Path) -> None:
    int8 = make_plan(_job(tmp_path, embedders=[{"compute": {"dtype": "int8"}}]), Pool(card="l4"))
    (warning,) = [line for line in int8.warnings if "int8" in line]
    assert warning.startswith("embedders.0.compute.dtype int8 runs on CPUs only: a build on a L4 24 GB refuses it")
    assert not any("int8" in line for line in make_plan(_job(tmp_path), Pool(card="l4")).warnings)


def test_an_unknown_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no data sheet of a card 'b100'; there are t4, l4"):
        make_plan(_job(tmp_path), Pool(card="b100"))
