"""Wrong requests: each is refused before any work, with the key path at fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.config import BuildConfig, ConfigError, load_config, validate

GOOD: dict[str, Any] = {"input": {"paths": ["a.jsonl"]}, "index": {"uri": "idx"}}


def _with(**sections: Any) -> dict[str, Any]:
    return {**GOOD, **sections}


def test_the_least_config_is_enough() -> None:
    config = validate(GOOD)
    assert isinstance(config, BuildConfig)
    assert config.embedders[0].model == "all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "input: is missing"),
        ({"input": {"paths": []}, "index": {"uri": "x"}}, "input.paths: "),
        (_with(inputs={}), "inputs: is unknown"),
        (_with(index={"uri": "x", "commit_fragment": 1}), "index.commit_fragment: is unknown"),
        (
            _with(index={"uri": "x", "commit_fragments": "many"}),
            "index.commit_fragments: must be an integer",
        ),
        (_with(index={"uri": "x", "commit_fragments": 0}), "index.commit_fragments: must be greater than 0"),
        (_with(input={"paths": ["a"], "format": "dbf"}), "input.format: must be 'auto', 'parquet'"),
        (_with(embedders=[]), "embedders: at least one embedder is needed"),
        (_with(embedders=[{"name": "a"}, {"name": "a"}]), "embedders: embedder names must differ, got ['a', 'a']"),
        (_with(embedders=[{"name": "A-b"}]), "embedders.0.name: name must match [a-z][a-z0-9_]*, got 'A-b'"),
        (_with(embedders=[{"model": None}]), "embedders.0.model: must be a string"),
        (
            _with(embedders=[{"outputs": ["dens"]}]),
            "embedders.0.outputs.0: must be 'dense', 'sparse' or 'colbert'",
        ),
        (_with(embedders=[{"max_length": 0}]), "embedders.0.max_length: must be greater than 0"),
        (_with(embedders=[{"codec": {"colbert": "bits3"}}]), "embedders.0.codec.colbert: "),
        (
            _with(embedders=[{"pool": {"min_size": 4, "max_size": 2}}]),
            "embedders.0.pool: max_size (2) is smaller than min_size (4)",
        ),
        (_with(chunk={"size": 10, "overlap": 10}), "chunk: overlap (10) must be smaller than size (10)"),
        (
            _with(chunk={"mode": "tokens", "size": 512}, embedders=[{"max_length": 512}]),
            "chunk.size (512) plus special tokens exceeds embedders.0.max_length (512)",
        ),
        (_with(job={"quarantine_limit": 2}), "job.quarantine_limit: must be at most 1"),
    ],
)
def test_a_wrong_config_names_its_key(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(tree)
    assert message in str(caught.value)


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(_with(jobs={}, index={"uri": 1}))
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["index.uri", "jobs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index.uri", "--set 'index.uri': expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("index.uri=[1", "--set index.uri: not a YAML value: '[1'"),
        ("embedders.x.model=a", "embedders.x: expected an index from 0 to 0"),
        ("embedders.5.model=a", "embedders.5: expected an index from 0 to 0"),
        ("index.uri.deeper=1", "index.uri: is a value, has no key 'deeper'"),
        ("index.nothing=1", "index.nothing: is unknown"),
    ],
)
def test_a_wrong_override_names_its_argument(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["embedders=[]", text], **GOOD)
    assert message in str(caught.value)


def test_a_config_file_that_is_missing_or_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml: no such config file"):
        load_config(tmp_path / "missing.yaml")
    for text, message in (("a: [", "not YAML"), ("- a", "expected a mapping of keys"), ("", "expected a mapping")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=rf"bad\.yaml: .*{message}"):
            load_config(tmp_path / "bad.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not YAML"):
        load_config(tmp_path / "latin.yaml")


def test_secrets_are_not_shown() -> None:
    options = {"aws_secret_access_key": "hunter2hunter2"}
    config = validate(
        {"input": {"paths": ["a"], "storage_options": options}, "index": {"uri": "x", "storage_options": options}}
    )
    assert "hunter2" not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"
    assert config.index.storage_options["aws_secret_access_key"].get_secret_value() == "hunter2hunter2"
