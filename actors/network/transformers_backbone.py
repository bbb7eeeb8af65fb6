"""Runs any transformers model as a backbone: packed if its attention can be replaced, else padded.

transformers lets a model's attention function be chosen by name. Ours receives all texts as one row of length T with
positions that restart, and the places where each text starts; so every architecture in `PACKABLE` runs unpadded with
its own code for norms, rotary positions and gates. Others (remote code, relative position biases) are padded, which
costs the padding share of each batch.
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from actors.network.attention import AttentionOptions, Counts, Segments, attend
from actors.outputs import IntArray, ranges
from actors.transfers import to_device

PACKED_ATTENTION = "tridex_packed"
PACKABLE = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "modernbert"})
"""Architectures whose packed forward the tests compare with the padded one."""


UNLIMITED = 2**31
"""Positions of a model with relative positions alone."""


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *,
    segments: Segments, scaling: float | None = None, sliding_window: int | None = None,
    softcap: float | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Implements transformers' attention signature: query (1, H, T, d) in, (1, T, H, d) out."""
    causal = bool(module.is_causal) and getattr(module.config, "is_causal", True)
    options = AttentionOptions(query.shape[-1] ** -0.5 if scaling is None else scaling, causal, sliding_window, softcap)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(query, key, value, segments, options)[None], None


# No mask function of that name: transformers then makes none, and does not read the positions back to look for packing.
AttentionInterface.register(PACKED_ATTENTION, _packed_attention)


class _Wrapped:
    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config: PretrainedConfig = model.config
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self.words: Tensor = model.get_input_embeddings().weight
        self.max_positions: int = getattr(model.config, "max_position_embeddings", None) or UNLIMITED
        self.device: torch.device = model.device
        self.takes_domain = "domain" in signature(model.forward).parameters

    def _check(self, segments: Segments) -> None:
        if segments.longest > self.max_positions:
            raise ValueError(f"a text has {segments.longest} tokens, the model takes {self.max_positions}")


class PackedTransformer(_Wrapped):
    """Runs a model that was loaded with `attn_implementation=PACKED_ATTENTION`."""

    @torch.inference_mode()
    def forward(self, ids: Tensor, offsets: IntArray, *, attended: Counts | None = None) -> Tensor:
        """Computes last hidden states (T, h), final norm applied. ids: int64 (T,); offsets: int64 (n + 1,), host.

        attended: see `Segments`.
        """
        segments = Segments(offsets, ids.device, attended)
        self._check(segments)
        if not len(ids):
            return torch.empty(0, self.hidden_size, dtype=self.model.dtype, device=ids.device)
        starts = torch.repeat_interleave(segments.cumulative[:-1], segments.cumulative.diff(), output_size=len(ids))
        places = torch.arange(len(ids), device=ids.device) - starts
        out = self.model(ids[None], position_ids=places[None], segments=segments, **_no_cache(self.config))
        hidden: Tensor = out.last_hidden_state[0]
        return hidden


class PaddedTransformer(_Wrapped):
    """Runs a right-padded forward through the model's own code, for what cannot be packed."""

    padded = True
    """Computes every text of a pass at the length of the longest."""

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, offsets: IntArray, *, attended: Counts | None = None, domain: str | None = None
    ) -> Tensor:
        """Computes last hidden states (T, h), padding removed. ids: int64 (T,); offsets: int64 (n + 1,), host.

        domain: an argument of that name goes to models whose forward has it (FlagEmbedding's pseudo MoE).
        """
        segments = Segments(offsets, ids.device)
        self._check(segments)
        if not len(ids):
            return torch.empty(0, self.hidden_size, dtype=self.model.dtype, device=ids.device)
        lengths = np.diff(offsets)
        places = ranges(np.arange(len(lengths)) * segments.longest, lengths)
        where = to_device(places, ids.device)
        shape = (len(lengths), segments.longest)
        padded = ids.new_full(shape, self.config.pad_token_id or 0)
        padded.view(-1)[where] = ids
        seen = np.arange(segments.longest) < (lengths if attended is None else attended)[:, None]
        mask = to_device(seen.astype(np.int64), ids.device)
        routed = {} if domain is None or not self.takes_domain else {"domain": domain}
        out = self.model(padded, attention_mask=mask, **_no_cache(self.config), **routed)
        hidden: Tensor = out.last_hidden_state.flatten(0, 1)[where]
        return hidden


def _no_cache(config: PretrainedConfig) -> dict[str, bool]:
    return {"use_cache": False} if getattr(config, "use_cache", None) is not None else {}
