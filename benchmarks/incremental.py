"""What it costs to bring an index up to date: `python benchmarks/incremental.py --data FOLDER_OF_PARQUET`.

Builds an index of a corpus, then builds it again: as it is, with 1% of the documents edited, with 1% removed and
`--prune`, with ColBERT added to an index that had dense vectors alone, and with a second embedder. Tokens are what the
model saw for rows that are new or changed, so their share does not depend on how busy the machine is; seconds do.
Every build is the whole job in a Ray that runs already: change detection, models and search indexes included.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipelines.config import load_config
from pipelines.indexing.build import build_index
from pipelines.monitor.summary import Summary

COLUMNS = (
    "| step | documents embedded | tokens embedded | unchanged | pruned | backfilled | seconds | of it embedding |"
)


def write_shards(table: pa.Table, folder: Path, shards: int = 8) -> None:
    bounds = [i * len(table) // shards for i in range(shards + 1)]
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, stop - start), folder / f"part-{i}.parquet")


def edited(table: pa.Table, every: int = 100) -> pa.Table:
    texts = [f"{text} Edited." if i % every == 0 else text for i, text in enumerate(table.column("text").to_pylist())]
    return table.set_column(table.column_names.index("text"), "text", pa.array(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet shards with `text`")
    parser.add_argument("--passages", type=int, default=10_000)
    arguments = parser.parse_args()
    table = pa.concat_tables(pq.read_table(path) for path in sorted(arguments.data.glob("*.parquet")))
    table = table.slice(0, arguments.passages)
    ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    sys.stdout.write(COLUMNS + "\n|" + "---|" * 8 + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def build(step: str, rows: pa.Table, *overrides: str) -> Summary:
            for old in folder.glob("*.parquet"):
                old.unlink()
            write_shards(rows, folder)
            made = build_index(
                load_config(
                    None,
                    ["ray.progress=false", "index.full_text=false", *overrides],
                    input={"paths": [str(folder / "*.parquet")]},
                    index={"uri": str(folder / "index")},
                )
            )
            e = made.embedded
            figures = [
                f"{e.documents:,}",
                f"{e.n_tokens:,}",
                f"{made.unchanged:,}",
                f"{made.pruned:,}",
                f"{made.backfilled:,} ({made.backfilled_tokens:,} tokens)",
            ]
            seconds = [f"{made.seconds:.1f}", f"{made.embed_seconds:.1f}"]
            sys.stdout.write("| " + " | ".join([step, *figures, *seconds]) + " |\n")
            sys.stdout.flush()
            return made

        dense = "embedders=[{outputs: [dense]}]"
        build("first", table, dense)
        build("again", table, dense)
        build("1% edited", edited(table), dense)
        build("1% removed, pruned", edited(table).slice(len(table) // 100), dense, "job.prune=true")
        rest = edited(table).slice(len(table) // 100)
        build("ColBERT added", rest, "embedders=[{outputs: [dense, colbert]}]")
        build("again", rest, "embedders=[{outputs: [dense, colbert]}]")
        second = "{name: short, model: all-MiniLM-L6-v2, outputs: [dense], max_length: 64}"
        build("second embedder, 64 tokens", rest, f"embedders=[{{outputs: [dense, colbert]}}, {second}]")


if __name__ == "__main__":
    main()
