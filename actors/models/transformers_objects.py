"""Loads transformers' own objects, which FlagEmbedding keeps as `model.tokenizer` and `model.model`.

Nothing here takes part in encoding, which has its own tokenizer and its own forward pass. Callers that reach through a
model find what they expect: `model.tokenizer(texts)["input_ids"]`, `model.model.config.hidden_size`,
`model.model.colbert_linear.out_features`. A module is loaded when it is first requested, and its weights stay mapped as
far as transformers maps them; what is changed in it changes no result of `encode`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from actors.checkpoints.files import read_json
from actors.checkpoints.loading import Linear, load_head
from actors.checkpoints.quiet import quiet_transformers
from actors.text.tokenizer import read_transformers_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_transformers_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Reads a checkpoint's tokenizer as transformers does, with the ids that encoding uses.

    It gives token types to models that have several, as upstream's do.
    """
    tokenizer = read_transformers_tokenizer(folder, trust_remote_code)
    config = read_json(folder / "config.json") or {}
    if config.get("type_vocab_size", 1) > 1:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def load_module(auto: str, folder: Path, device: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """Loads a checkpoint by one of transformers' Auto classes, such as "AutoModel", in float32 and in eval mode."""
    import transformers

    with quiet_transformers():
        loaded: PreTrainedModel = getattr(transformers, auto).from_pretrained(
            folder, trust_remote_code=trust_remote_code, dtype=torch.float32
        )
    return loaded.eval().requires_grad_(False).to(device)


class M3Module(nn.Module):
    """Holds an M3 model's parts under upstream's names: `model`, `colbert_linear`, `sparse_linear`."""

    def __init__(self, model: PreTrainedModel, head_folder: Path, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.vocab_size: int = model.config.vocab_size
        self.pooling_method, self.normalize_embeddings = pooling, normalize
        hidden = model.config.hidden_size
        colbert, sparse = load_head(head_folder, "colbert_linear"), load_head(head_folder, "sparse_linear")
        self.colbert_linear = _as_layer(colbert or Linear(torch.eye(hidden), torch.zeros(hidden)), model.device)
        self.sparse_linear = None if sparse is None else _as_layer(sparse, model.device)

    def forward(self, text_input: dict[str, Any]) -> torch.Tensor:
        """Computes the last hidden states (n, tokens, h) of a tokenised batch."""
        states: torch.Tensor = self.model(**text_input).last_hidden_state
        return states


def _as_layer(head: Linear, device: torch.device) -> nn.Linear:
    layer = nn.Linear(head.weight.shape[1], head.weight.shape[0], device="meta")
    layer.weight, layer.bias = nn.Parameter(head.weight), nn.Parameter(head.bias)
    return layer.requires_grad_(False).to(device)
