"""Measures the CPU time of reading each format into documents with hashes: `python benchmarks/reading.py CORPUS`.

CORPUS is a Parquet or JSON Lines file with `text`; its texts are repeated up to `--megabytes`, with ids and three
metadata columns, and written once per format. Reading is what change detection does with a unit: decode, check,
convert, hash. Another checkout is measured by the same script with `PYTHONPATH` set to it.
"""

from __future__ import annotations

import argparse
import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from pyarrow import feather, orc

from pipelines.config import Columns, InputConfig
from pipelines.reading.units import metadata_fields, plan_units, read_unit

BATCH_ROWS = 4096
Row = dict[str, Any]


def take_rows(corpus: Path, n_bytes: int) -> list[Row]:
    """Returns rows whose texts have about so many bytes in all."""
    if corpus.suffix == ".parquet":
        texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    else:
        texts = [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]
    rows: list[Row] = []
    size = 0
    for i, text in enumerate(itertools.cycle(filter(None, texts))):
        if size >= n_bytes:
            return rows
        size += len(text.encode())
        rows.append({"id": f"d{i}", "text": text, "year": 2000 + i % 20, "price": i / 8, "lang": "en"})
    return rows


def _lines(rows: Sequence[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def _csv(rows: Sequence[Row], delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return out.getvalue().encode()


def _binary(write: Callable[[pa.Table, io.BytesIO], object], rows: Sequence[Row]) -> bytes:
    out = io.BytesIO()
    write(pa.Table.from_pylist(list(rows)), out)
    return out.getvalue()


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "parquet": lambda rows: _binary(pq.write_table, rows),
    "arrow": lambda rows: _binary(feather.write_feather, rows),
    "orc": lambda rows: _binary(orc.write_table, rows),
    "jsonl": _lines,
    "json": lambda rows: json.dumps(rows, ensure_ascii=False).encode(),
    "csv": lambda rows: _csv(rows, ","),
    "tsv": lambda rows: _csv(rows, "\t"),
    "jsonl.gz": lambda rows: gzip.compress(_lines(rows)),
    "jsonl.bz2": lambda rows: bz2.compress(_lines(rows)),
    "jsonl.xz": lambda rows: lzma.compress(_lines(rows)),
    "jsonl.zst": lambda rows: zstandard.ZstdCompressor().compress(_lines(rows)),
    "jsonl.lz4": lambda rows: pa.Codec("lz4").compress(_lines(rows), asbytes=True),
}


def seconds(config: InputConfig) -> tuple[float, int]:
    """Returns the CPU seconds of one pass over an input, and its rows."""
    units = plan_units(config)
    fields = metadata_fields(config, units)
    start = time.process_time()
    rows = sum(table.num_rows for unit in units for table in read_unit(unit, config, BATCH_ROWS, fields))
    return time.process_time() - start, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--megabytes", type=float, default=8, help="of text")
    parser.add_argument("--formats", nargs="*", default=list(WRITERS))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rows = take_rows(arguments.corpus, int(arguments.megabytes * 2**20))
    n_bytes = sum(len(row["text"].encode()) for row in rows)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.formats:
            path = Path(folder, f"a.{name}")
            path.write_bytes(WRITERS[name](rows))
            config = InputConfig(paths=(str(path),), columns=Columns(metadata=("year", "price", "lang")))
            times = [seconds(config) for _ in range(arguments.rounds)]
            assert all(count == len(rows) for _, count in times)
            best = min(spent for spent, _ in times)
            found[name] = {"seconds": round(best, 4), "mb_of_text_per_second": round(n_bytes / best / 2**20, 1)}
    sys.stdout.write(json.dumps({"rows": len(rows), "text_mb": round(n_bytes / 2**20, 1), **found}) + "\n")


if __name__ == "__main__":
    main()
