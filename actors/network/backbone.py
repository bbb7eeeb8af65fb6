"""Loads the encoder or decoder under every head: packed tokens in, last hidden states out.

`load_backbone` picks the fastest forward that is exact for the checkpoint's architecture: our own for BERT and
XLM-RoBERTa, transformers' modules with packed attention for the decoders and ModernBERT, a padded forward for the
rest. All three have one method, `forward(ids, offsets)`, and give the same numbers for a text whatever its neighbours.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from actors.checkpoints.files import CheckpointError, read_json
from actors.checkpoints.loading import aligned
from actors.compute.resolve import Compute, HasHiddenSize
from actors.models.catalogue import ENCODERS
from actors.network.attention import Counts
from actors.network.encoder_checkpoint import EncoderWeights, load_encoder_weights, read_encoder_config
from actors.network.packed_encoder import PackedEncoder
from actors.outputs import IntArray

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

ENCODER_DECODERS = frozenset({"t5", "mt5", "umt5", "longt5"})
"""Of these the encoder alone is loaded."""


class Backbone(Protocol):
    hidden_size: int
    vocab_size: int
    max_positions: int
    """Longest text in tokens, special tokens included."""
    words: Tensor
    """(vocab_size, h): the input embedding of every token."""
    device: torch.device

    def forward(self, ids: Tensor, offsets: IntArray, *, attended: Counts | None = None) -> Tensor:
        """Maps int64 ids (T,) on `device` and host offsets (n + 1,) to last hidden states (T, h), final norm applied.

        attended: the number of leading tokens of each text that attention sees; None: all.
        Raises ValueError for an empty text and for one longer than `max_positions`.
        """


def read_model_config(folder: Path, trust_remote_code: bool = False) -> HasHiddenSize:
    """Returns a checkpoint's configuration: our own reading for plain BERT and XLM-RoBERTa, else transformers'.

    Raises CheckpointError for weights that are stored quantised.
    """
    refuse_quantised(folder)
    return read_encoder_config(folder) or read_transformers_config(folder, trust_remote_code)


def refuse_quantised(folder: Path) -> None:
    """Raises CheckpointError, with the method's name, if config.json states that the weights are stored quantised."""
    stored = (read_json(folder / "config.json") or {}).get("quantization_config")
    if stored:
        raise CheckpointError(
            f"{folder}: its weights are stored quantised ({stored.get('quant_method', 'no method named')}), which "
            "tridex does not load; take the checkpoint that they were made from"
        )


def read_transformers_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Returns a checkpoint's configuration as transformers reads it."""
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return config


def load_backbone(folder: Path, compute: Compute, *, trust_remote_code: bool = False) -> Backbone:
    """Loads the base model of a checkpoint folder, without heads and poolers.

    Raises ValueError, with the names, where the folder lacks weights that the architecture needs.
    """
    if compute.threads is not None:
        torch.set_num_threads(compute.threads)
    encoder = read_encoder_config(folder)
    weights = None if encoder is None else load_encoder_weights(folder, encoder, compute)
    if weights is not None:
        return wrap_encoder(weights, compute)
    return load_transformers_backbone(folder, compute, trust_remote_code=trust_remote_code)


def load_transformers_backbone(folder: Path, compute: Compute, *, trust_remote_code: bool = False) -> Backbone:
    """Returns the base model of a checkpoint folder as transformers loads it, under the fastest exact forward."""
    from transformers import AutoModel, AutoModelForTextEncoding

    from actors.network.rotary_encoder import can_pack
    from actors.network.transformers_backbone import PACKABLE, PACKED_ATTENTION, PackedTransformer, PaddedTransformer

    config = read_transformers_config(folder, trust_remote_code)
    if trust_remote_code and "AutoModel" in (getattr(config, "auto_map", None) or {}):
        if compute.int8:
            raise ValueError(f"compute.dtype int8: {folder} runs code of its own, which has no int8 products")
        return PaddedTransformer(load_pretrained(AutoModel, folder, compute, config, trust_remote_code=True))
    if config.model_type in PACKABLE and not can_pack(config):
        return PackedTransformer(
            load_pretrained(AutoModel, folder, compute, config, attn_implementation=PACKED_ATTENTION)
        )
    auto = AutoModelForTextEncoding if config.model_type in ENCODER_DECODERS else AutoModel
    options = {"add_pooling_layer": False} if config.model_type in ENCODERS else {}
    return wrap_backbone(load_pretrained(auto, folder, compute, config, **options), compute)


def wrap_backbone(model: PreTrainedModel, compute: Compute) -> Backbone:
    """Wraps a loaded base model in the fastest exact forward: packed if one exists, else padded."""
    from actors.network.rotary_encoder import RotaryEncoder, can_pack
    from actors.network.transformers_backbone import PaddedTransformer

    if model.config.model_type in ENCODERS:
        return wrap_encoder(model, compute)
    if can_pack(model.config):
        return RotaryEncoder(model)
    return PaddedTransformer(model)


def wrap_encoder(model: PreTrainedModel | EncoderWeights, compute: Compute) -> PackedEncoder:
    """Wraps a loaded BERT or XLM-RoBERTa: in int8 its weights are quantised here, else used as they are."""
    if not compute.int8:
        return PackedEncoder(model, compute.compile)
    from actors.network.int8_encoder import Int8Encoder

    return Int8Encoder(model)


def load_pretrained(
    auto: Any, folder: Path, compute: Compute, config: PretrainedConfig, **options: Any
) -> PreTrainedModel:
    """Loads a folder by one of transformers' Auto classes; ValueError names the missing weights."""
    refuse_quantised(folder)
    from actors.checkpoints.quiet import quiet_transformers  # imports transformers

    with quiet_transformers():
        model, report = auto.from_pretrained(
            folder, config=config, dtype=compute.rounding or compute.dtype, output_loading_info=True, **options
        )
    wrong = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{folder}: weights missing or of another shape: {', '.join(wrong[:5])} ({len(wrong)} in all)")
    model = model.eval().requires_grad_(False).to(compute.device, compute.dtype)
    _align_parameters(model)
    return model


def _align_parameters(model: nn.Module) -> None:
    """Copies mapped parameters to aligned addresses; embeddings stay mapped, because their rows are only looked up."""
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            for parameter in module.parameters(recurse=False):
                parameter.data = aligned(parameter.data)
