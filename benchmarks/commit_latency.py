"""Measures how long a commit takes against the number of fragments: `python benchmarks/commit_latency.py`.

Each table has one row per fragment and the columns of an index with one small dense output; the median of five commits
of each kind under a real lease: an append of one fragment, a replacement of one document, new metadata of one row.
Lance writes the whole list of fragments with every commit, so all of them grow with it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa

from actors.outputs import matrix_to_arrow
from pipelines.search_indexes.document_ids import COLUMN, NAME
from pipelines.store.commit import Committer, create_or_open
from pipelines.store.documents import hold_lease, replace_documents
from pipelines.store.hashes import hash_content, hash_metadata
from pipelines.store.lease import Lease
from pipelines.store.schema import Identity, Target, documents_schema
from pipelines.store.updates import commit_updates, split_by_fragment, update_metadata
from pipelines.store.writer import conform_to_schema, write_block

REPEATS = 5


def target_at(uri: str) -> Target:
    """An index with a dense output of four dimensions and one metadata column."""
    embedder = {"model": "toy", "dim": 4, "colbert_dim": None, "outputs": ["dense"]}
    described = {**embedder, "dense": "float32", "colbert": "sign", "colbert_pooling": "none"}
    identity = Identity({"mode": "whole"}, "{title} {text}", {"toy": described})
    return Target(uri, documents_schema(identity, [pa.field("lang", pa.string())]), job="latency", run="latency")


def block(ids: list[str], text: str, lang: str) -> pa.Table:
    """Embedded rows as `write_block` takes them."""
    n = len(ids)
    texts, langs = pa.array([text] * n), pa.array([lang] * n)
    numbers = {"chunk_index": 0, "chunk_count": 1, "start": 0, "end": 4, "n_tokens": 3, "n_truncated": 0, "position": 0}
    return pa.table(
        {
            "doc_id": pa.array(ids),
            "chunk_id": pa.array([f"{i}#0" for i in ids]),
            **{name: pa.array([value] * n, pa.int64()) for name, value in numbers.items()},
            "text": texts,
            "lang": langs,
            "source": pa.array(["a"] * n),
            "content_hash": hash_content(texts),
            "metadata_hash": hash_metadata({"lang": langs}, n),
            "toy_dense": matrix_to_arrow(np.ones((n, 4), np.float32)),
            "error": pa.nulls(n, pa.string()),
        }
    )


def fill(target: Target, lease: Lease, fragments: int) -> None:
    """A table of so many fragments, in one commit."""
    rows = conform_to_schema(block([f"d{i}" for i in range(fragments)], "text", "en"), target.schema)
    create_or_open(target, lease)
    lance.write_dataset(rows, target.documents_uri, mode="append", max_rows_per_file=1)


def median(act: Callable[[int], None]) -> float:
    """Milliseconds of the middle one of REPEATS calls."""
    took = []
    for i in range(REPEATS):
        began = time.perf_counter()
        act(i)
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)


def measure(fragments: int, indexed: bool) -> list[float]:
    """Milliseconds of opening, appending, replacing and new metadata; `indexed`: with the BTREE index on ids."""
    with tempfile.TemporaryDirectory() as folder:
        target = target_at(f"{folder}/index")
        with hold_lease(target) as lease:
            fill(target, lease, fragments)
            if indexed:
                lance.dataset(target.documents_uri).create_scalar_index(COLUMN, "BTREE", name=NAME)

            def append(i: int) -> None:
                committer = Committer(replace(target, run=f"append {i}"), lease)
                for record in write_block(block([f"new{i}"], "text", "en"), target).to_pylist():
                    committer.add(record)
                committer.commit()

            def rewrite(i: int) -> None:
                replace_documents(replace(target, run=f"replace {i}"), lease, block([f"d{i}"], "new", "en"))

            def update(i: int) -> None:
                dataset = lance.dataset(target.documents_uri)
                found = dataset.to_table(
                    columns=["doc_id", "content_hash"], filter=f"doc_id = 'd{fragments - 1 - i}'", with_row_address=True
                )
                langs = pa.array([f"l{i}"])
                rows = found.append_column("lang", langs)
                rows = rows.append_column("metadata_hash", hash_metadata({"lang": langs}, 1))
                for number, part in split_by_fragment(rows).items():
                    made = update_metadata(target, dataset.version, number, part)
                    commit_updates(target, lease, [made] if made else [], f"update {i}")

            return [
                median(lambda _: lance.dataset(target.documents_uri)),
                median(append),
                median(rewrite),
                median(update),
            ]


def print_row(cells: list[str]) -> None:
    sys.stdout.write("| " + " | ".join(cells) + " |\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fragments", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    print_row(
        ["fragments", "index on ids", "open, ms", "append, ms", "replace a document, ms", "new metadata of a row, ms"]
    )
    print_row(["---"] * 6)
    for fragments in parser.parse_args().fragments:
        for indexed in (False, True):
            times = [f"{ms:,.0f}" for ms in measure(fragments, indexed)]
            print_row([f"{fragments:,}", "yes" if indexed else "no", *times])


if __name__ == "__main__":
    main()
