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

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.changes.detect import detect_changes
from pipelines.changes.selection import select_rows
from pipelines.changes.tasks import InProcess
from pipelines.config import Columns, ConfigError, InputConfig, printable_uri
from pipelines.reading.documents import read_schema
from pipelines.reading.units import metadata_fields, plan_input, read_unit
from tests.fuzz.trees import DOCUMENTS, LINES, TreeFile, trees, write_tree

TREES = int(os.environ.get("TRIDEX_FUZZ_TREES", "50"))
SETTINGS = settings(
    max_examples=TREES,
    deadline=None,
    derandomize=TREES == 50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


@SETTINGS
@given(trees(), st.sampled_from([(), ("meta",), ("meta", "year"), ("lang",)]))
def test_everything_is_read_quarantined_or_skipped(files: list[TreeFile], metadata: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        root = Path(folder).resolve() / "in"
        write_tree(root, files)
        try:
            rows, skipped = _run(root, Columns(metadata=metadata))
        except ConfigError as error:
            _check_refusal(error)
            return
    _check(root, files, rows, skipped)


def _check_refusal(error: ConfigError) -> None:
    assert str(error).startswith(("input.paths.0: ", "input.columns."))


def _run(root: Path, columns: Columns) -> tuple[list[dict[str, Any]], set[str]]:
    """The rows that a build would embed or quarantine, and the files that it would name as skipped."""
    config = InputConfig(paths=(str(root),), columns=columns)
    plan = plan_input(config)
    fields = metadata_fields(config, plan.units)
    read = partial(read_unit, config=config, batch_rows=3, fields=fields)
    changes = detect_changes(plan.units, read, run=InProcess())
    rows: list[dict[str, Any]] = []
    for unit, unit_plan in zip(plan.units, changes.plans, strict=True):
        tables = select_rows(unit, unit_plan, read, None, read_schema(fields)) if unit_plan.pending_rows else ()
        for table in tables:
            rows += table.to_pylist()
    assert changes.to_embed == sum(row["error"] is None for row in rows)
    return rows, {s.uri for s in plan.skipped}


def _check(root: Path, files: list[TreeFile], rows: list[dict[str, Any]], skipped: set[str]) -> None:
    good = Counter(row["doc_id"] for row in rows if row["error"] is None)
    bad = Counter(row["source"].partition("@")[0] for row in rows if row["error"] is not None)
    read = {row["source"].partition("@")[0] for row in rows}
    assert not [document for document, n in good.items() if n > 1]
    for file in files:
        uri = printable_uri(f"{root}/{file.place}")
        if uri in skipped:
            assert uri not in read
            continue
        came = [row for row in rows if row["source"].partition("@")[0] == uri]
        if file.format in (*DOCUMENTS, "pdf"):
            assert len(came) == 1, f"{file.place}: {came}"
            continue
        found = [i for i in file.ids if good[i]]
        if file.is_exact:
            assert len(found) + bad[uri] == len(file.ids), f"{file.place}: {len(found)} of {file.ids}, {bad[uri]} bad"
        elif file.damage != "flipped":
            kept = [i for i in file.ids if file.packed or file.format not in LINES or i.encode() in file.content]
            assert bad[uri] or len(found) >= len(kept), f"{file.place}: {found} of {kept}, none bad"


@pytest.mark.ray
@settings(SETTINGS, max_examples=max(2, TREES // 200))
@given(files=trees())
def test_the_whole_job_ends_in_words(ray_session: None, files: list[TreeFile]) -> None:
    from pipelines.indexing.build import build_index
    from pipelines.store.table import open_table

    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        root, index = Path(folder).resolve() / "in", f"{folder}/idx"
        write_tree(root, files)
        try:
            summary = build_index(str(root), index=index, job={"quarantine_limit": 1}, ray={"progress": False})
        except ConfigError as error:
            _check_refusal(error)
            return
        rows = open_table(index).dataset.to_table(columns=["doc_id", "chunk_index"]).to_pylist()
        ids = [row["doc_id"] for row in rows if row["chunk_index"] == 0]
        assert len(ids) == len(set(ids)) == summary.embedded.documents
        assert sum(entry.count for entry in summary.skipped if entry.what == "files") <= len(files)
