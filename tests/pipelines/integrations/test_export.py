"""An exported index is the same to the bit, becomes an index again, and its vectors score as the index does."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.config import ConfigError
from pipelines.integrations.export import export_parquet, read_chunks
from pipelines.retrieval.index import open_index
from tests.indexes import WordEmbedder, corpus, make_index


@pytest.fixture
def own(tmp_path: Path) -> str:
    return make_index(tmp_path / "idx", corpus(250), codec="rotated_sign", metadata={"year": pa.array(range(250))})


def test_a_round_trip_through_parquet_changes_no_bit(own: str, tmp_path: Path) -> None:
    done = export_parquet(own, tmp_path / "out", rows_per_file=100)
    assert (done.files, done.rows) == (3, 250)
    table, back = lance.dataset(f"{own}/documents.lance").to_table(), pq.read_table(tmp_path / "out")
    assert back.equals(table)
    assert back.schema.metadata == table.schema.metadata
    lance.write_dataset(back, str(tmp_path / "again" / "documents.lance"))
    first, second = (open_index(uri, embedder=WordEmbedder()) for uri in (own, tmp_path / "again"))
    for mode in ("dense", "sparse", "colbert"):
        hits = [[(h.chunk_id, h.score) for h in index.search("page cache", mode=mode)] for index in (first, second)]
        assert hits[0] == hits[1]


def test_nothing_is_overwritten(own: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty; nothing was written"):
        export_parquet(own, tmp_path)
    ended = CliRunner().invoke(app, ["export", own, "-o", str(tmp_path / "x"), "--to", "csv"])
    assert ended.exit_code == 2
    assert not (tmp_path / "x").exists()


def test_read_chunks_gives_the_vectors_that_searches_score(own: str) -> None:
    index = open_index(own, embedder=WordEmbedder())
    chunks = {chunk.chunk_id: chunk for chunk in read_chunks(index, batch_rows=64)}
    assert len(chunks) == 250
    (query,) = [index.encoder.embedder.embed_queries(["page cache"])]
    assert query.dense is not None
    assert query.colbert is not None
    hit = index.search("page cache", k=1)[0]
    chunk = chunks[hit.chunk_id]
    assert chunk.metadata["year"] == hit.metadata["year"]
    assert chunk.dense is not None
    assert chunk.colbert is not None
    assert float(query.dense[0] @ chunk.dense) == pytest.approx(hit.scores["dense"], rel=1e-5)
    maxsim = (np.asarray(query.colbert.vectors) @ chunk.colbert.T).max(axis=1).mean()
    assert float(maxsim) == pytest.approx(hit.scores["colbert"], rel=1e-4)


def test_config_prints_settings_and_their_schema(tmp_path: Path) -> None:
    run = CliRunner().invoke
    printed = run(
        app, ["config", "--input", "a.parquet", "--index", "idx", "--set", "index.storage_options.key=secret"]
    )
    assert printed.exit_code == 0, printed.output
    assert "commit_fragments: 16" in printed.output
    assert "secret" not in printed.output
    schema = json.loads(run(app, ["config", "--schema"]).output)
    assert schema["$defs"]["ChunkConfig"]["properties"]["size"]["description"]
