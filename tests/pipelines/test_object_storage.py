"""Shards read from and an index written to an S3-compatible server on loopback, secrets kept out of everything."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from pipelines.config import ConfigError, InputConfig, plain_options, validate
from pipelines.monitor.report import Facts, write_report
from pipelines.reading.listing import list_files
from pipelines.reading.units import metadata_fields, plan_units, read_unit

KEY, SECRET = "AKIATESTTESTTEST", "sesame-open-sesame-open"
BUCKET = "corpus"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(scope="module")
def options(endpoint: str) -> dict[str, str]:
    """LanceDB's names, for input and index alike."""
    return {
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
        "aws_region": "us-east-1",
        "aws_endpoint": endpoint,
        "allow_http": "true",
        "virtual_hosted_style_request": "false",
    }


@pytest.fixture(scope="module")
def store(options: Mapping[str, str]) -> pafs.S3FileSystem:
    """The bucket with the same ten documents in four formats."""
    host = options["aws_endpoint"].removeprefix("http://")
    keys = {"access_key": KEY, "secret_key": SECRET, "region": "us-east-1"}
    fs = pafs.S3FileSystem(endpoint_override=host, scheme="http", allow_bucket_creation=True, **keys)
    fs.create_dir(BUCKET)
    table = pa.Table.from_pylist([{"id": f"d{i}", "text": f"text {i} of cats", "year": 2000 + i} for i in range(10)])
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    for i in range(2):
        pq.write_table(table.slice(5 * i, 5), f"{BUCKET}/parquet/{i}.parquet", filesystem=fs)
    for name, data in {"a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines)}.items():
        with fs.open_output_stream(f"{BUCKET}/json/{name}", compression=None) as file:
            file.write(data)
    lance.write_dataset(table, f"s3://{BUCKET}/table.lance", storage_options=dict(options), max_rows_per_file=4)
    return fs


def _read(config: InputConfig) -> list[dict[str, Any]]:
    units = plan_units(config)
    assert SECRET not in repr(units)
    fields = metadata_fields(config, units)
    return [row for unit in units for table in read_unit(unit, config, 4, fields) for row in table.to_pylist()]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    "path",
    ["parquet", "parquet/*.parquet", "parquet/?.parquet", "json/a.jsonl", "json/*.gz", "**/a.jsonl", "table.lance"],
)
def test_shards_are_found_and_read(path: str, options: dict[str, str]) -> None:
    config = InputConfig(
        paths=(f"s3://{BUCKET}/{path}",),
        columns={"metadata": ["year"]},
        storage_options=options,  # type: ignore[arg-type]
    )
    rows = _read(config)
    assert [row["doc_id"] for row in rows] == [f"d{i}" for i in range(10)]
    assert [row["year"] for row in rows] == list(range(2000, 2010))
    assert {row["error"] for row in rows} == {None}
    assert all(row["source"].startswith(f"s3://{BUCKET}/") for row in rows)


@pytest.mark.usefixtures("store")
def test_options_may_come_from_the_environment(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert len(list_files(f"s3://{BUCKET}/parquet", {}).files) == 2
    assert len(_read(InputConfig(paths=(f"s3://{BUCKET}/json/a.jsonl",)))) == 10


def test_a_shard_that_is_damaged_on_the_store(store: pafs.S3FileSystem, options: dict[str, str]) -> None:
    with store.open_output_stream(f"{BUCKET}/bad/a.parquet") as file:
        file.write(b"PAR1 and no more")
    (row,) = _read(InputConfig(paths=(f"s3://{BUCKET}/bad/",), storage_options=options))  # type: ignore[arg-type]
    assert row["error"].startswith("cannot be read: ")
    assert row["source"] == f"s3://{BUCKET}/bad/a.parquet"


@pytest.mark.usefixtures("store")
def test_wrong_requests_do_not_show_secrets(options: dict[str, str], endpoint: str) -> None:
    for path, message in (("nobucket/a.parquet", "no file matches"), (f"{BUCKET}/none/*.parquet", "no file matches")):
        with pytest.raises(ConfigError, match=message) as caught:
            plan_units(InputConfig(paths=(f"s3://{path}",), storage_options=options))  # type: ignore[arg-type]
        assert SECRET not in str(caught.value)
    away = {**options, "aws_endpoint": "http://127.0.0.1:9"}
    with pytest.raises(ConfigError, match=r"input\.paths\.0: cannot list 's3://corpus/parquet'") as caught:
        plan_units(InputConfig(paths=(f"s3://{BUCKET}/parquet",), storage_options=away))  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_report_is_written_beside_the_index(store: pafs.S3FileSystem, options: dict[str, str]) -> None:
    config = validate({"input": {"paths": ["a"]}, "index": {"uri": f"s3://{BUCKET}/idx", "storage_options": options}})
    facts = Facts(job="j", state="done", summary={}, config=config.model_dump(mode="json"), phases={"census": 1.0})
    address = write_report(config.index.uri, facts, config.index.storage_options)
    with store.open_input_stream(address.removeprefix("s3://")) as file:
        assert b"j: done" in file.read()
    _assert_free_of_secrets(store, f"{BUCKET}/idx")


def _assert_free_of_secrets(store: pafs.S3FileSystem, folder: str) -> None:
    files = [i for i in store.get_file_info(pafs.FileSelector(folder, recursive=True)) if i.is_file]
    assert files
    for info in files:
        with store.open_input_stream(info.path) as file:
            content = file.read()
        assert SECRET.encode() not in content, info.path
        assert KEY.encode() not in content, info.path


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_an_index_is_built_on_the_store_and_searched(
    store: pafs.S3FileSystem, options: dict[str, str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from pipelines.indexing.build import build_index
    from pipelines.retrieval import open_index

    config = validate(
        {
            "input": {"paths": [f"s3://{BUCKET}/parquet/"], "storage_options": options},
            "index": {"uri": f"s3://{BUCKET}/built", "storage_options": options, "commit_fragments": 1},
            "embedders": [{"pool": {"max_size": 1, "batch_rows": 4}}],
        }
    )
    assert build_index(config).embedded.rows == 10
    again = build_index(config)
    assert (again.embedded.rows, again.unchanged) == (0, 10)
    index = open_index(config.index.uri, storage_options=plain_options(config.index.storage_options))
    assert len(index) == 10
    assert index.search("text 3 of cats", k=3)[0].doc_id == "d3"
    _assert_free_of_secrets(store, f"{BUCKET}/built")
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
