"""Names, detection, remote code: which class and pooling a checkpoint gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import build

import actors
from actors import FlagAutoModel
from actors.models.catalogue import EMBEDDERS, complete, detect, max_positions, short_name
from actors.spec import EmbedderSpec


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return {kind: build(kind, base / kind) for kind in ("bert", "m3", "qwen3", "mistral", "gemma2", "m3_sparse_only")}


def load(path: Path, **options: Any) -> Any:
    return FlagAutoModel.from_finetuned(str(path), **{"use_fp16": False, "devices": "cpu", **options})


def renamed(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def upstream_table() -> dict[str, tuple[str, str, str]]:
    return {
        name: (entry.model_class, entry.pooling, entry.query_instruction_format)
        for name, entry in EMBEDDERS.items()
        if name != "all-MiniLM-L6-v2"
    }


def test_the_table_has_upstreams_47_names() -> None:
    table = upstream_table()
    assert len(table) == 47
    assert table["bge-en-icl"] == ("decoder-only-icl", "last_token", "<instruct>{}\n<query>{}")
    assert table["Qwen3-Embedding-8B"] == ("decoder-only-base", "last_token", "Instruct: {}\nQuery:{}")
    assert table["multilingual-e5-large-instruct"] == ("encoder-only-base", "mean", "Instruct: {}\nQuery: {}")
    assert table["bge-m3"] == ("encoder-only-m3", "cls", "{}{}")
    assert table["bce-embedding-base_v1"] == ("encoder-only-base", "cls", "{}{}")
    code = {name for name, entry in EMBEDDERS.items() if entry.own_code}
    assert code == {
        "bge-code-v1", "gte-Qwen2-7B-instruct", "gte-Qwen2-1.5B-instruct", "gte-Qwen1.5-7B-instruct",
        "gte-multilingual-base", "gte-large-en-v1.5", "gte-base-en-v1.5",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "front"),
    [
        ("bge-m3", "m3", "BGEM3FlagModel"),
        ("e5-base-v2", "bert", "FlagModel"),
        ("bge-en-icl", "mistral", "FlagICLModel"),
        ("Qwen3-Embedding-0.6B", "qwen3", "FlagLLMModel"),
        ("bge-multilingual-gemma2/checkpoint-500", "gemma2", "FlagLLMModel"),
    ],
)
def test_a_name_gives_class_pooling_and_template(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str, front: str
) -> None:
    model = load(renamed(folders[kind], tmp_path / name), query_instruction_for_retrieval="Find.")
    entry = EMBEDDERS[short_name(name)]
    assert type(model) is getattr(actors, front)
    assert (model.pooling_method, model.query_instruction_format) == (entry.pooling, entry.query_instruction_format)


def test_short_names() -> None:
    assert short_name("BAAI/bge-m3") == short_name("/models/bge-m3/") == short_name("bge-m3/checkpoint-7") == "bge-m3"


@pytest.mark.parametrize(
    ("kind", "model_class", "pooling"),
    [
        ("bert", "encoder-only-base", "cls"),
        ("m3", "encoder-only-m3", "cls"),
        ("m3_sparse_only", "encoder-only-m3", "cls"),
        ("mistral", "decoder-only-base", "last_token"),
        ("qwen3", "decoder-only-base", "last_token"),
        ("gemma2", "decoder-only-base", "last_token"),
    ],
)
def test_an_unknown_name_is_read_off_the_checkpoint(
    folders: dict[str, Path], kind: str, model_class: str, pooling: str
) -> None:
    entry = detect(folders[kind])
    assert (entry.model_class, entry.pooling) == (model_class, pooling)
    assert load(folders[kind]).model_class == model_class


def sentence_transformers(folder: Path, modules: list[str], pooling: dict[str, Any]) -> None:
    listed = [
        {"idx": i, "name": str(i), "path": "" if kind == "Transformer" else f"{i}_{kind}", "type": f"st.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 99}))


def test_modules_json_gives_pooling_normalisation_and_length(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = renamed(folders["bert"], tmp_path / "tuned")
    sentence_transformers(folder, ["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True})
    model = load(folder)
    assert (model.pooling_method, model.normalize_embeddings, model.passage_max_length) == ("mean", False, 99)
    explicit = load(folder, normalize_embeddings=True, pooling_method="cls", passage_max_length=64)
    assert (explicit.pooling_method, explicit.passage_max_length) == ("cls", 64)
    np.testing.assert_allclose(np.linalg.norm(explicit.encode("panda")), 1, atol=1e-6)


def test_a_named_class_means_its_plain_defaults_as_upstream(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = renamed(folders["qwen3"], tmp_path / "Qwen3-Embedding-0.6B")
    assert load(folder, model_class="decoder-only-base").query_instruction_format == "{}{}"


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode": "mean"}, r"modules\.json lists Dense"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, r"pools by \['max_tokens'\]"),
    ],
)
def test_modules_that_do_not_run_here_are_refused(
    folders: dict[str, Path], tmp_path: Path, modules: list[str], pooling: dict[str, Any], message: str
) -> None:
    folder = renamed(folders["bert"], tmp_path / "tuned")
    sentence_transformers(folder, modules, pooling)
    with pytest.raises(ValueError, match=message):
        load(folder)


def with_own_code(source: Path, target: Path, kind: str) -> Path:
    folder = renamed(source, target)
    config = json.loads((folder / "config.json").read_text())
    own = {"auto_map": {"AutoModel": "modeling.Own", "AutoConfig": "configuration.Own"}, "model_type": kind}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "configuration.py").write_text("raise SystemExit('remote code ran')\n")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("gte-base-en-v1.5", "bert", r"gte-base-en-v1\.5 needs trust_remote_code=True: .*own code \(modeling\.Own\)"),
        ("unknown", "novel", "transformers has no 'novel' of its own"),
    ],
)
def test_remote_code_is_refused_by_name_and_never_run(
    folders: dict[str, Path], tmp_path: Path, name: str, kind: str, why: str
) -> None:
    folder = with_own_code(folders["bert"], tmp_path / name, kind)
    for trust in (None, False):
        with pytest.raises(ValueError, match=why):
            load(folder, trust_remote_code=trust)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        actors.FlagModel(str(folder), devices="cpu")


OWN = """
import torch
from transformers import BertModel

class Own(BertModel):
    def forward(self, input_ids, attention_mask=None, domain=None, **kwargs):
        out = super().forward(input_ids, attention_mask=attention_mask, **kwargs)
        out.last_hidden_state = torch.full_like(out.last_hidden_state, {None: 1.0, "coding": 2.0}[domain])
        return out
"""


def test_trusted_code_runs_also_where_transformers_has_the_architecture(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = renamed(folders["bert"], tmp_path / "own_bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling.Own"}}))
    (folder / "modeling.py").write_text(OWN)
    options = {"trust_remote_code": True, "normalize_embeddings": False, "model_class": "decoder-only-pseudo_moe"}
    model = load(folder, **options)
    np.testing.assert_array_equal(model.encode(["panda", "bear"]), 1)
    np.testing.assert_array_equal(model.encode(["panda", "bear"], domain="coding"), 2)
    model.domain_for_pseudo_moe = "coding"
    np.testing.assert_array_equal(model.encode_queries(["panda"]), 2)
    assert not np.allclose(load(folder, normalize_embeddings=False).encode(["panda"]), 1)


def test_upstreams_enum_is_a_name_of_the_class(folders: dict[str, Path]) -> None:
    model = load(folders["bert"], model_class=actors.EmbedderModelClass.ENCODER_ONLY_BASE, pooling_method="mean")
    assert (type(model), model.pooling_method) == (actors.FlagModel, "mean")


def test_code_that_transformers_replaces_is_not_needed(folders: dict[str, Path], tmp_path: Path) -> None:
    assert load(with_own_code(folders["bert"], tmp_path / "tuned-bert", "bert")).encode("panda").shape == (32,)


def test_positions(folders: dict[str, Path]) -> None:
    assert max_positions(folders["bert"]) == 512
    assert max_positions(folders["m3"]) == 512  # 514 rows, the first two are not positions
    assert max_positions(folders["mistral"]) is None
    assert complete(EmbedderSpec(model="x"), folders["bert"]).passage_max_length == 512


def test_the_factory_is_no_constructor() -> None:
    with pytest.raises(OSError, match="from_finetuned"):
        FlagAutoModel()
