"""A second model joins an index, is compared, promoted and rolled back, and the first one is dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from actors.outputs import EmbeddingBatch, TokenBatch
from pipelines.config import ConfigError
from pipelines.evaluation.compare import compare_embedders, overlap, tau
from pipelines.integrity.check import check_index
from pipelines.retrieval.index import Index, open_index
from pipelines.search_indexes.document_frequencies import DocumentFrequencies, write_document_frequencies
from pipelines.search_indexes.drop import drop_embedder, remove_dropped_tables
from pipelines.search_indexes.postings import update_postings
from pipelines.store.columns import (
    ColumnCommitter,
    add_null_columns,
    read_fragments,
    record_identity,
    unfilled_fragments,
    write_columns,
)
from pipelines.store.documents import hold_lease, target_of
from pipelines.store.lance_schema import change_schema
from pipelines.store.lease import LeaseHeld, acquire
from pipelines.store.maintain import optimize
from pipelines.store.promote import promote_embedder, roll_back_embedder
from pipelines.store.schema import documents_schema
from pipelines.store.table import open_table
from tests.indexes import WordEmbedder, corpus, make_index

NOW = timedelta(0)


class OtherEmbedder(WordEmbedder):
    """Another model of the same outputs: its dense vectors are the first one's with the signs of half turned."""

    def __init__(self, model: str = "others") -> None:
        super().__init__(model, ("dense", "sparse"))

    def embed_tokens(self, tokens: TokenBatch, outputs: Sequence[str] | None = None) -> EmbeddingBatch:
        batch = super().embed_tokens(tokens, outputs)
        return batch if batch.dense is None else replace(batch, dense=np.abs(batch.dense))


def add_embedder(uri: str, embedder: WordEmbedder, name: str = "others") -> None:
    """What a build with a second embedder does, without Ray."""
    snapshot = open_table(uri)
    described = {**embedder.identity(), "outputs": ["dense", "sparse"], "dense": "float32", "colbert": "sign"}
    described |= {"colbert_pooling": "none"}
    wanted = replace(snapshot.identity, embedders={**snapshot.identity.embedders, name: described})
    own = [snapshot.schema.field(column) for column in snapshot.metadata_columns]
    target = replace(target_of(snapshot, "build"), schema=documents_schema(wanted, own))
    with hold_lease(target) as lease:
        dataset, fields = add_null_columns(target)
        committer = ColumnCommitter(target, lease, dataset, fields)
        for rows in read_fragments(lance.dataset(dataset.uri), unfilled_fragments(dataset, fields), 64):
            batch = embedder.embed_corpus(rows.column("text").to_pylist())
            for column, values in batch.to_arrow(name).items():
                rows = rows.append_column(column, values)
            for record in write_columns(rows, target, fields).to_pylist():
                committer.add(record)
        committer.commit()
        record_identity(target, fields)


def update_side_tables(uri: str) -> None:
    """Postings of every embedder, and counts: made up, as these models have no tokenizer's files."""
    update_postings(uri)
    snapshot = open_table(uri)
    for name in snapshot.identity.embedders:
        write_document_frequencies(snapshot, name, DocumentFrequencies(len(snapshot), np.arange(9)))


def ids(index: Index, query: str = "scheduler locks the inode") -> list[str]:
    return index.search(query, k=5).ids


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """An index of the first model, to which the second was added."""
    years = pa.array([2000 + i % 20 for i in range(200)])
    made = make_index(tmp_path / "index", corpus(200), metadata={"year": years}, fragment_rows=64)
    update_side_tables(made)
    open_index(made, embedder=WordEmbedder()).delete(["d0003", "d0100"])
    add_embedder(made, OtherEmbedder())
    update_side_tables(made)
    return made


def test_searches_that_name_no_embedder_keep_theirs_until_another_is_promoted(uri: str) -> None:
    assert open_index(uri).name == "words"
    done = promote_embedder(uri, "others")
    assert (done.promoted, done.before) == ("others", "words")
    assert open_index(uri).name == "others"
    assert open_index(uri, embedder="words").name == "words"
    back = roll_back_embedder(uri)
    assert (back.promoted, back.before, open_index(uri).name) == ("words", "others", "words")
    assert roll_back_embedder(uri).promoted == "others"


def test_an_open_index_answers_by_its_model_through_promotion_and_drop(uri: str) -> None:
    first, second = open_index(uri, embedder=WordEmbedder()), open_index(uri, embedder=OtherEmbedder())
    assert (first.name, second.name) == ("words", "others")
    before = ids(first), ids(second)
    promote_embedder(uri, "others")
    drop_embedder(uri, "words")
    optimize(uri)
    assert (ids(first, "the timer maps a slab"), ids(first)) == (ids(first, "the timer maps a slab"), before[0])
    fresh = open_index(uri, embedder=OtherEmbedder())
    assert (fresh.name, ids(fresh)) == ("others", before[1])
    with pytest.raises(ConfigError, match="built with another model"):
        open_index(uri, embedder=WordEmbedder())


def test_a_drop_gives_the_bytes_back_and_leaves_the_rest_as_it_was(uri: str) -> None:
    promote_embedder(uri, "others")
    names = ["chunk_id", "text", "year", "content_hash", "others_dense", "others_sparse", "_rowaddr"]
    before = lance.dataset(f"{uri}/documents.lance").to_table(columns=names)
    size = folder_bytes(uri)
    done = drop_embedder(uri, "words", keep_versions=NOW)
    dataset = lance.dataset(f"{uri}/documents.lance")
    assert dataset.to_table(columns=names) == before
    assert [c for c in dataset.schema.names if c.startswith("words")] == []
    assert done.fragments_rewritten == len(dataset.get_fragments())
    assert (done.tables_removed, done.bytes_kept) == (2, 0)
    assert done.bytes > 200 * 32 * 4
    assert size - folder_bytes(uri) > 0.85 * done.bytes  # leases and transactions take some
    assert {d.field_names[0] for d in dataset.describe_indices()} == {"text"}
    assert open_table(uri).index_statistics("text_idx")["num_unindexed_rows"] == 0
    assert check_index(uri).sound, check_index(uri).text()
    assert sorted(p.stem.split("_")[1] for p in Path(uri).glob("postings_*")) == ["others"]


def folder_bytes(uri: str) -> int:
    return sum(path.stat().st_size for path in Path(uri).rglob("*") if path.is_file())


def test_files_that_a_search_may_read_are_kept_and_said(uri: str) -> None:
    promote_embedder(uri, "others")
    done = drop_embedder(uri, "words")
    assert done.bytes_kept > 0
    assert "MB are kept for searches on older versions" in done.text()
    assert done.tables_removed == 0
    assert open_index(uri, embedder="words", version=open_table(uri).version - 3).name == "words"
    assert optimize(uri, keep_versions=NOW).bytes_kept == 0
    assert remove_dropped_tables(open_table(uri)) == 2
    assert sorted(p.stem.split("_")[1] for p in Path(uri).glob("postings_*")) == ["others"]


def test_an_optimize_ends_a_drop_that_was_killed(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    promote_embedder(uri, "others")
    monkeypatch.setattr("pipelines.search_indexes.drop.reclaim_dropped_columns", _die)
    with pytest.raises(KeyboardInterrupt):
        drop_embedder(uri, "words")
    assert list(open_table(uri).identity.embedders) == ["others"]
    assert "4 fragments hold columns of a dropped embedder" in check_index(uri).text()
    done = optimize(uri, keep_versions=NOW)
    assert done.fragments_rewritten == 4
    assert optimize(uri, keep_versions=NOW).fragments_rewritten == 0
    assert ids(open_index(uri, embedder=OtherEmbedder()))


def _die(*_: object) -> int:
    raise KeyboardInterrupt


def test_what_was_made_of_a_dropped_model_serves_no_other_of_its_name(uri: str, tmp_path: Path) -> None:
    """Postings, counts and local copies name fragments that the new columns have as well."""
    local = tmp_path / "local"
    promote_embedder(uri, "words")
    ids(open_index(uri, embedder=OtherEmbedder(), local=local))
    drop_embedder(uri, "others")
    third = OtherEmbedder("third")
    third.embed_tokens = WordEmbedder("third").embed_tokens  # type: ignore[method-assign]
    add_embedder(uri, third)
    opened = open_index(uri, embedder=third, local=local)
    assert opened.document_frequencies is None
    fresh = open_index(uri, embedder=third)
    for query in ("scheduler locks the inode", "page cache"):
        assert opened.search(query).ids == fresh.search(query).ids
        found = [[hit.score for hit in index.search(query, mode="dense")] for index in (opened, fresh)]
        assert found[0] == found[1]
    promote_embedder(uri, "others")
    update_side_tables(uri)
    assert opened.search("page cache").ids == open_index(uri, embedder=third, local=local).search("page cache").ids


def test_the_wrong_embedder_is_refused_by_name(uri: str) -> None:
    with pytest.raises(ConfigError, match="has no 'x'; it has words, others"):
        promote_embedder(uri, "x")
    with pytest.raises(ConfigError, match="no embedder that was promoted before words"):
        roll_back_embedder(uri)
    with pytest.raises(ConfigError, match="'words' is promoted, searches use it"):
        drop_embedder(uri, "words")
    with pytest.raises(ConfigError, match="has no 'x'"):
        drop_embedder(uri, "x")
    promote_embedder(uri, "others")
    drop_embedder(uri, "words")
    with pytest.raises(ConfigError, match="'others' is the only embedder"):
        drop_embedder(uri, "others")
    with pytest.raises(ConfigError, match="no embedder that was promoted before others"):
        roll_back_embedder(uri)


@pytest.mark.parametrize(
    "change", [lambda uri: promote_embedder(uri, "others"), lambda uri: drop_embedder(uri, "others")]
)
def test_no_model_is_switched_while_a_job_writes(uri: str, change: Callable[[str], object]) -> None:
    with acquire(uri, "documents", "nightly", lease_seconds=1), pytest.raises(LeaseHeld, match="job 'nightly'"):
        change(uri)


def test_two_embedders_are_compared_on_one_version(uri: str) -> None:
    queries = {f"q{i}": text for i, text in enumerate(list(corpus(40).values())[::4])}
    qrels = {f"q{i}": {f"d{4 * i:04d}": 1} for i in range(10)}
    models = {"words": WordEmbedder(), "others": OtherEmbedder()}
    result = compare_embedders(uri, None, "others", queries, qrels, embedders=models)
    assert (result.a, result.b, result.queries) == ("words", "others", 10)
    assert 0 < result.overlap < 1
    assert result.judgement is not None
    assert result.judgement.queries == 10
    assert result.judgement.a > 0.9
    assert len(result.most_different) == 10
    assert result.most_different[0].overlap <= result.most_different[-1].overlap
    assert "Kendall's tau" in result.text()
    alone = compare_embedders(uri, "others", "words", queries, embedders=models)
    assert (alone.judgement, alone.overlap) == (None, result.overlap)
    with pytest.raises(ConfigError, match="is the embedder that it is compared with"):
        compare_embedders(uri, "words", "words", queries)


def test_rank_measures_on_lists_worked_out_by_hand() -> None:
    assert overlap(["a", "b"], ["b", "c"], 10) == 0.5
    assert overlap([], [], 10) == 1
    assert tau(["a", "b", "c"], ["a", "b", "c"]) == 1
    # union a b c: places (0 1 2) and (0 2 1): two of three pairs agree
    assert tau(["a", "b"], ["a", "c"]) == pytest.approx(1 / 3)
    assert tau(["a"], ["b"]) == -1


def test_a_schema_keeps_its_field_ids(uri: str) -> None:
    schema = lance.dataset(f"{uri}/documents.lance").lance_schema
    changed = change_schema(schema, {"note": "x", "tridex.promoted": None}, ["words_colbert"])
    kept = {f.name(): f.id() for f in schema.fields() if f.name() != "words_colbert"}
    assert {f.name(): f.id() for f in changed.fields()} == kept
    assert changed.to_pyarrow().metadata[b"note"] == b"x"
    assert b"tridex.promoted" not in changed.to_pyarrow().metadata
