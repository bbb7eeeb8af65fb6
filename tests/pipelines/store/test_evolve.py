"""The table of an index gets the columns of a job: nothing of the user's is dropped unasked, nothing is embedded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import lance
import pyarrow as pa
import pytest

from pipelines.config import ConfigError
from pipelines.store.commit import CommitError, create_or_open
from pipelines.store.documents import hold_lease, replace_documents
from pipelines.store.evolve import check_columns, evolve_table
from pipelines.store.hashes import hash_content, hash_metadata
from pipelines.store.lease import Lease
from pipelines.store.schema import Identity, Target, documents_schema
from pipelines.store.updates import commit_updates, split_by_fragment, update_metadata

Block = Callable[..., pa.Table]


@pytest.fixture
def index(target: Target, block: Block) -> Target:
    """Two fragments, `a` to `d` and `e` to `g`, all with lang `en`."""
    for part in ("abcd", "efg"):
        with hold_lease(target) as lease:
            replace_documents(replace(target, run=part), lease, block(list(part)))
    return target


@pytest.fixture
def held(index: Target) -> Iterator[Lease]:
    with hold_lease(index) as lease:
        yield lease


def with_metadata(index: Target, identity: Identity, *names: str) -> Target:
    return replace(index, schema=documents_schema(identity, [pa.field(name, pa.string()) for name in names]))


def rows(index: Target, *columns: str) -> list[dict[str, object]]:
    return lance.dataset(index.documents_uri).to_table(columns=["doc_id", *columns]).to_pylist()


def test_a_column_that_the_job_lacks_is_refused_with_both_ways_on(index: Target, identity: Identity) -> None:
    without = with_metadata(index, identity)
    with pytest.raises(
        ConfigError,
        match=r"metadata column 'lang', this job does not: name it in input\.columns\.metadata to keep it, or drop it "
        "with --drop-column lang",
    ):
        check_columns(without)
    check_columns(without, ["lang"])
    assert lance.dataset(index.documents_uri).schema.names == index.schema.names


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("lang", "--drop-column lang: the job writes this column"),
        ("toy_dense", "--drop-column toy_dense: the job writes this column"),
    ],
)
def test_what_the_job_writes_is_not_dropped(index: Target, drop: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_columns(index, [drop])


def test_a_dropped_column_is_gone_and_the_rest_stays(index: Target, identity: Identity, held: Lease) -> None:
    before = rows(index, "text", "content_hash", "toy_dense")
    evolve_table(with_metadata(index, identity), held, ["lang"])
    assert "lang" not in lance.dataset(index.documents_uri).schema.names
    assert rows(index, "text", "content_hash", "toy_dense") == before
    evolve_table(with_metadata(index, identity), held, ["lang"])


def test_a_new_column_is_null_and_written_rows_have_it(
    index: Target, identity: Identity, held: Lease, block: Block
) -> None:
    wider = evolve_table(with_metadata(index, identity, "module", "lang"), held)
    assert {row["module"] for row in rows(index, "module")} == {None}
    table = block(["a", "new"], text="changed").append_column("module", pa.array(["m", "n"]))
    replace_documents(wider, held, table)
    found = {row["doc_id"]: (row["lang"], row["module"]) for row in rows(index, "lang", "module")}
    assert found == {"a": ("en", "m"), "new": ("en", "n"), **dict.fromkeys("bcdefg", ("en", None))}


def updates(index: Target, ids: Sequence[str], lang: str) -> pa.Table:
    """New values for documents, as a job reads them from its input."""
    stored = lance.dataset(index.documents_uri).to_table(columns=["doc_id", "content_hash"], with_row_address=True)
    chosen = stored.filter(pa.compute.is_in(stored["doc_id"], pa.array(ids)))
    langs = pa.array([lang] * len(chosen))
    return chosen.append_column("lang", langs).append_column(
        "metadata_hash", hash_metadata({"lang": langs}, len(langs))
    )


def write(index: Target, lease: Lease, table: pa.Table) -> int:
    version = lance.dataset(index.documents_uri).version
    made = [update_metadata(index, version, i, part) for i, part in split_by_fragment(table).items()]
    commit_updates(index, lease, [update for update in made if update is not None], "metadata")
    return sum(update.rows for update in made if update is not None)


def test_metadata_is_written_in_place(index: Target, held: Lease) -> None:
    dataset = lance.dataset(index.documents_uri)
    addresses = dataset.to_table(columns=["doc_id", "toy_dense", "text"], with_row_address=True)
    files = {f.fragment_id: f.metadata.files[0].path for f in dataset.get_fragments()}
    assert write(index, held, updates(index, ["b", "e"], "fr")) == 2
    after = lance.dataset(index.documents_uri)
    assert after.to_table(columns=["doc_id", "toy_dense", "text"], with_row_address=True).equals(addresses)
    assert {f.fragment_id: f.metadata.files[0].path for f in after.get_fragments()} == files
    assert {row["doc_id"]: row["lang"] for row in rows(index, "lang")} == {
        **dict.fromkeys("acdfg", "en"), **dict.fromkeys("be", "fr")
    }  # fmt: skip


def test_a_row_that_is_another_document_by_now_is_left_alone(index: Target, held: Lease) -> None:
    """Its file was rewritten after the changes were detected: the same place holds another id, or another text."""
    table = updates(index, ["a", "b"], "fr")
    other_id = table.set_column(0, "doc_id", pa.array(["x", "b"]))
    assert write(index, held, other_id) == 1
    other_text = table.set_column(1, "content_hash", hash_content(pa.array(["other", "other"])))
    assert write(index, held, other_text) == 0
    assert {row["doc_id"]: row["lang"] for row in rows(index, "lang")} == {"b": "fr", **dict.fromkeys("acdefg", "en")}


def test_an_update_of_a_fragment_that_has_changed_is_refused(index: Target, held: Lease) -> None:
    dataset = lance.dataset(index.documents_uri)
    update = update_metadata(index, dataset.version, 0, split_by_fragment(updates(index, ["a"], "fr"))[0])
    assert update is not None
    dataset.delete("doc_id = 'b'")
    with pytest.raises(CommitError, match="fragment 0 has changed"):
        commit_updates(index, held, [update], "metadata")
    assert {row["lang"] for row in rows(index, "lang")} == {"en"}


def test_indexes_on_text_keep_their_rows_and_those_on_metadata_lose_them(index: Target, held: Lease) -> None:
    dataset = lance.dataset(index.documents_uri)
    dataset.create_scalar_index("text", "INVERTED", with_position=False)
    dataset.create_scalar_index("lang", "BTREE")
    write(index, held, updates(index, ["a"], "fr"))
    after = create_or_open(index)
    assert after.stats.index_stats("text_idx")["num_unindexed_rows"] == 0
    assert after.stats.index_stats("lang_idx")["num_unindexed_rows"] == 4
    assert [row["doc_id"] for row in after.to_table(filter="lang = 'fr'").to_pylist()] == ["a"]
