"""Codecs decode exactly what their definition says, and poolings average exactly the vectors they should."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.codecs import names, pooling
from actors.codecs import table as codecs
from actors.codecs.table import TRAINED
from actors.kernels.jit import HAS_NUMBA
from actors.outputs import MultiVectors
from pipelines.retrieval.scoring.maxsim_1bit import BitQuery, SignQuery
from pipelines.retrieval.scoring.vnni import has_vnni

NEEDS_NUMBA = pytest.mark.skipif(not HAS_NUMBA, reason="kernels are switched off")


def unit(n: int, dim: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_settings_may_name_every_codec() -> None:
    assert get_args(names.CodecName) == tuple(codecs.CODECS)


@pytest.mark.parametrize("codec", [name for name in codecs.CODECS if name not in TRAINED])
@pytest.mark.parametrize("dim", [384, 96, 21])
def test_width_and_shape(codec: str, dim: int) -> None:
    stored = codecs.encode(unit(7, dim), codec)
    assert len(stored) == 7
    assert stored[0].nbytes == codecs.width(codec, dim)
    decoded = codecs.decode(stored, codec, dim)
    assert decoded.shape == (7, dim)
    assert decoded.dtype == np.float32


def test_sign_is_bit_j_of_byte_i_lowest_first() -> None:
    x = np.full((1, 16), -1.0, np.float32)
    x[0, [0, 9, 15]] = 1.0
    assert codecs.encode(x, "sign").tolist() == [[0b00000001, 0b10000010]]
    assert codecs.decode(codecs.encode(x, "sign"), "sign", 16).tolist() == (np.sign(x) / 4).tolist()


def test_sign_takes_zero_as_negative() -> None:
    assert codecs.encode(np.zeros((1, 8), np.float32), "sign").tolist() == [[0]]


def test_int8_is_a_float16_scale_and_then_the_values() -> None:
    x = np.array([[0.5, -1.0, 0.25, 0.0]], np.float32)
    stored = codecs.encode(x, "int8")
    scale = np.float32(np.float16(1 / 127))
    assert stored[0, :2].view(np.float16)[0] == np.float16(1 / 127)
    values = np.clip(np.rint(x / scale), -127, 127)
    assert stored[0, 2:].view(np.int8).tolist() == values[0].astype(int).tolist()
    assert np.array_equal(codecs.decode(stored, "int8", 4), (values * scale).astype(np.float32))


def test_bits2_has_the_four_levels_of_the_gaussian_quantiser() -> None:
    t = 0.9816 / 2
    x = np.array([[-t - 0.01, -0.01, 0.01, t + 0.01]], np.float32)
    assert codecs.encode(x, "bits2").tolist() == [[0b11100100]]
    expected = np.array([[-1.5104, -0.4528, 0.4528, 1.5104]], np.float32) / 2
    np.testing.assert_allclose(codecs.decode(codecs.encode(x, "bits2"), "bits2", 4), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("codec", "least"),
    [("float32", 1), ("float16", 0.9999), ("int8", 0.999), ("bits2", 0.92), ("sign", 0.78), ("rotated_sign", 0.78)],
)
def test_decoded_vectors_point_the_same_way(codec: str, least: float) -> None:
    x = unit(200, 384)
    y = codecs.decode(codecs.encode(x, codec), codec, 384)
    cosine = (x * y).sum(1) / np.linalg.norm(y, axis=1)
    assert cosine.mean() >= least - 1e-6


def test_turned_signs_do_not_mind_dimensions_of_unlike_size() -> None:
    x = unit(200, 384) * np.linspace(0.01, 1, 384, dtype=np.float32) ** 2
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    plain, turned = (
        (x * codecs.decode(codecs.encode(x, codec), codec, 384)).sum(1).mean() for codec in ("sign", "rotated_sign")
    )
    assert plain < 0.65
    assert turned > 0.78


@pytest.mark.parametrize("name", ["rotated_sign", "bits2"])
@pytest.mark.parametrize("dim", [384, 21])
def test_products_with_signs_are_those_with_decoded_vectors(name: str, dim: int) -> None:
    query, codes = unit(5, dim, 3), codecs.encode(unit(40, dim), name)
    changed, signs = codecs.get_codec(name).transform_query(query)
    assert signs.name == "sign"
    products = query @ codecs.decode(codes, name, dim).T
    np.testing.assert_allclose(changed @ codecs.decode(codes, signs, changed.shape[1]).T, products, atol=1e-6)


@given(st.lists(st.integers(0, 9), max_size=6), st.sampled_from([2, 3]))
@settings(max_examples=50, deadline=None)
def test_sequential_pooling_averages_neighbours_within_a_text(lengths: list[int], size: int) -> None:
    offsets = np.cumsum([0, *lengths])
    x = unit(int(offsets[-1]), 8) if offsets[-1] else np.zeros((0, 8), np.float32)
    pooled = pooling.pool_vectors(MultiVectors(offsets, x), f"sequential{size}")
    for i, length in enumerate(lengths):
        text = x[offsets[i] : offsets[i + 1]]
        expected = [text[j : j + size].mean(0) for j in range(0, length, size)]
        expected = [e / np.linalg.norm(e) for e in expected]
        np.testing.assert_allclose(pooled.row(i), np.array(expected).reshape(-1, 8), atol=1e-5)


def test_distinct_pooling_joins_the_places_of_one_token_in_order_of_first_use() -> None:
    x = np.eye(5, dtype=np.float32)
    pooled = pooling.pool_vectors(MultiVectors(np.array([0, 4, 5]), x), "distinct", np.array([7, 3, 7, 3, 7]))
    half = np.float32(np.sqrt(0.5))
    assert pooled.offsets.tolist() == [0, 2, 3]
    np.testing.assert_allclose(pooled.vectors, [[half, 0, half, 0, 0], [0, half, 0, half, 0], [0, 0, 0, 0, 1]])


def test_encode_colbert_survives_arrow() -> None:
    coded = pooling.encode_colbert(MultiVectors(np.array([0, 3, 3, 8]), unit(8, 24)), "sign", "sequential2")
    back = MultiVectors.from_arrow(coded.to_arrow(), codecs.width("sign", 24))
    assert back.offsets.tolist() == [0, 2, 2, 5]
    assert np.array_equal(back.vectors, coded.vectors)


def test_wrong_names_and_missing_ids_are_named() -> None:
    with pytest.raises(ValueError, match="unknown ColBERT codec 'bit'; there are float32, float16"):
        codecs.encode(unit(1, 8), "bit")
    with pytest.raises(ValueError, match="unknown ColBERT pooling 'ward'"):
        pooling.pool_vectors(MultiVectors(np.array([0, 1]), unit(1, 8)), "ward")
    with pytest.raises(ValueError, match="one token id for each of the 2 vectors"):
        pooling.pool_vectors(MultiVectors(np.array([0, 2]), unit(2, 8)), "distinct")


@NEEDS_NUMBA
@pytest.mark.parametrize("dim", [384, 96, 21])
@pytest.mark.parametrize("queries", [1, 16, 21])
@pytest.mark.parametrize(
    "vnni", [False, pytest.param(True, marks=pytest.mark.skipif(not has_vnni(), reason="no VNNI"))]
)
def test_both_bit_kernels_give_what_decoding_gives(dim: int, queries: int, vnni: bool) -> None:
    rng, query = np.random.default_rng(1), unit(queries, dim)
    codes = codecs.encode(unit(700, dim, 2), "sign")
    ends = np.sort(rng.integers(0, 700, 40))
    starts = np.concatenate([[0], ends[:-1]])
    weights = rng.random(queries).astype(np.float32)
    products = query @ codecs.decode(codes, "sign", dim).T
    best = [products[:, a:b].max(axis=1) if b > a else np.zeros(queries) for a, b in zip(starts, ends, strict=True)]
    scores = BitQuery(query, vnni).scores(codes, starts, ends, weights)
    np.testing.assert_allclose(scores, np.array(best) @ weights, rtol=1e-4, atol=1e-6)
    if vnni:
        assert np.array_equal(scores, BitQuery(query, False).scores(codes, starts, ends, weights))


@NEEDS_NUMBA
@pytest.mark.parametrize("queries", [1, 8, 21])
@pytest.mark.parametrize("dim", [384, 21])
def test_rough_scores_are_those_of_the_querys_signs(dim: int, queries: int) -> None:
    query, codes = unit(queries, dim), codecs.encode(unit(300, dim, 2), "sign")
    ends = np.sort(np.random.default_rng(1).integers(0, 300, 20))
    starts = np.concatenate([[0], ends[:-1]])
    weights = np.random.default_rng(2).random(queries).astype(np.float32)
    signs = np.where(query > 0, 1, -1) * np.abs(query).mean(axis=1, keepdims=True)
    products = signs @ codecs.decode(codes, "sign", dim).T
    best = [products[:, a:b].max(axis=1) if b > a else np.zeros(queries) for a, b in zip(starts, ends, strict=True)]
    scores = SignQuery(query).scores(codes, starts, ends, weights)
    np.testing.assert_allclose(scores, np.array(best) @ weights, rtol=1e-4, atol=1e-5)
