"""Implements decoder rerankers: the score is the logit of 'Yes' after the pair and the prompt.

Of the LM head only the row of 'Yes' is kept, so a pass costs no product with the vocabulary. Any causal model that
transformers loads can be used; the architectures that `actors.network.backbone` packs run unpadded.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from actors.compute.resolve import Compute, resolve_compute
from actors.network.backbone import Backbone, load_pretrained
from actors.network.transformers_backbone import PACKABLE, PACKED_ATTENTION, PackedTransformer, PaddedTransformer
from actors.rerankers.adapters import merge_lora
from actors.rerankers.engine import RerankOptions, Scorer
from actors.rerankers.flag_embedding import DecoderCompat
from actors.rerankers.loading import Checkpoint
from actors.rerankers.pairs import Layout, PairBatch, prompt_layout
from actors.text.tokenizer import TextTokenizer
from actors.transfers import to_device

PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


@dataclass(frozen=True, slots=True)
class TokenLogit:
    """Scores by the row of 'Yes' in the LM head, less the row of 'no' if there is one.

    yes, no: float32 (h,); softcap: Gemma2's limit on a logit.
    """

    compute: Compute
    tokenizer: TextTokenizer
    backbone: Backbone
    yes: Tensor
    softcap: float | None
    positions: int | None
    no: Tensor | None = None

    @property
    def cutoffs(self) -> range:
        return range(0)

    def layout(self, options: RerankOptions) -> Layout:
        named = self.tokenizer.named
        bos = named.get("bos_token")
        bos = None if bos == named.get("pad_token") else bos
        return prompt_layout(self.tokenizer, bos, PROMPT if options.prompt is None else options.prompt, self.positions)

    def outputs(self, options: RerankOptions) -> int:
        return 1

    @torch.inference_mode()
    def score(self, batch: PairBatch, layout: Layout, options: RerankOptions) -> Tensor:
        offsets = batch.tokens.offsets
        ids = to_device(batch.tokens.ids.astype(np.int64), self.compute.device)
        last = self.backbone.forward(ids, offsets)[to_device(offsets[1:] - 1, ids.device)]
        logits = softcapped(last.float() @ self.yes, self.softcap)
        if self.no is not None:
            logits = logits - softcapped(last.float() @ self.no, self.softcap)
        return logits[:, None]


def softcapped(logits: Tensor, cap: float | None) -> Tensor:
    return logits if cap is None else cap * torch.tanh(logits / cap)


def yes_id(tokenizer: TextTokenizer) -> int:
    """Returns the first token of 'Yes' on its own: with a SentencePiece prefix space this may be the space."""
    return tokenizer.ids(["Yes"])[0][0]


def load_token_logit(checkpoint: Checkpoint, yes: int, no: int | None = None) -> TokenLogit:
    """Loads a causal model with the rows of one or two tokens of its LM head."""
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    compute = resolve_compute(checkpoint.compute, config)
    packed = config.model_type in PACKABLE
    options = {"attn_implementation": PACKED_ATTENTION} if packed else {}
    model = load_pretrained(
        AutoModelForCausalLM, checkpoint.folder, compute, config,
        trust_remote_code=checkpoint.trust_remote_code, **options,
    )  # fmt: skip
    if checkpoint.adapter is not None:
        merge_lora(dict(model.named_parameters()), checkpoint.adapter)
    rows = [None if i is None else model.get_output_embeddings().weight[i].float().clone() for i in (yes, no)]
    assert rows[0] is not None
    backbone, positions = _unwrap_backbone(model, packed)
    return TokenLogit(compute, checkpoint.tokenizer, backbone, rows[0], _softcap(config), positions, rows[1])


def _unwrap_backbone(model: PreTrainedModel, packed: bool) -> tuple[Backbone, int | None]:
    """Returns the decoder without its LM head, and its longest row (rotary positions set no limit)."""
    if not packed:
        padded = PaddedTransformer(model.base_model)
        return padded, padded.max_positions
    backbone = PackedTransformer(model.base_model)
    backbone.max_positions = sys.maxsize
    return backbone, None


def _softcap(config: PretrainedConfig) -> float | None:
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    return cap


@dataclass
class FlagLLMReranker(DecoderCompat):
    """Implements FlagEmbedding's `FlagLLMReranker`: causal language models such as bge-reranker-v2-gemma.

    Arguments and defaults are upstream's. `compute_score` returns a list of floats, always.
    """

    prompt: str | None = None
    batch_size: int = 128
    query_max_length: int | None = None
    max_length: int = 512
    normalize: bool = False

    auto_class: ClassVar[str | None] = "AutoModelForCausalLM"

    @staticmethod
    def load(checkpoint: Checkpoint) -> Scorer:
        return load_token_logit(checkpoint, yes_id(checkpoint.tokenizer))
