"""Times sentence-transformers chains against the library itself: ModernBERT, Nomic and SPLADE shapes in bf16.

    python benchmarks/chains_peer.py [--shape modernbert|nomic|gte|splade ...] [--layers 4] [--texts 64] [--rounds 3]

Both run in one process on one thread, alternating, and the best round of each counts, in CPU seconds of the process, so
that what else the machine does matters little. sentence-transformers must be importable beside tridex. The weights are
random: speed does not depend on them, nor the ratio on the number of equal layers. Texts are of 20 to 250 words, which
is what a passage collection looks like; sentence-transformers sorts them by length and takes 32 at a time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    GteConfig,
    ModernBertConfig,
    NomicBertConfig,
    PreTrainedTokenizerFast,
)

from actors import ComputeSpec, EmbedderSpec, load_embedder

VOCABULARY = 30522
SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
            "mask_token": "[MASK]"}  # fmt: skip


def configs(layers: int) -> dict[str, Any]:
    sizes = {"vocab_size": VOCABULARY, "num_hidden_layers": layers}
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    return {
        "modernbert": ModernBertConfig(**{**sizes, "vocab_size": 50368}, **ids),
        "nomic": NomicBertConfig(**sizes),
        "gte": GteConfig(**sizes, pad_token_id=0),
        "splade": BertConfig(**sizes),
    }


def write_checkpoint(shape: str, layers: int, folder: Path) -> None:
    """A folder as sentence-transformers stores it, with random weights and a word-level tokenizer."""
    config = configs(layers)[shape]
    auto = AutoModelForMaskedLM if shape == "splade" else AutoModel
    auto.from_config(config).save_pretrained(folder)
    words = [*SPECIALS.values(), *(f"w{i}" for i in range(VOCABULARY - len(SPECIALS)))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))]
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIALS).save_pretrained(folder)
    room = "sentence_transformers"
    modules = ["models.Transformer", "models.Pooling"]
    family, pooling = "SentenceTransformer", {"embedding_dimension": 768, "pooling_mode": "mean"}
    if shape == "splade":
        modules = ["sparse_encoder.models.MLMTransformer", "sparse_encoder.models.SpladePooling"]
        family, pooling = "SparseEncoder", {"pooling_strategy": "max", "activation_function": "relu"}
    paths = ["", f"1_{modules[1].rsplit('.', 1)[-1]}"]
    listed = [{"idx": i, "name": str(i), "path": paths[i], "type": f"{room}.{m}"} for i, m in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / paths[1]).mkdir()
    (folder / paths[1] / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": family}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(7)
    return [" ".join(f"w{i}" for i in rng.integers(0, 20_000, rng.integers(20, 250))) for _ in range(count)]


def load_peer(shape: str, folder: Path) -> Callable[[list[str]], Any]:
    from sentence_transformers import SentenceTransformer, SparseEncoder

    options = {"device": "cpu", "model_kwargs": {"dtype": torch.bfloat16}}
    model: Any = (SparseEncoder if shape == "splade" else SentenceTransformer)(str(folder), **options)
    return lambda items: model.encode_document(items, batch_size=32, convert_to_tensor=True)


def load_ours(folder: Path) -> Callable[[list[str]], Any]:
    compute = ComputeSpec(dtype="bf16", device="cpu", threads=1)
    return load_embedder(EmbedderSpec(model=str(folder), compute=compute)).embed_corpus


def seconds(run: Callable[[list[str]], Any], items: list[str]) -> float:
    start = time.process_time()
    run(items)
    return time.process_time() - start


def measure(shape: str, layers: int, count: int, rounds: int) -> None:
    items = texts(count)
    with tempfile.TemporaryDirectory() as made:
        write_checkpoint(shape, layers, Path(made))
        runs = {"tridex": load_ours(Path(made)), "sentence-transformers": load_peer(shape, Path(made))}
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(rounds + 1):  # the first round compiles kernels and counts only if it is the best
            for name, run in runs.items():
                best[name] = min(best[name], seconds(run, items))
    tokens = sum(len(text.split()) + 2 for text in items)
    ours, peer = best["tridex"], best["sentence-transformers"]
    print(f"{shape}: {layers} layers, {tokens} tokens: tridex {tokens / ours:.0f} tokens/s, "
          f"sentence-transformers {tokens / peer:.0f}, ratio {peer / ours:.2f}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="*", default=["modernbert", "nomic", "gte", "splade"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for shape in given.shape:
        measure(shape, given.layers, given.texts, given.rounds)


if __name__ == "__main__":
    main()
