"""Where a passage stands in its document."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from pipelines.retrieval.index import open_index
from tests.indexes import WordEmbedder, make_index


def test_a_line_is_counted_over_the_chunks_before(tmp_path: Path) -> None:
    parts = ["one\ntwo\nthree ", "four\nfive zebra\n", "six\nseven zebra crossing"]
    texts = {f"doc#{i}": part for i, part in enumerate(parts)}
    uri = make_index(tmp_path, texts)
    table = lance.dataset(uri + "/documents.lance").to_table()
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    moved = table.set_column(table.schema.get_field_index("start"), table.schema.field("start"), pa.array(starts))
    numbered = moved.set_column(
        table.schema.get_field_index("chunk_index"), table.schema.field("chunk_index"), pa.array([0, 1, 2], pa.int32())
    )
    lance.write_dataset(numbered, uri + "/documents.lance", mode="overwrite")
    index = open_index(uri, embedder=WordEmbedder())
    hits = {hit.chunk_id: hit for hit in index.search("zebra crossing", mode="dense", k=3, group_by=None)}
    document = "".join(parts)
    for hit in hits.values():
        passage = hit.passage
        assert document[passage.start : passage.end] == passage.text
        assert hit.line == 1 + document.count("\n", 0, passage.start)
