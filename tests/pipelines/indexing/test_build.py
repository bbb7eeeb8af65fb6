"""The job from end to end on a small corpus, with the packaged model and a real Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import BuildConfig, ConfigError, load_config

pytestmark = pytest.mark.ray


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def documents(n: int) -> list[dict[str, Any]]:
    return [{"id": f"d{i}", "title": f"Title {i}", "text": f"This is text number {i}.", "lang": "en"} for i in range(n)]


def configure(folder: Path, *overrides: str) -> BuildConfig:
    return load_config(
        None,
        ["ray.progress=false", "input.columns.metadata=[lang]", *overrides],
        input={"paths": [str(folder / "*.jsonl")]},
        index={"uri": str(folder / "index")},
    )


def table(folder: Path, name: str = "documents") -> pa.Table:
    return lance.dataset(str(folder / "index" / f"{name}.lance")).to_table()


@pytest.fixture(scope="module")
def built(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 40 documents; the tests that read it leave it as it is."""
    from pipelines.indexing.build import build_index

    tmp_path = tmp_path_factory.mktemp("built")
    write_lines(tmp_path / "a.jsonl", documents(30))
    write_lines(tmp_path / "b.jsonl", [{**row, "id": f"e{i}"} for i, row in enumerate(documents(10))])
    summary = build_index(configure(tmp_path))
    assert (summary.embedded.documents, summary.embedded.quarantined, summary.unchanged) == (40, 0, 0)
    return tmp_path


def test_every_document_is_in_the_table_once_with_its_outputs(built: Path) -> None:
    rows = table(built)
    assert sorted(rows["doc_id"].to_pylist()) == sorted([f"d{i}" for i in range(30)] + [f"e{i}" for i in range(10)])
    assert rows["text"][rows["doc_id"].to_pylist().index("d7")].as_py() == "Title 7 This is text number 7."
    assert rows.schema.field("minilm_dense").type == pa.list_(pa.float32(), 384)
    assert rows.schema.field("minilm_colbert").type == pa.large_binary()
    assert set(rows["lang"].to_pylist()) == {"en"}
    assert rows["n_truncated"].to_pylist() == [0] * 40


def test_vectors_are_those_of_the_embedder(built: Path) -> None:
    from actors.embedders.registry import load_embedder
    from actors.spec import EmbedderSpec

    rows = table(built).slice(0, 3)
    batch = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2")).embed_corpus(rows["text"].to_pylist())
    assert batch.dense is not None
    stored = rows["minilm_dense"].combine_chunks().flatten().to_numpy().reshape(3, 384)
    assert abs(stored - batch.dense).max() < 2e-2  # bf16 where the processor has it


def test_a_second_run_finds_nothing_to_do(built: Path) -> None:
    from pipelines.indexing.build import build_index

    again = build_index(configure(built))
    assert (again.embedded.rows, again.unchanged) == (0, 40)


def test_another_model_is_refused_and_the_field_is_named(built: Path) -> None:
    from pipelines.indexing.build import build_index

    with pytest.raises(ConfigError, match=r"embedders\.minilm\.passage_instruction: index has None, you have 'P: '"):
        build_index(configure(built, "embedders.0.passage_instruction='P: '"))


def test_a_changed_document_is_replaced_and_a_missing_one_pruned(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import build_index

    write_lines(tmp_path / "a.jsonl", documents(12))
    build_index(configure(tmp_path))
    changed = documents(10)
    changed[4]["text"] = "Something else entirely."
    write_lines(tmp_path / "a.jsonl", [*changed, {"id": "new", "title": "", "text": "A new one.", "lang": "de"}])
    summary = build_index(configure(tmp_path, "job.prune=true"))
    assert (summary.embedded.documents, summary.unchanged, summary.pruned) == (2, 9, 2)
    rows = table(tmp_path)
    assert sorted(rows["doc_id"].to_pylist()) == sorted([f"d{i}" for i in range(10)] + ["new"])
    assert rows["text"][rows["doc_id"].to_pylist().index("d4")].as_py() == "Title 4 Something else entirely."


def test_bad_rows_go_to_quarantine_and_the_good_ones_to_the_table(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import build_index

    rows = documents(20)
    rows[3]["text"] = None
    rows[5] |= {"title": "", "text": "   "}
    rows[7]["text"] = 12
    rows[9]["id"] = "d0"
    write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl").write_bytes(b'{"id": "cut", "text": "half a li')
    summary = build_index(configure(tmp_path, "job.quarantine_limit=1"))
    assert (summary.embedded.documents, summary.embedded.quarantined, summary.duplicates) == (16, 5, 1)
    kept = table(tmp_path, "quarantine").to_pylist()
    reasons = {row["position"]: row["error"] for row in kept if row["source"].endswith("a.jsonl")}
    assert "first seen in" in reasons[9]
    assert sorted(reasons) == [3, 5, 7, 9]
    assert any(row["source"].endswith("b.jsonl") for row in kept)


def test_too_many_bad_rows_stop_the_job(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import JobFailed, build_index

    write_lines(
        tmp_path / "a.jsonl", [{**row, "text": None if i % 2 else row["text"]} for i, row in enumerate(documents(20))]
    )
    with pytest.raises(JobFailed, match=r"10 of the first 20 rows went to quarantine, more than job\.quarantine_limit"):
        build_index(configure(tmp_path))
    assert len(table(tmp_path)) == 10


def test_a_process_without_ray_reads_plain_types(built: Path) -> None:
    code = (
        f"import lance, sys; t = lance.dataset({str(built / 'index' / 'documents.lance')!r}).to_table();"
        "assert 'ray' not in sys.modules; print(t.schema.field('minilm_dense').type)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "fixed_size_list<item: float>[384]"


def test_long_documents_are_chunked_with_offsets(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import build_index

    text = " ".join(f"word{i}" for i in range(400))
    pq.write_table(pa.table({"id": ["long"], "text": [text], "lang": ["en"]}), tmp_path / "a.parquet")
    config = configure(
        tmp_path, f"input.paths=[{tmp_path}/a.parquet]", "chunk.mode=tokens", "chunk.size=64", "chunk.overlap=8"
    )
    build_index(config)
    rows = table(tmp_path).sort_by("chunk_index").to_pylist()
    assert len(rows) == rows[0]["chunk_count"] > 5
    assert all(row["text"] == text[row["start"] : row["end"]] for row in rows)
    assert rows[0]["start"] == 0
    assert rows[-1]["end"] == len(text)
    assert rows[1]["chunk_id"] == "long#1"


def test_by_default_nothing_of_a_long_document_is_lost_and_an_upsert_cuts_it_alike(
    ray_session: None, tmp_path: Path
) -> None:
    from pipelines.indexing.build import build_index
    from pipelines.retrieval import open_index

    long = [" ".join(f"{subject}{i % 97} flows" for i in range(300)) for subject in ("river", "lava")]
    write_lines(tmp_path / "a.jsonl", [{"id": "d0", "text": long[0], "lang": "en"}, *documents(4)[1:]])
    summary = build_index(configure(tmp_path))
    assert (summary.embedded.documents, summary.embedded.n_truncated) == (4, 0)
    built = table(tmp_path).sort_by("chunk_id").slice(0, len(table(tmp_path)) - 3)
    assert built["doc_id"].unique().to_pylist() == ["d0"]
    assert len(built) > 2
    index = open_index(str(tmp_path / "index"))
    assert index.upsert([{"doc_id": "d0", "text": long[0]}, {"doc_id": "e", "text": long[1]}]) == 2
    again = table(tmp_path).sort_by("chunk_id")
    same = again.filter(pa.compute.equal(again["doc_id"], "d0"))
    for name in ("chunk_id", "chunk_count", "start", "end", "text", "n_tokens"):
        assert same[name].to_pylist() == built[name].to_pylist()
    index = open_index(str(tmp_path / "index"))
    assert sorted(index.search("where does the river flow", k=5).ids) == ["d0", "d1", "d2", "d3", "e"]
    chunks = index.search("where does the river flow", k=3, group_by=None)
    assert chunks.ids == ["d0"] * 3
    assert len({hit.chunk_id for hit in chunks}) == 3


def test_a_mended_row_comes_out_of_quarantine_by_retry(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import build_index, retry

    rows = documents(8)
    write_lines(tmp_path / "a.jsonl", [*rows[:3], {**rows[3], "text": None}, *rows[4:]])
    config = configure(tmp_path, "job.quarantine_limit=1")
    assert build_index(config).embedded.quarantined == 1
    again = retry(config)
    assert again is not None
    assert (again.embedded.documents, again.embedded.quarantined) == (0, 1)
    write_lines(tmp_path / "a.jsonl", rows)
    mended = retry(config)
    assert mended is not None
    assert (mended.embedded.documents, mended.embedded.quarantined, mended.unchanged) == (1, 0, 7)
    assert len(table(tmp_path, "quarantine")) == 0
    assert retry(config) is None


def test_a_second_embedder_computes_only_its_own_columns(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import build_index

    write_lines(tmp_path / "a.jsonl", documents(12))
    first = configure(tmp_path, "embedders.0.outputs=[dense]")
    build_index(first)
    before = table(tmp_path)
    wider = configure(
        tmp_path, "embedders.0.outputs=[dense, colbert]", "embedders.1.name=short", "embedders.1.outputs=[dense]",
        "embedders.1.truncate_dim=64",
    )  # fmt: skip
    summary = build_index(wider)
    assert (summary.backfilled, summary.embedded.rows, summary.unchanged) == (12, 0, 12)
    after = table(tmp_path)
    assert set(after.column_names) - set(before.column_names) == {"minilm_colbert", "short_dense"}
    assert after.select(before.column_names).equals(before)
    assert after["short_dense"].null_count == after["minilm_colbert"].null_count == 0
    assert build_index(wider).backfilled == 0


def test_data_in_memory_becomes_an_index_and_is_brought_up_to_date(ray_session: None, tmp_path: Path) -> None:
    import pandas as pd
    import ray

    from pipelines.indexing.build import build_index

    uri, options = str(tmp_path / "index"), {"columns": {"metadata": ["lang"]}, "ray": {"progress": False}}
    frame = pd.DataFrame(documents(6))
    assert build_index(frame, index=uri, **options).embedded.documents == 6
    changed = [{**row, "text": "Another text."} if row["id"] == "d2" else row for row in documents(7)]
    summary = build_index(iter(changed), index=uri, **options)
    assert (summary.embedded.documents, summary.unchanged) == (2, 5)
    last = [{**row, "text": None} if row["id"] == "d0" else row for row in changed]
    summary = build_index(ray.data.from_items(last), index=uri, **options, job={"quarantine_limit": 1})
    assert (summary.embedded.documents, summary.unchanged, summary.embedded.quarantined) == (0, 6, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert table(tmp_path)["doc_id"].to_pylist().count("d2") == 1


def test_skipped_files_and_dropped_values_are_on_the_screen_and_in_status(ray_session: None, tmp_path: Path) -> None:
    from pipelines.indexing.build import build_index
    from pipelines.plan import Pool, make_plan
    from pipelines.store.status import read_status

    rows = [{"id": str(i), "text": f"Text {i}.", "lang": 3 if i < 1000 else "many"} for i in range(1001)]
    write_lines(tmp_path / "in" / "a.jsonl", rows)
    for name in ("notes.pdf", "more.pdf", "x.bin"):
        (tmp_path / "in" / name).write_bytes(b"%PDF")
    stated = "input.columns.metadata={lang: int64}"  # a guessed type would widen
    config = configure(tmp_path, f"input.paths=[{tmp_path / 'in'}]", stated)
    planned = make_plan(config, Pool(tokens_per_second=1000))
    summary = build_index(config)
    status = read_status(str(tmp_path / "index"))
    for text in (planned.text(), summary.text(), status.text()):
        assert "2 .pdf: a document beside data files" in text
        assert "1 .bin: no reader for such files" in text
    for text in (summary.text(), status.text()):
        assert "1 values of 'lang': not int64, stored as null" in text
    assert summary.embedded.documents == 1001
