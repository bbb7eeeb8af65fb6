"""QueryExpander of query tokens: which they are, what they weigh, and that a search with them explains itself."""

from __future__ import annotations

from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
import torch

from actors.embedders.registry import load_embedder
from actors.outputs import SparseVectors
from actors.spec import EmbedderSpec
from pipelines.retrieval.index import open_index
from pipelines.retrieval.query_expansion import MAX_NEIGHBOURS, QueryExpander
from tests.indexes import TABLE, VOCABULARY, WordEmbedder, make_index, word_id

NAMES = ["[CLS]", "measure", "##measured", "2003", "2004", "is", "it", "apple", "opposite"]
DEGREES = [0, 0, 30, 0, 1, 90, 91, 120, 240]
"""Directions in a plane; those of words (measure, measured, apple, opposite) are what `centre` is taken of."""


def fan(degrees: list[float]) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float32))
    return torch.stack([angles.cos(), angles.sin()], 1)


def weights(queries: SparseVectors, row: int = 0) -> dict[int, float]:
    ids, values = queries.row(row)
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def query(*rows: dict[int, float]) -> SparseVectors:
    parts = [
        np.array([len(row) for row in rows]),
        [i for row in rows for i in row],
        [w for r in rows for w in r.values()],
    ]
    offsets = np.concatenate([[0], np.cumsum(parts[0])]).astype(np.int64)
    return SparseVectors(offsets, np.array(parts[1], np.uint32), np.array(parts[2], np.float32))


def test_a_neighbour_weighs_the_cube_of_its_cosine() -> None:
    vectors = fan([0, 0, 40, 0, 0, 0, 0, 180, 220])  # words in two opposite pairs, so their mean is 0
    found = QueryExpander(vectors, NAMES)
    ids, factors = found.of(1)
    assert ids.tolist() == [1, 2]
    np.testing.assert_allclose(factors, [1, np.cos(np.deg2rad(40)) ** 3], rtol=2e-3)


@pytest.mark.parametrize("token", [0, 3, 5])
def test_special_tokens_numbers_and_short_pieces_ask_for_themselves_alone(token: int) -> None:
    ids, factors = QueryExpander(fan(DEGREES), NAMES).of(token)
    assert (ids.tolist(), factors.tolist()) == ([token], [1.0])


def test_there_are_at_most_so_many_and_equal_vectors_do_not_push_a_token_out() -> None:
    names = [letters * 3 for letters in ascii_lowercase]
    found = QueryExpander(torch.cat([torch.ones(20, 4), -torch.ones(6, 4)]), names)
    for token in range(20):
        ids, factors = found.of(token)
        assert ids[0] == token
        assert len(set(ids.tolist())) == 1 + MAX_NEIGHBOURS
        np.testing.assert_allclose(factors, 1, rtol=1e-6)


def test_what_several_tokens_ask_for_is_summed_in_each_query_for_itself() -> None:
    found = QueryExpander(fan([0, 0, 40, 0, 0, 0, 0, 180, 220]), NAMES)
    near = np.cos(np.deg2rad(40)) ** 3
    both = found.expand(query({1: 2.0, 2: 1.0, 3: 5.0}, {}, {7: 1.0}))
    assert weights(both, 0) == pytest.approx({1: 2 + near, 2: 1 + 2 * near, 3: 5}, rel=2e-3)
    assert weights(both, 1) == {}
    assert weights(both, 2) == pytest.approx({7: 1, 8: near}, rel=2e-3)
    assert found.sources_of([1, 2, 3], 2) == [1]


def test_queries_without_tokens_stay_empty() -> None:
    nothing = query({}, {})
    assert len(QueryExpander(fan(DEGREES), NAMES).expand(nothing)) == 2


class Near(WordEmbedder):
    """Words with embeddings: `filthy` is nearly `dirty`."""

    def __init__(self) -> None:
        super().__init__()
        table = TABLE.copy()
        table[word_id("filthy")] = table[word_id("dirty")] + 0.05
        self.input_embeddings = torch.from_numpy(table)
        letters = islice(product(ascii_lowercase, repeat=3), VOCABULARY)
        self.tokenizer.names = ["".join(word) for word in letters]


def test_a_search_finds_what_the_query_does_not_say_and_explains_why(tmp_path: Path) -> None:
    texts = {"a": "filthy windows", "b": "nothing of the kind"}
    uri = make_index(tmp_path, texts, embedder=Near())
    assert not open_index(uri, embedder=Near()).search("dirty", mode="sparse")
    index = open_index(uri, embedder=Near(), query_expansion=True)
    (hit,) = index.search("dirty", mode="sparse", k=1)
    assert hit.doc_id == "a"
    explained = index.explain("dirty", "a", mode="sparse")
    (match,) = explained.sparse
    assert match.expanded_from == (index.encoder.embedder.tokenizer.decode([word_id("dirty")]),)
    assert match.product == pytest.approx(hit.score, abs=1e-5)
    assert f"near {match.expanded_from[0]}" in str(explained)


def test_the_packaged_model_knows_inflections() -> None:
    embedder = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2"))
    names = embedder.tokenizer.names
    found = QueryExpander(embedder.input_embeddings, names)
    near = {names[i] for i in found.of(names.index("measure"))[0]}
    assert {"measure", "measures", "measured"} <= near
    assert [names[i] for i in found.of(names.index("2003"))[0]] == ["2003"]
