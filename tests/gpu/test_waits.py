"""A batch makes the host wait once on a GPU, and gives there the numbers that a CPU gives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.codecs.device_codec import DeviceCodec
from actors.embedders.base import Embedder
from actors.embedders.registry import load_embedder
from actors.outputs import EmbeddingBatch
from actors.rerankers.registry import load_reranker
from actors.spec import ComputeSpec, EmbedderSpec, Output
from tests import checkpoints, checkpoints_chains, checkpoints_rerankers
from tests.gpu.stand_in import StandIn, stand_in

TEXTS = ["panda", "what is the river " * 9, "a b c d e f", " ", "panda " * 5, "the bear, the river and the panda"]
BUDGET = 40
EMBEDDERS = ("bert", "m3", "m3_small_colbert", "mistral", "qwen3", "gemma2")
CHAINS = (
    "mean_dense_tanh", "joined_poolings", "max_not_normalised", "legacy_weighted_mean", "qwen3_last_token",
    "prompt_left_out_cls", "residual", "modernbert", "nomic", "gte", "t5", "splade_bert", "splade_task", "splade_sum",
    "splade_modernbert", "multi_vector", "multi_vector_expanded", "pylate_two_dense", "stanford",
)  # fmt: skip
PADDED = {"max_not_normalised", "residual", "t5", "splade_task"}
"""Run padded by transformers' own code, which reads the mask back once per batch."""
RERANKERS = ("bert", "xlm_roberta", "llama", "gemma", "minicpm", "cost_wise_gemma")
PAIRS = [("what is a panda", text) for text in TEXTS]


@pytest.fixture
def device() -> Iterator[StandIn]:
    with stand_in() as found:
        yield found


def compute(on: str, dtype: str = "fp32") -> ComputeSpec:
    return ComputeSpec(device=on, dtype=dtype, budget=BUDGET, threads=1 if on == "cpu" else None)  # type: ignore[arg-type]


def build(kind: str, folder: Path) -> Path:
    return (checkpoints.build if kind in EMBEDDERS else checkpoints_chains.build_chain)(kind, folder / kind)


def load(folder: Path, on: str, dtype: str = "fp32", **options: Any) -> Embedder:
    return load_embedder(EmbedderSpec(model=str(folder), compute=compute(on, dtype), **options))


def report(device: StandIn) -> None:
    if os.environ.get("TRIDEX_SHOW_WAITS"):
        print(sum(device.waits.values()), dict(device.where))


def assert_close(found: EmbeddingBatch, expected: EmbeddingBatch, atol: float) -> None:
    if expected.dense is not None:
        np.testing.assert_allclose(found.dense, expected.dense, atol=atol)
    if expected.sparse is not None and atol < 1e-3:
        assert found.sparse is not None
        np.testing.assert_array_equal(found.sparse.offsets, expected.sparse.offsets)
        np.testing.assert_array_equal(found.sparse.token_ids, expected.sparse.token_ids)
        np.testing.assert_allclose(found.sparse.weights, expected.sparse.weights, atol=atol)
    if expected.colbert is not None:
        assert found.colbert is not None
        np.testing.assert_array_equal(found.colbert.offsets, expected.colbert.offsets)
        np.testing.assert_allclose(found.colbert.vectors, expected.colbert.vectors, atol=atol)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [*EMBEDDERS, *CHAINS])
def test_an_embedder_waits_once_per_batch_and_gives_the_cpus_numbers(
    kind: str, dtype: str, tmp_path: Path, device: StandIn
) -> None:
    folder = build(kind, tmp_path)
    expected = load(folder, "cpu").embed_corpus(TEXTS)
    model = load(folder, "cuda:0", dtype)
    tokens = model.tokenise(TEXTS)
    device.reset()
    found = model.embed_tokens(tokens)
    report(device)
    batches = len(model.engine.executor.run(tokens.lengths, lambda rows: None)[0])
    assert batches >= 2
    assert sum(device.waits.values()) == batches * (2 if kind in PADDED else 1), device.where
    assert_close(found, expected, 1e-4 if dtype == "fp32" else 0.2)


@pytest.mark.parametrize("kind", ["modernbert", "multi_vector_expanded", "pylate_two_dense", "legacy_weighted_mean"])
def test_queries_wait_once_per_batch(kind: str, tmp_path: Path, device: StandIn) -> None:
    folder = build(kind, tmp_path)
    expected = load(folder, "cpu").embed_queries(TEXTS)
    model = load(folder, "cuda:0")
    tokens = model.tokenise(TEXTS, "query")
    device.reset()
    found = model.embed_tokens(tokens, kind="query")
    report(device)
    assert sum(device.waits.values()) == len(model.engine.executor.run(tokens.lengths, lambda rows: None)[0])
    assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("codec", [DeviceCodec("sign"), DeviceCodec("rotated_sign", 2), DeviceCodec("int8", 3)])
def test_codecs_on_the_device_add_no_wait(codec: DeviceCodec, tmp_path: Path, device: StandIn) -> None:
    folder = build("m3", tmp_path)
    outputs: tuple[Output, ...] = ("dense", "sparse", "colbert")
    model = load(folder, "cuda:0")
    tokens = model.tokenise(TEXTS)
    model.embed_tokens(tokens, outputs, codec)  # the rotation is copied once
    device.reset()
    found = model.embed_tokens(tokens, outputs, codec)
    report(device)
    assert sum(device.waits.values()) == len(model.engine.executor.run(tokens.lengths, lambda rows: None)[0])
    expected = load(folder, "cpu").embed_tokens(tokens, outputs, codec)
    assert found.colbert is not None
    assert expected.colbert is not None
    assert (found.colbert.vectors != expected.colbert.vectors).mean() < 0.01


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", RERANKERS)
def test_a_reranker_waits_once_per_batch_and_gives_the_cpus_scores(
    kind: str, dtype: str, tmp_path: Path, device: StandIn
) -> None:
    folder = checkpoints_rerankers.build(kind, tmp_path / kind)
    compress: dict[str, Any] = {"compress_layers": (1,), "compress_ratio": 2} if kind == "cost_wise_gemma" else {}
    expected = load_reranker(str(folder), compute=compute("cpu"), **compress).score_pairs(PAIRS)
    model = load_reranker(str(folder), compute=compute("cuda:0", dtype), **compress)
    device.reset()
    found = model.score_pairs(PAIRS)
    report(device)
    batches = sum(what == "event.record" for _, what in device.calls)
    assert batches >= 2
    assert sum(device.waits.values()) == batches, device.where
    np.testing.assert_allclose(found, expected, atol=1e-3 if dtype == "fp32" else 0.5)
    assert torch.isfinite(torch.from_numpy(found)).all()
