"""Equal corpora give equal samples and equal scores, whatever the order of rows and fragments."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

import lance
import pyarrow as pa

from pipelines.retrieval.index import Index, open_index
from pipelines.search_indexes.content_sample import sample_by_content
from tests.indexes import WordEmbedder, corpus, make_index

QUERY = "scheduler reads dirty pages"


def reordered(folder: Path, seed: int, fragment_rows: int) -> Index:
    """An index of the same 400 texts, with true content hashes, in another order and other fragments."""
    import numpy as np

    uri = make_index(folder, corpus(), full_text=False)
    table = lance.dataset(uri + "/documents.lance").to_table()
    hashes = [blake2b(text.encode(), digest_size=16).digest() for text in table["text"].to_pylist()]
    place = table.schema.get_field_index("content_hash")
    hashed = table.set_column(place, table.schema.field(place), pa.array(hashes, pa.binary(16)))
    shuffled = hashed.take(np.random.default_rng(seed).permutation(len(table)))
    lance.write_dataset(shuffled, uri + "/documents.lance", mode="overwrite", max_rows_per_file=fragment_rows)
    return open_index(uri, embedder=WordEmbedder())


def test_the_order_of_rows_changes_no_sample_and_no_score(tmp_path: Path) -> None:
    indexes = [reordered(tmp_path / str(i), seed=i, fragment_rows=90 + 100 * i) for i in range(3)]
    samples = [
        i.snapshot.take(sample_by_content(i.snapshot, 50), ["chunk_id"])["chunk_id"].to_pylist() for i in indexes
    ]
    assert samples[0] == samples[1] == samples[2]
    assert len(set(samples[0])) == 50
    answers = [
        [(hit.chunk_id, hit.score) for hit in index.search(QUERY, k=20, fusion="zscore", smoothing=2)]
        for index in indexes
    ]
    assert answers[0] == answers[1] == answers[2]


def test_a_sample_is_no_larger_than_the_table_and_knows_chunks_apart(tmp_path: Path) -> None:
    index = reordered(tmp_path, 0, 400)
    assert sorted(sample_by_content(index.snapshot, 1000).tolist()) == list(range(400))
    assert sample_by_content(index.snapshot, 0).tolist() == []
