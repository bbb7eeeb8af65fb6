"""Loads a SPLADE checkpoint: the encoder for the packed forward, and its language-model head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import AutoConfig, AutoModelForMaskedLM

from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import load_tensors
from actors.checkpoints.module_chain import ModuleChain, module_weights
from actors.compute.resolve import Compute
from actors.network.backbone import Backbone, load_pretrained, wrap_backbone
from actors.network.splade import SpladeHead, read_head
from actors.spec import EmbedderSpec
from actors.text.tokenizer import TextTokenizer

SATURATIONS = {"relu": 1, "log1p_relu": 2}


def load_splade(folder: Path, compute: Compute, chain: ModuleChain, spec: EmbedderSpec) -> tuple[Backbone, SpladeHead]:
    """Loads encoder and head of a checkpoint with a language-model head. CheckpointError names what is unknown."""
    pooling = chain.modules[0] if chain.modules else None
    options = {} if pooling is None else pooling.config
    strategy, activation = options.get("pooling_strategy", "max"), options.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in SATURATIONS:
        raise CheckpointError(f"{folder}: SpladePooling by {strategy} of {activation} is not known")
    config = AutoConfig.from_pretrained(folder)
    model = load_pretrained(AutoModelForMaskedLM, folder, compute, config)
    head = read_head(model)
    found = SpladeHead(
        head.transform, head.weight, head.bias, strategy, SATURATIONS[activation], spec.max_active_dims,
        spec.sparse_threshold or 0.0,
    )  # fmt: skip
    return wrap_backbone(model.base_model, compute), found


def read_query_table(folder: Path, tokenizer: TextTokenizer) -> npt.NDArray[np.float32]:
    """Reads (V,) weights of an inference-free query: the folder's `weight`, or the tokens of its idf.json."""
    named = (read_json(folder / "config.json") or {}).get("path")
    table = read_json(folder / (Path(str(named)).name if named else "idf.json"))
    if table is None:
        tensors = load_tensors(module_weights(folder))
        if "weight" not in tensors:
            raise CheckpointError(f"{folder}: the query table lacks `weight`")
        weight: npt.NDArray[np.float32] = tensors["weight"].float().numpy()
    else:
        weight = np.zeros(tokenizer.vocab_size, np.float32)
        unknown = tokenizer.named.get("unk_token")
        for token, value in table.items():
            place = tokenizer.backend.token_to_id(token)
            place = unknown if place is None else place
            if place is None:
                raise CheckpointError(f"{folder}: the query table weighs {token!r}, which the tokenizer lacks")
            weight[place] = value
    if len(weight) < tokenizer.vocab_size:
        raise CheckpointError(
            f"{folder}: the query table weighs {len(weight)} tokens, its tokenizer has {tokenizer.vocab_size}"
        )
    return weight
