"""Small indexes for tests: a deterministic embedder over words, and tables written with it in the store's layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actors.codecs.pooling import encode_colbert
from actors.codecs.table import TRAINED, get_codec
from actors.outputs import EmbeddingBatch, MultiVectors, SparseVectors, TokenBatch, offsets_of
from pipelines.store.hashes import hash_content, hash_metadata
from pipelines.store.schema import Identity, documents_schema

DIM = 32
VOCABULARY = 5000
WORD = re.compile(r"\w+")


class WordTokenizer:
    """One token a word; id 0 opens every text."""

    special_ids = frozenset({0})
    continuing = np.zeros(VOCABULARY, bool)

    def offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = list(WORD.finditer(text))
        return (
            np.array([word_id(m[0]) for m in found], np.int32),
            np.array([m.start() for m in found], np.int64),
            np.array([m.end() for m in found], np.int64),
        )

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"<{i}>" for i in ids)

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id])


def word_id(word: str) -> int:
    return 1 + int.from_bytes(hashlib.blake2b(word.lower().encode(), digest_size=4).digest(), "big") % (VOCABULARY - 1)


TABLE = np.random.default_rng(7).standard_normal((VOCABULARY, DIM)).astype(np.float32)
TABLE /= np.linalg.norm(TABLE, axis=1, keepdims=True)


class WordEmbedder:
    """Dense: the normalised sum of word vectors. Sparse: square root of the count. ColBERT: the word vectors."""

    def __init__(self, model: str = "words", outputs: Sequence[str] = ("dense", "sparse", "colbert")) -> None:
        self.outputs = tuple(outputs)
        self.tokenizer = WordTokenizer()
        self.spec = SimpleNamespace(model=model)
        self.dim = self.colbert_dim = DIM
        self.max_length = 64

    def identity(self) -> dict[str, Any]:
        return {
            "model": self.spec.model,
            "weights": f"sha256 of {self.spec.model}",
            "dim": DIM,
            "colbert_dim": DIM,
            "passage_max_length": self.max_length,
        }

    def tokenise(self, texts: Iterable[str], kind: str = "passage", max_length: int | None = None) -> TokenBatch:
        limit = max_length or self.max_length
        rows = [np.concatenate([[0], self.tokenizer.offsets(text)[0]]) for text in texts]
        cut = [row[:limit] for row in rows]
        truncated = np.array([len(row) - len(kept) for row, kept in zip(rows, cut, strict=True)], np.int32)
        ids = np.concatenate([*cut, np.zeros(0)]).astype(np.int32)
        return TokenBatch(ids, offsets_of(np.array([len(row) for row in cut], np.int64)), truncated)

    def scored_tokens(self, tokens: TokenBatch, kind: str) -> npt.NDArray[np.bool_]:
        keep = np.ones(len(tokens.ids), bool)
        keep[tokens.offsets[:-1]] = False
        return keep

    def colbert_ids(self, tokens: TokenBatch) -> npt.NDArray[np.int32]:
        return tokens.ids[self.scored_tokens(tokens, "passage")]

    def embed_tokens(self, tokens: TokenBatch, outputs: Sequence[str] | None = None) -> EmbeddingBatch:
        wanted = self.outputs if outputs is None else outputs
        rows = [tokens.ids[a + 1 : b] for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]
        counted = [np.unique(row, return_counts=True) for row in rows]
        sums = np.array([TABLE[row].sum(axis=0) for row in rows], np.float32).reshape(-1, DIM)
        return EmbeddingBatch(
            sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-9) if "dense" in wanted else None,
            SparseVectors(
                offsets_of(np.array([len(ids) for ids, _ in counted], np.int64)),
                np.concatenate([*(ids for ids, _ in counted), np.zeros(0)]).astype(np.uint32),
                np.sqrt(np.concatenate([*(counts for _, counts in counted), np.zeros(0)])).astype(np.float32),
            )
            if "sparse" in wanted
            else None,
            MultiVectors(offsets_of(np.array([len(row) for row in rows], np.int64)), TABLE[np.concatenate(rows)])
            if "colbert" in wanted
            else None,
            tokens.lengths.astype(np.int32),
            tokens.n_truncated,
        )

    def embed_corpus(self, texts: Iterable[str], outputs: Sequence[str] | None = None) -> EmbeddingBatch:
        return self.embed_tokens(self.tokenise(texts, "passage"), outputs)

    def embed_queries(self, texts: Iterable[str], outputs: Sequence[str] | None = None) -> EmbeddingBatch:
        return self.embed_tokens(self.tokenise(texts, "query"), outputs)


def identity_for(embedder: WordEmbedder, codec: str = "float32", pooling: str = "none") -> Identity:
    described = {
        **embedder.identity(),
        "outputs": list(embedder.outputs),
        "dense": "float32",
        "colbert": codec,
        "colbert_pooling": pooling,
    }
    return Identity({"mode": "whole"}, "{title} {text}", {"words": described})


def documents(
    texts: Mapping[str, str], embedder: WordEmbedder, codec: str, pooling: str, metadata: Mapping[str, pa.Array]
) -> pa.Table:
    """Rows of a documents table; an id `parent#2` is chunk 2 of `parent`."""
    ids, bodies = list(texts), list(texts.values())
    tokens = embedder.tokenise(bodies)
    batch = embedder.embed_tokens(tokens)
    kept = embedder.colbert_ids(tokens)
    parameters = (
        {"words": TRAINED[codec].train(batch.colbert.vectors)} if codec in TRAINED and batch.colbert is not None else {}
    )
    fields = [pa.field(name, column.type) for name, column in metadata.items()]
    schema = documents_schema(identity_for(embedder, codec, pooling), fields, parameters)
    stored_as = get_codec(codec, parameters.get("words"))
    coded = None if batch.colbert is None else encode_colbert(batch.colbert, stored_as, pooling, kept)
    batch = EmbeddingBatch(batch.dense, batch.sparse, coded, batch.n_tokens, batch.n_truncated)
    columns: dict[str, Any] = {
        "doc_id": [i.split("#")[0] for i in ids],
        "chunk_id": ids,
        "chunk_index": [int(i.split("#")[1]) if "#" in i else 0 for i in ids],
        "chunk_count": [1] * len(ids),
        "start": [0] * len(ids),
        "end": [len(body) for body in bodies],
        "text": bodies,
        "source": ["test"] * len(ids),
        "content_hash": hash_content(pa.array(bodies, pa.string())),
        "metadata_hash": hash_metadata(metadata, len(ids)),
        "n_tokens": batch.n_tokens,
        "n_truncated": batch.n_truncated,
        **metadata,
        **batch.to_arrow("words"),
    }
    arrays = [c if isinstance(c, pa.Array) else pa.array(c, f.type) for f in schema for c in [columns[f.name]]]
    return pa.table([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)


def make_index(
    folder: Path,
    texts: Mapping[str, str],
    *,
    embedder: WordEmbedder | None = None,
    codec: str = "float32",
    pooling: str = "none",
    metadata: Mapping[str, pa.Array] | None = None,
    fragment_rows: int = 100,
    full_text: bool = True,
) -> str:
    """Writes an index and returns its URI."""
    table = documents(texts, embedder or WordEmbedder(), codec, pooling, metadata or {})
    dataset = lance.write_dataset(table, str(folder / "documents.lance"), max_rows_per_file=fragment_rows)
    if full_text:
        dataset.create_scalar_index("text", "INVERTED", with_position=False, stem=True, remove_stop_words=True)
    return str(folder)


SUBJECTS = ("kernel", "page cache", "scheduler", "driver", "network stack", "file system", "memory allocator", "timer")
VERBS = ("writes", "reads", "locks", "maps", "flushes", "schedules", "allocates", "releases")
OBJECTS = ("dirty pages", "a buffer", "the queue", "an interrupt", "a socket", "the inode", "a slab", "the clock")


def corpus(n: int = 400) -> dict[str, str]:
    """n different sentences by counting through subjects, verbs and objects."""
    return {
        f"d{i:04d}": f"The {SUBJECTS[i % 8]} {VERBS[i // 8 % 8]} {OBJECTS[i // 64 % 8]} in case {i} of batch{i % 13}"
        for i in range(n)
    }
