"""Plain LanceDB code opens and searches an index; tridex's models are an embedding function for other tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pytest
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

import pipelines.integrations.lancedb
from pipelines.integrations.documents import DocumentIndex, StoredDocument
from pipelines.integrations.lancedb import TridexEmbeddingFunction

TEXTS = ["the river carries sand", "sand castles on the beach", "a kernel schedules threads", "threads of wool"]
assert pipelines.integrations.lancedb


def test_plain_lancedb_searches_an_index(new_documents: Callable[[], DocumentIndex]) -> None:
    documents = new_documents()
    documents.upsert([StoredDocument(str(i), text, {"n": i}) for i, text in enumerate(TEXTS)])
    table = lancedb.connect(documents.uri).open_table("documents")
    query = documents.dense_query("river sand")
    found = table.search(query, vector_column_name="minilm_dense").metric("cosine").limit(2).to_list()
    assert [row["doc_id"] for row in found] == documents.search("river sand", k=2, mode="dense").ids
    assert 1 - found[0]["_distance"] == pytest.approx(documents.search("river sand", mode="dense")[0].score, abs=1e-4)
    words = table.search("wool", query_type="fts").where("n > 0").limit(2).to_list()
    assert [row["doc_id"] for row in words] == ["3"]


def test_the_registered_function_embeds_a_table_of_ones_own(tmp_path: Path) -> None:
    function = get_registry().get("tridex").create(model="all-MiniLM-L6-v2")

    class Passage(LanceModel):  # type: ignore[misc]
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(tmp_path).create_table("passages", schema=Passage)
    table.add([{"text": text} for text in TEXTS])
    assert table.search("sand in a river").limit(1).to_pydantic(Passage)[0].text == TEXTS[0]
    assert function.ndims() == 384


def test_queries_get_the_models_instruction() -> None:
    plain, told = TridexEmbeddingFunction(), TridexEmbeddingFunction(query_instruction="Find: ")
    assert np.allclose(plain.generate_embeddings(["sand"])[0], told.generate_embeddings(["sand"])[0])
    assert not np.allclose(plain.compute_query_embeddings("sand")[0], told.compute_query_embeddings("sand")[0])
