"""A sound index passes; each kind of damage is named, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.integrity.check import check_index
from tests.indexes import corpus, make_index


@pytest.fixture
def index(tmp_path: Path) -> str:
    return make_index(tmp_path / "index", corpus(60), metadata={"year": pa.array(range(60))}, fragment_rows=25)


def problems(uri: str) -> list[str]:
    return [line for check in check_index(uri).checks for line in check.problems]


def notes(uri: str) -> list[str]:
    return [line for check in check_index(uri).checks for line in check.notes]


def rewrite(uri: str, change: Callable[[pa.Table], pa.Table]) -> None:
    path = f"{uri}/documents.lance"
    lance.write_dataset(change(lance.dataset(path).to_table()), path, mode="overwrite")


def replaced(name: str, values: Callable[[pa.ChunkedArray], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), table.schema.field(name), values(table[name]))


def test_a_sound_index_passes(index: str) -> None:
    report = check_index(index)
    assert report.sound, report.text()
    assert "documents: 60 whole, in 60 rows with distinct ids" in report.text()
    assert notes(index) == ["postings of words do not cover 60 rows: `tridex optimize` adds them"]
    assert CliRunner().invoke(app, ["check", index]).exit_code == 0


def test_repeated_rows_and_missing_chunks_are_found(index: str) -> None:
    rewrite(index, lambda table: pa.concat_tables([table, table.slice(3, 2)]))
    assert "2 rows repeat a chunk_id" in problems(index)
    assert "2 documents lack chunks or have some twice, such as ['d0003', 'd0004']" in problems(index)
    assert CliRunner().invoke(app, ["check", index]).exit_code == 1
    rewrite(index, lambda table: replaced("chunk_count", lambda c: pc.add(c, pa.scalar(1, pa.int32())))(table[:1]))
    assert any("1 documents lack chunks" in line for line in problems(index))


def test_texts_and_metadata_that_are_not_as_their_hashes_say(index: str) -> None:
    rewrite(index, replaced("text", lambda c: pc.utf8_upper(c)))
    assert problems(index) == ["60 rows have another text than their content_hash"]
    rewrite(index, replaced("text", lambda c: pc.utf8_capitalize(c)))
    rewrite(index, replaced("year", lambda c: pc.add(c, 1)))
    assert any(line.startswith("60 rows have other metadata than their hash") for line in notes(index))


def test_vectors_that_are_not_numbers(index: str) -> None:
    def broken(column: pa.ChunkedArray) -> pa.Array:
        values = column.combine_chunks().flatten().to_numpy().copy()
        values[:3] = float("nan")
        return pa.FixedSizeListArray.from_arrays(pa.array(values), column.type.list_size)

    rewrite(index, replaced("words_dense", broken))
    assert problems(index) == ["words_dense has 3 values that are not finite"]


def test_a_file_that_is_gone_and_one_that_nobody_knows(index: str) -> None:
    dataset = lance.dataset(f"{index}/documents.lance")
    known = Path(index, "documents.lance/data", dataset.get_fragments()[1].metadata.files[0].path)
    (known.parent / "stray.lance").write_bytes(b"x")
    assert "1 files that nothing refers to: `tridex optimize` removes them" in notes(index)
    whole = known.read_bytes()
    known.unlink()
    assert f"fragment 1, 25 rows: file {known.name} is gone" in problems(index)
    known.write_bytes(whole[:-9])
    assert any(f"fragment 1, 25 rows: file {known.name} has" in line for line in problems(index))
    known.write_bytes(whole)
    assert problems(index) == []
