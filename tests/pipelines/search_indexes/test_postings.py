"""The inverted index gives exactly what scanning the forward column gives, whatever was appended, deleted or moved."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from actors.outputs import SparseVectors, offsets_of
from pipelines.retrieval.index import Index, open_index
from pipelines.retrieval.scoring.inverted_index import InvertedIndex
from pipelines.search_indexes import postings
from pipelines.search_indexes.posting_blocks import Blocks
from pipelines.store.table import open_table
from tests.indexes import WordEmbedder, corpus, documents, make_index

QUERIES = ["scheduler reads dirty pages", "timer case 17", "the kernel", "page page page cache 3 of batch4", "zzz"]


def random_rows(n: int, vocabulary: int, seed: int = 0) -> SparseVectors:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 30, n)
    ids = [np.sort(rng.choice(vocabulary, size, replace=False)) for size in lengths]
    weights = rng.gamma(2.0, 0.3, int(lengths.sum())).astype(np.float32) + 1e-3
    return SparseVectors(offsets_of(lengths), np.concatenate(ids).astype(np.uint32), weights)


def same_answers(index: Index, k: int = 20) -> None:
    """The index against plain dot products over the table."""
    table = index.snapshot.dataset.to_table(columns=["chunk_id", "words_sparse"]).combine_chunks()
    rows = SparseVectors.from_arrow(table["words_sparse"].chunk(0))
    ids = table["chunk_id"].to_pylist()
    for query in QUERIES:
        weights = dict(zip(*index.encode([query]).sparse(0), strict=True))
        dots = np.array(
            [sum(weights.get(t, 0) * w for t, w in zip(*rows.row(i), strict=True)) for i in range(len(ids))]
        )
        expected = np.sort(dots[dots > 0])[::-1][:k]
        hits = index.search(query, k=k, mode="sparse")
        np.testing.assert_allclose([h.score for h in hits], expected, rtol=1e-5)
        for hit in hits:
            assert hit.score == pytest.approx(dots[ids.index(hit.chunk_id)], rel=1e-5)


def open_words(uri: str, **options: int) -> Index:
    return open_index(uri, embedder=WordEmbedder(), **options)  # type: ignore[arg-type]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return make_index(tmp_path, corpus(), full_text=False)


def test_blocks_survive_arrow_and_never_undershoot() -> None:
    rows = random_rows(300, 200)
    blocks = Blocks.of(rows)
    back = Blocks.from_arrow(pa.Table.from_batches(list(blocks.to_arrow(blocks_a_batch=50))))
    for name in ("tokens", "pages", "maxima", "starts", "offsets", "weights"):
        assert np.array_equal(getattr(back, name), getattr(blocks, name)), name
    quantised = blocks.weights / 255 * np.repeat(blocks.maxima, np.diff(blocks.starts))
    true = {(int(t), i): w for i in range(300) for t, w in zip(*rows.row(i), strict=True)}
    tokens = np.repeat(blocks.tokens, np.diff(blocks.starts))
    overshoot = quantised - [true[int(t), int(o)] for t, o in zip(tokens, blocks.offsets, strict=True)]
    assert overshoot.min() > -1e-5
    assert (overshoot <= np.repeat(blocks.maxima, np.diff(blocks.starts)) / 255 + 1e-5).all()


@pytest.mark.parametrize("memory", [4 * 2**30, 0])
def test_the_index_gives_what_a_scan_gives(uri: str, memory: int) -> None:
    done = postings.update_postings(uri)["words"]
    assert (done.segments, done.segments_written) == (1, 1)
    index = open_words(uri, memory=memory)
    assert len(index.channels["sparse"].index.uncovered) == 0  # type: ignore[attr-defined]
    same_answers(index)


def test_filters_are_applied_before_the_cut(uri: str) -> None:
    postings.update_postings(uri)
    hits = open_words(uri).search("kernel writes", k=50, mode="sparse", where="n_tokens > 1 AND chunk_id < 'd0050'")
    assert len(hits) > 5
    assert all(hit.chunk_id < "d0050" for hit in hits)


def test_appended_rows_are_scanned_until_they_have_a_segment(uri: str) -> None:
    postings.update_postings(uri)
    more = documents({f"n{i}": f"zzz timer {i}" for i in range(20)}, WordEmbedder(), "float32", "none", {})
    lance.write_dataset(more, uri + "/documents.lance", mode="append")
    index = open_words(uri)
    assert len(index.channels["sparse"].index.uncovered) == 20  # type: ignore[attr-defined]
    same_answers(index)
    assert postings.update_postings(uri)["words"].segments == 2
    same_answers(open_words(uri))


def test_deleted_rows_drop_out_without_rewriting(uri: str) -> None:
    postings.update_postings(uri)
    lance.dataset(uri + "/documents.lance").delete("chunk_id IN ('d0002', 'd0010', 'd0017', 'd0399')")
    index = open_words(uri)
    assert len(index.channels["sparse"].index.uncovered) == 0  # type: ignore[attr-defined]
    same_answers(index)


def test_compaction_voids_segments_and_results_stay_complete(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    postings.update_postings(uri)
    before = open_words(uri)
    lance.dataset(uri + "/documents.lance").optimize.compact_files(target_rows_per_fragment=1000)
    after = open_words(uri)
    assert len(after.channels["sparse"].index.uncovered) == 400  # type: ignore[attr-defined]
    same_answers(after)
    same_answers(before)
    monkeypatch.setattr(postings, "KEEP_VOID", timedelta(0))
    done = postings.update_postings(uri)["words"]
    assert (done.segments, done.segments_dropped) == (1, 1)
    same_answers(open_words(uri))


def test_many_small_segments_are_merged(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "MAX_SEGMENTS", 3)
    for i in range(6):
        more = documents({f"m{i}": f"timer case {i} again"}, WordEmbedder(), "float32", "none", {})
        lance.write_dataset(more, uri + "/documents.lance", mode="append")
        done = postings.update_postings(uri)["words"]
        assert done.segments <= 3
    same_answers(open_words(uri))


def test_half_a_segment_of_another_writer_is_not_used_twice(uri: str) -> None:
    postings.update_postings(uri)
    snapshot = open_table(uri)
    first = snapshot.dataset.get_fragments()[:1]
    postings._write_segment(snapshot, "words", first)
    assert len(postings.find_segments(snapshot, "words")) == 2
    assert len(postings.valid_segments(snapshot, "words")) == 1
    same_answers(open_words(uri))


def with_common_tokens(rows: SparseVectors, share: float) -> SparseVectors:
    """Tokens 0 to 7 in that share of the rows, with small weights; other ids move up by 8."""
    rng = np.random.default_rng(3)
    common = rng.random((len(rows), 8)) < share
    ids = [np.concatenate([np.flatnonzero(c), rows.row(i)[0] + 8]) for i, c in enumerate(common)]
    weights = [np.concatenate([rng.random(c.sum()) * 0.2 + 1e-3, rows.row(i)[1]]) for i, c in enumerate(common)]
    lengths = np.array([len(r) for r in ids])
    return SparseVectors(
        offsets_of(lengths), np.concatenate(ids).astype(np.uint32), np.concatenate(weights).astype(np.float32)
    )


@pytest.mark.parametrize("share", [0.02, 0.6])
def test_nothing_among_the_best_is_left_out(share: float) -> None:
    """70,000 rows are two pages; lists of common tokens are held as one weight a row and looked up, or added up."""
    from pipelines.retrieval.scoring.inverted_index import Segment, as_lists
    from pipelines.search_indexes.postings import SegmentInfo

    rows = with_common_tokens(random_rows(70_000, 2_000), share)
    blocks = Blocks.of(rows)
    lists = as_lists(blocks)
    assert set(blocks.pages.tolist()) == {0, 1}
    assert len(lists.unfolded) == (0 if share < 0.25 else 8)
    info = SegmentInfo("t", "words", ((0, 70_000),), len(blocks.weights), "")
    live = np.arange(70_000, dtype=np.int32)
    index = InvertedIndex((Segment(info, None, live, blocks.tokens, lists),), np.zeros(0, np.int64))
    allowed = np.random.default_rng(2).random(70_000) < 0.5
    rng = np.random.default_rng(1)
    for masked in (None, allowed) * 10:
        query = np.concatenate([np.arange(8), np.sort(rng.choice(2_000, 8, replace=False)) + 8])
        weights = rng.gamma(2.0, 0.3, 16).astype(np.float32)
        dense = np.zeros(2_008, np.float32)
        dense[query] = weights
        products = np.append(rows.weights * dense[rows.token_ids], 0)
        dots = np.add.reduceat(products, rows.offsets[:-1]) * (np.diff(rows.offsets) > 0)
        dots = dots if masked is None else np.where(masked, dots, 0)
        bar = np.sort(dots)[-100]
        promising = index.promising(query, weights, 100, masked)
        assert set(np.flatnonzero(dots > bar + 1e-5)) <= set(promising)
        assert 99 <= len(promising) < 3000
