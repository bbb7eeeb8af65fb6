"""Loads cross-encoders as sentence-transformers runs them: classification heads, and logits of a language model.

BERT and XLM-RoBERTa run on the packed first-token encoder, ModernBERT and decoders on their packed forwards, everything
else padded through transformers. Of a language model's head only the rows of the two answers are kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from actors.checkpoints.files import CheckpointError
from actors.checkpoints.loading import check_weights
from actors.compute.resolve import Compute, resolve_compute
from actors.models.catalogue import max_positions
from actors.network.backbone import Backbone, load_pretrained
from actors.network.rotary_encoder import RotaryEncoder, can_pack
from actors.network.transformers_backbone import PACKABLE, PACKED_ATTENTION, PackedTransformer
from actors.outputs import IntArray
from actors.rerankers.cross_encoder import CrossEncoder, Logits, load_cross_encoder
from actors.rerankers.engine import Joiner, Reranker, RerankOptions
from actors.rerankers.library_folder import CrossEncoderFolder, default_length, describe_pipeline
from actors.rerankers.library_pairs import ChatPair, LongestFirst, PromptedText
from actors.rerankers.llm import TokenLogit, load_token_logit
from actors.rerankers.loading import Checkpoint
from actors.rerankers.pairs import Layout, PairBatch, encoder_layout
from actors.text.tokenizer import read_library_tokenizer

QWEN3_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
QWEN3_TAIL = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3_LENGTH = 8192
"""Prompt, instruction and length of Qwen3-Reranker's model card."""


@dataclass(frozen=True, slots=True)
class Activated:
    """Applies an elementwise activation to another scorer's logits."""

    scorer: CrossEncoder | TokenLogit
    activation: Callable[[Tensor], Tensor]

    @property
    def compute(self) -> Compute:
        return self.scorer.compute

    @property
    def cutoffs(self) -> range:
        return range(0)

    def layout(self, options: RerankOptions) -> Layout:
        return self.scorer.layout(options)

    def outputs(self, options: RerankOptions) -> int:
        return 1

    def score(self, batch: PairBatch, layout: Layout, options: RerankOptions) -> Tensor:
        return self.activation(self.scorer.score(batch, layout, options))


def load_library_reranker(found: CrossEncoderFolder, checkpoint: Checkpoint, changes: dict[str, Any]) -> Reranker:
    """Loads a folder as sentence-transformers would run it; `changes` are options of the call, which win."""
    tokenizer = read_library_tokenizer(found.folder, found.tokenizer_options, found.lower_case)
    checkpoint = replace(checkpoint, folder=found.folder, tokenizer=tokenizer)
    check_weights(found.folder)
    scorer: CrossEncoder | TokenLogit
    scorer = _classifier(checkpoint) if found.logits is None else load_token_logit(checkpoint, *found.logits)
    options = RerankOptions(
        max_length=default_length(found.folder, found.max_length, tokenizer.max_length),
        normalize=found.activation == "Sigmoid",
        query_instruction_for_rerank=None if found.messages else found.prompt or None,
    )
    activation = None if found.activation in ("Sigmoid", "Identity") else getattr(torch.nn, found.activation)()
    wrapped = scorer if activation is None else Activated(scorer, activation)
    joiner = _joiner(found, checkpoint, scorer)
    return Reranker(checkpoint, wrapped, options.changed(changes), joiner, describe_pipeline(found))


def _joiner(found: CrossEncoderFolder, checkpoint: Checkpoint, scorer: CrossEncoder | TokenLogit) -> Joiner:
    tokenizer = checkpoint.tokenizer
    if found.messages is not None:
        wrapper = AutoTokenizer.from_pretrained(found.folder)
        return ChatPair(tokenizer, wrapper, found.messages, found.prompt)
    layout = scorer.frame if isinstance(scorer, CrossEncoder) else encoder_layout(tokenizer, None, False)
    return LongestFirst(tokenizer, layout)


def _classifier(checkpoint: Checkpoint) -> CrossEncoder:
    """Loads a sequence classifier: packed where its backbone is, else as `load_cross_encoder` does."""
    config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=checkpoint.trust_remote_code)
    packed_decoder = config.model_type in PACKABLE and not can_pack(config)
    is_modernbert = config.model_type == "modernbert" and can_pack(config)
    if config.num_labels != 1 or not (packed_decoder or is_modernbert):
        return load_cross_encoder(checkpoint)
    compute = resolve_compute(checkpoint.compute, config)
    options = {"attn_implementation": PACKED_ATTENTION} if packed_decoder else {}
    model = load_pretrained(AutoModelForSequenceClassification, checkpoint.folder, compute, config, **options)
    layout = encoder_layout(checkpoint.tokenizer, None if packed_decoder else max_positions(checkpoint.folder), False)
    return CrossEncoder(compute, layout, _last_token(model) if packed_decoder else _modernbert(model, compute))


def _last_token(model: Any) -> Logits:
    """Returns the logit of a decoder's classifier, which reads the last token."""
    backbone = PackedTransformer(model.base_model)
    backbone.max_positions = sys.maxsize

    def logits(ids: Tensor, offsets: IntArray, types: Tensor | None) -> Tensor:
        last = torch.from_numpy(offsets[1:] - 1).to(ids.device)
        scored: Tensor = model.score(backbone.forward(ids, offsets)[last])
        return scored

    return logits


def _modernbert(model: Any, compute: Compute) -> Logits:
    """Returns the logit of ModernBERT's classifier: first token or mean, dense and norm, classifier."""
    backbone: Backbone = RotaryEncoder(model.base_model)
    head, classifier = model.head.float(), model.classifier.float()
    mean = model.config.classifier_pooling == "mean"

    def logits(ids: Tensor, offsets: IntArray, types: Tensor | None) -> Tensor:
        hidden = backbone.forward(ids, offsets).float()
        if mean:
            lengths = torch.from_numpy(np.diff(offsets)).to(hidden.device)
            pooled = torch.segment_reduce(hidden, "mean", lengths=lengths)
        else:
            pooled = hidden[torch.from_numpy(offsets[:-1]).to(hidden.device)]
        scored: Tensor = classifier(head(pooled))
        return scored

    return logits


def load_qwen3_reranker(checkpoint: Checkpoint, changes: dict[str, Any]) -> Reranker:
    """Loads a Qwen3-Reranker as its model card runs it: the probability of yes against no after its own prompt.

    The instruction is `query_instruction_for_rerank`; its format is the card's.
    """
    tokenizer = checkpoint.tokenizer
    yes, no = (tokenizer.backend.token_to_id(word) for word in ("yes", "no"))
    if yes is None or no is None:
        raise CheckpointError(f"{checkpoint.folder}: the tokenizer has no tokens 'yes' and 'no', as Qwen3-Reranker has")
    head, tail = tokenizer.ids([QWEN3_HEAD, QWEN3_TAIL])
    scorer = load_token_logit(checkpoint, yes, no)
    defaults = RerankOptions(max_length=QWEN3_LENGTH, normalize=True, query_instruction_format="{}\n<Query>: {}")
    options = defaults.changed({"query_instruction_for_rerank": QWEN3_INSTRUCTION, **changes})
    joiner = PromptedText(tokenizer, tuple(head), tuple(tail), _qwen3_text)
    return Reranker(checkpoint, scorer, options, joiner, "qwen3-reranker")


def _qwen3_text(query: str, passage: str) -> str:
    return f"<Instruct>: {query}\n<Document>: {passage}"
