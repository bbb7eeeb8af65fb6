"""What leaves a device encoded is, byte for byte, what the store would have made of the vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.codecs.device_codec import DeviceCodec
from actors.codecs.pooling import encode_colbert
from actors.embedders.registry import load_embedder
from actors.outputs import MultiVectors, offsets_of
from actors.spec import ComputeSpec, EmbedderSpec
from pipelines.config import CodecConfig, EmbedderConfig
from pipelines.indexing.stages import EncodeOutputs
from tests.checkpoints import build

POOLINGS = {1: "none", 2: "sequential2", 3: "sequential3"}
TEXTS = ["", "panda", "what is the river " * 9, "a b c d e f", " ", "panda " * 5]


@pytest.mark.parametrize("codec", ["sign", "rotated_sign", "int8"])
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    dim=st.sampled_from([1, 7, 8, 20]),
    every=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_bytes_are_those_of_the_store(
    codec: Literal["sign", "rotated_sign", "int8"], lengths: list[int], dim: int, every: int, seed: int
) -> None:
    sizes = np.array(lengths, np.int64)
    vectors = np.random.default_rng(seed).standard_normal((sizes.sum(), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = encode_colbert(MultiVectors(offsets_of(sizes), vectors), codec, POOLINGS[every])
    device_codec = DeviceCodec(codec, every)
    got = device_codec(torch.from_numpy(vectors), sizes).numpy()
    assert np.array_equal(offsets_of(device_codec.lengths(sizes)), expected.offsets)
    assert got.shape == (len(expected.vectors), device_codec.width(dim))
    if codec == "sign" or every == 1:
        assert np.array_equal(got, expected.vectors)
    else:  # means of a pair differ in their last bit between torch and numpy
        assert np.abs(got[:, 2:].view(np.int8).astype(int) - expected.vectors[:, 2:].view(np.int8)).max(initial=0) <= 1


@pytest.mark.parametrize("pooling", ["none", "sequential2"])
def test_an_engine_gives_codes_in_the_order_of_the_texts(
    tmp_path: Path, pooling: Literal["none", "sequential2"]
) -> None:
    folder = build("m3", tmp_path / "m3")
    config = EmbedderConfig(name="m", model=str(folder), codec=CodecConfig(colbert="sign", colbert_pooling=pooling))
    finish = EncodeOutputs(config)
    model = load_embedder(EmbedderSpec(model=str(folder), compute=ComputeSpec(dtype="fp32", budget=64)))
    tokens = model.tokenise([*TEXTS, "", TEXTS[0]])
    host = finish(model.embed_tokens(tokens), tokens, model.colbert_ids)
    encoded = model.embed_tokens(tokens, device_codec=finish.on_device)
    device = finish(encoded, tokens, model.colbert_ids)
    assert host["m_colbert"].equals(device["m_colbert"])


def test_what_only_the_host_can_do_stays_there() -> None:
    def on_device(**codec: str) -> DeviceCodec | None:
        return EncodeOutputs(EmbedderConfig(name="m", model="x", codec=CodecConfig(**codec))).on_device  # type: ignore[arg-type]

    assert on_device(colbert="sign", colbert_pooling="sequential3") == DeviceCodec("sign", 3)
    assert on_device(colbert="int8") == DeviceCodec("int8")
    assert on_device(colbert="sign", colbert_pooling="distinct") is None
    assert on_device(colbert="bits2") is None
