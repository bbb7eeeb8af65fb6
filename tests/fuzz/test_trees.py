"""For every file and row of a random tree: in the index, in quarantine or named as skipped, nothing twice.

50 trees run with the other tests, through reading and change detection without Ray; more by hand:
`TRIDEX_FUZZ_TREES=2000 python -m pytest tests/fuzz`.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from pipelines.changes.detect import detect_changes
from pipelines.changes.selection import select_rows
from pipelines.changes.tasks import InProcess
from pipelines.config import Columns, ConfigError, InputConfig, printable_uri
from pipelines.reading.documents import dropped_values, read_schema
from pipelines.reading.units import metadata_fields, plan_input, read_unit
from pipelines.store.skipped import misfit_names
from tests.fuzz.trees import BINARY, DOCUMENTS, JUNK, LINES, Tree, TreeFile, reader_of, trees, without_rows, write_tree

TREES = int(os.environ.get("TRIDEX_FUZZ_TREES", "50"))
SETTINGS = settings(
    max_examples=TREES,
    deadline=None,
    derandomize=TREES == 50,
    phases=tuple(Phase) if TREES == 50 else (Phase.explicit, Phase.generate),  # shrinking takes minutes
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@SETTINGS
@given(trees())
def test_everything_is_read_quarantined_or_skipped(tree: Tree) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        root = str(Path(folder).resolve() / "in")
        write_tree(root, tree)
        try:
            tables, skipped, told = _run_as_told(root, tree)
        except ConfigError as error:
            _check_refusal(error)
            event("refused")
            return
        if tables and tree.metadata:
            lance.write_dataset(pa.concat_tables(tables).select(list(tree.metadata)), f"{folder}/stored.lance")
    rows = [row for table in tables for row in table.to_pylist()]
    event("read" if rows else "nothing read")
    assert not [document for document, n in _count_good(rows).items() if n > 1]
    for file in tree.files:
        if told and reader_of(file.format) != tree.format:
            continue
        _check(printable_uri(f"{root}/{file.place}"), file, tree, rows, skipped)


def _columns(tree: Tree) -> dict[str, Any]:
    return {"id": tree.id, "metadata": {name: {"column": column} for name, column in tree.metadata.items()}}


def _check_refusal(error: ConfigError) -> None:
    assert str(error).startswith(("input.paths.0: ", "input.columns."))
    assert "\n" not in str(error)


def _run_as_told(root: str, tree: Tree) -> tuple[list[pa.Table], set[str], bool]:
    """Runs once more with a format if the files' names leave it open and the refusal asks for it; tells whether."""
    columns = Columns.model_validate(_columns(tree))
    try:
        return *_run(InputConfig(paths=(root,), columns=columns)), False
    except ConfigError as error:
        if "set input.format" not in str(error):
            raise
    return *_run(InputConfig(paths=(root,), columns=columns, format=tree.format)), True


def _run(config: InputConfig) -> tuple[list[pa.Table], set[str]]:
    """The rows that a build would embed or quarantine, and the files that it would name as skipped."""
    plan = plan_input(config)
    fields = metadata_fields(config, plan.units)
    read = partial(read_unit, config=config, batch_rows=3, fields=fields)
    changes = detect_changes(plan.units, read, run=InProcess())
    tables: list[pa.Table] = []
    for unit, unit_plan in zip(plan.units, changes.plans, strict=True):
        if unit_plan.pending_rows:
            tables += select_rows(unit, unit_plan, read, None, read_schema(fields))
    assert changes.to_embed == sum(table["error"].null_count for table in tables)
    assert sum(s.count for s in dropped_values(changes.misfits, fields)) >= sum(len(misfit_names(t)) for t in tables)
    return tables, {s.uri for s in plan.skipped}


def _count_good(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["doc_id"] for row in rows if row["error"] is None)


def _check(uri: str, file: TreeFile, tree: Tree, rows: list[dict[str, Any]], skipped: set[str]) -> None:
    came = [row for row in rows if row["source"] == uri]
    good = [row for row in came if row["error"] is None]
    if uri in skipped:
        assert not came
    elif file.format in JUNK:
        assert not good
    elif file.format in DOCUMENTS:
        assert len(came) == 1, f"{without_rows(file)}: {came}"
    elif file.is_exact:
        assert len(came) == len(file.rows), f"{without_rows(file)}: {len(came)} of {len(file.rows)}"
        _check_values(file, tree, good)
    elif file.damage != "flipped" and tree.id is not None and not any(row["error"] for row in came):
        ids = {str(row[tree.id]) for row in file.rows if row.get(tree.id) is not None}
        whole = file.packed or file.format not in LINES
        kept = {i for i in ids if whole or i.encode() in file.content}
        assert len(good) >= len(kept), f"{without_rows(file)}: {len(good)} of {kept}, none bad"


def _check_values(file: TreeFile, tree: Tree, good: list[dict[str, Any]]) -> None:
    """Every metadata value is kept, or recorded as one that did not fit."""
    if file.format in BINARY or tree.id is None:
        return
    drawn = {str(row[tree.id]): row for row in reversed(file.rows)}
    for row in good:
        lost = {entry.partition("\0")[0] for entry in row["_misfits"] or ()}
        for name, column in tree.metadata.items():
            value = drawn[row["doc_id"]].get(column)
            if value not in (None, "") and f"/{column}=" not in row["source"]:
                assert row[name] is not None or name in lost, f"{without_rows(file)}: {name} {value!r} of {row}"


@pytest.mark.ray
@settings(SETTINGS, max_examples=max(2, TREES // 200))
@given(trees())
def test_the_whole_job_ends_in_words(ray_session: None, tree: Tree) -> None:
    from pipelines.indexing.build import build_index
    from pipelines.store.table import open_table

    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        root, index = str(Path(folder).resolve() / "in"), f"{folder}/idx"
        write_tree(root, tree)
        try:
            summary = build_index(
                root, index=index, columns=_columns(tree), job={"quarantine_limit": 1}, ray={"progress": False}
            )
        except ConfigError as error:
            _check_refusal(error)
            return
        rows = open_table(index).dataset.to_table(columns=["doc_id", "chunk_index"]).to_pylist()
        ids = [row["doc_id"] for row in rows if row["chunk_index"] == 0]
        assert len(ids) == len(set(ids)) == summary.embedded.documents
        assert sum(entry.count for entry in summary.skipped if entry.what == "files") <= len(tree.files) + len(
            tree.links
        )
