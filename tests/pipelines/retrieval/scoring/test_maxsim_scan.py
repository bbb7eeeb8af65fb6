"""Scanning one-bit codes by bounds gives the same rows and bits as scoring every document."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from actors.codecs.table import encode, get_codec
from actors.kernels.jit import HAS_NUMBA
from actors.outputs import MultiVectors, offsets_of
from pipelines.retrieval.scoring.kernels import top_n
from pipelines.retrieval.scoring.maxsim import maxsim, normalised_weights, rows_within_reach, within_reach
from pipelines.retrieval.scoring.vnni import has_vnni

Floats = npt.NDArray[np.float32]
KERNELS = [False, pytest.param(True, marks=pytest.mark.skipif(not has_vnni(), reason="no VNNI"))]


def unit(rng: np.random.Generator, n: int, dim: int) -> Floats:
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def documents_of(rng: np.random.Generator, n: int, dim: int, codec: str) -> MultiVectors:
    """Documents of up to 40 vectors about few subjects, every tenth without any."""
    lengths = np.where(np.arange(n) % 10 == 3, 0, rng.integers(1, 40, n))
    subjects = unit(rng, 12, dim)
    vectors = subjects[rng.integers(0, 12, lengths.sum())] + 0.7 * unit(rng, int(lengths.sum()), dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return MultiVectors(offsets_of(lengths), encode(vectors.astype(np.float32), codec))


def queries_of(rng: np.random.Generator, dim: int) -> list[tuple[Floats, Floats | None]]:
    sizes = [1, 16, 9, 21, 5]
    return [(unit(rng, m, dim), None if i == 1 else rng.random(m).astype(np.float32)) for i, m in enumerate(sizes)]


@pytest.mark.skipif(not HAS_NUMBA, reason="numba is absent or switched off")
@pytest.mark.parametrize("dim", [384, 96, 21])
@pytest.mark.parametrize("vnni", KERNELS)
def test_approximate_scores_are_off_by_less_than_the_bound(dim: int, vnni: bool) -> None:
    from pipelines.retrieval.scoring.maxsim_1bit_scan import BitScan

    rng = np.random.default_rng(dim)
    documents, queries = documents_of(rng, 90, dim, "sign"), queries_of(rng, dim)
    shares = [normalised_weights(len(vectors), weights) for vectors, weights in queries]
    scan = BitScan([vectors for vectors, _ in queries], shares, vnni)
    codes, offsets = documents.vectors, documents.offsets
    scores = scan.approximate_scores(codes, offsets[:-1], offsets[1:])
    filled = np.diff(offsets) > 0
    assert np.all(np.isneginf(scores[~filled]))
    for i, (vectors, weights) in enumerate(queries):
        errors = (maxsim(vectors, documents, "sign", weights) - scores[:, i])[filled]
        assert np.ptp(errors) <= scan.widths[i]
        assert np.abs(errors).max() <= scan.widths[i]
        assert scan.widths[i] < 0.05


@pytest.mark.skipif(not HAS_NUMBA or not has_vnni(), reason="one kernel only")
def test_both_kernels_agree_to_the_bit() -> None:
    from pipelines.retrieval.scoring.maxsim_1bit_scan import BitScan

    rng = np.random.default_rng(1)
    documents, queries = documents_of(rng, 50, 128, "sign"), queries_of(rng, 128)
    vectors, shares = [v for v, _ in queries], [normalised_weights(len(v), w) for v, w in queries]
    got = [
        BitScan(vectors, shares, vnni).approximate_scores(
            documents.vectors, documents.offsets[:-1], documents.offsets[1:]
        )
        for vnni in (False, True)
    ]
    assert np.array_equal(*got)


@pytest.mark.parametrize("codec", ["sign", "rotated_sign", "bits2", "int8"])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("n", [1, 20, 500])
def test_the_best_of_the_rows_within_reach_are_the_best_of_all(codec: str, filtered: bool, n: int) -> None:
    rng = np.random.default_rng(2)
    documents, queries = documents_of(rng, 400, 96, codec), queries_of(rng, 96)
    allowed = rng.random(400) < 0.3 if filtered else None
    found = rows_within_reach(queries, documents, get_codec(codec), n, allowed, threads=2)
    counts = np.diff(documents.offsets) > 0 if allowed is None else (np.diff(documents.offsets) > 0) & allowed
    for (vectors, weights), rows in zip(queries, found, strict=True):
        places, best = top_n(maxsim(vectors, documents, codec, weights, rows=rows), n)
        wanted, scores = top_n(maxsim(vectors, documents, codec, weights), n, counts)
        assert np.array_equal(rows[places], wanted)
        np.testing.assert_allclose(best, scores, rtol=1e-6)
        if codec == "sign" and n == 1 and HAS_NUMBA:
            assert len(rows) < counts.sum() / 3


def test_equal_scores_all_stay_within_reach() -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.7, 0.4], np.float32)
    assert within_reach(scores, 3, 0.0).tolist() == [0, 1, 2, 3]
    assert within_reach(scores, 1, 0.25).tolist() == [1, 3]
