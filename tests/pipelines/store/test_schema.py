"""Identity of an index: it survives the table's metadata, and a difference is named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config import ConfigError, load_config
from pipelines.store.schema import Identity, Target, documents_schema, identity_of


def changed(identity: Identity, **fields: Any) -> Identity:
    return replace(identity, embedders={"toy": {**identity.embedders["toy"], **fields}})


def test_identity_survives_the_schema(identity: Identity) -> None:
    assert Identity.from_metadata(documents_schema(identity).metadata) == identity
    assert Identity.from_metadata(pa.schema([("a", pa.int64())]).metadata) is None


def test_equal_identities_do_not_differ(identity: Identity) -> None:
    assert identity.difference(changed(identity, outputs=["colbert", "dense"])) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "xyz"}, "embedders.toy.weights: index has 'abc', you have 'xyz'"),
        ({"model": "other", "dim": 8, "weights": "xyz"}, "embedders.toy.model: index has 'toy', you have 'other'"),
        ({"revision": None}, "embedders.toy.revision: index has nothing, you have None"),
    ],
)
def test_the_first_difference_is_named(identity: Identity, fields: dict[str, Any], message: str) -> None:
    assert identity.difference(changed(identity, **fields)) == message


def test_another_chunker_or_format_differs(identity: Identity) -> None:
    other = replace(identity, chunk={"mode": "tokens", "size": 256})
    assert identity.difference(other) == "chunk.mode: index has 'whole', you have 'tokens'"
    assert identity.difference(replace(other, format_version=3)) == "format_version: index has 2, you have 3"


def test_additions_are_found_only_where_nothing_else_differs(identity: Identity) -> None:
    more = changed(identity, outputs=["dense", "sparse", "colbert"])
    second = replace(more, embedders={**more.embedders, "bge": {"model": "bge", "outputs": ["dense"]}})
    assert identity.additions(second) == {"toy": ("sparse",), "bge": ("dense",)}
    assert identity.additions(identity) == {}
    assert identity.additions(changed(more, weights="xyz")) == {}


def test_columns_follow_the_identity(identity: Identity) -> None:
    schema = documents_schema(changed(identity, outputs=["dense", "sparse", "colbert"], colbert="float16"))
    assert schema.field("toy_dense").type == pa.list_(pa.float16(), 4)
    assert schema.field("toy_colbert").type == pa.list_(pa.list_(pa.float16(), 8))
    sparse = pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
    assert schema.field("toy_sparse").type == sparse
    assert documents_schema(identity).field("toy_colbert").type == pa.large_binary()


@pytest.mark.parametrize("name", ["text", "toy_dense"])
def test_a_metadata_column_must_not_take_a_column_of_the_index(identity: Identity, name: str) -> None:
    with pytest.raises(ConfigError, match=f"input.columns.metadata: '{name}' is a column that the index itself makes"):
        documents_schema(identity, [pa.field(name, pa.string())])


def test_the_identity_of_a_config() -> None:
    config = load_config(
        input={"paths": ["a"]},
        index={"uri": "b"},
        chunk={"mode": "tokens", "size": 64, "overlap": 32},
        embedders=[{"name": "m", "outputs": ["dense"], "codec": {"dense": "float16"}}],
    )
    identity = identity_of(config, {"m": {"model": "x", "outputs": ["dense", "colbert"]}})
    assert identity.chunk == {"mode": "tokens", "size": 64, "overlap": 32}
    plain = load_config(input={"paths": ["a"]}, index={"uri": "b"}, embedders=[{"name": "m", "outputs": ["dense"]}])
    assert identity_of(plain, {"m": {}}).chunk == {"mode": "tokens", "size": "auto", "overlap": "auto"}
    whole = load_config(None, ["chunk.mode=whole"], input={"paths": ["a"]}, index={"uri": "b"})
    assert identity_of(whole, {"minilm": {"outputs": ["dense"]}}).chunk == {"mode": "whole"}
    assert identity.embedders["m"]["outputs"] == ["dense"]
    assert (identity.embedders["m"]["dense"], identity.embedders["m"]["colbert"]) == ("float16", "rotated_sign")


def test_secrets_stay_out_of_messages(target: Target) -> None:
    assert "hunter2" not in repr(replace(target, storage_options={"aws_secret_access_key": "hunter2"}))
