"""The formulas of the cost against what torch counts: FLOPs exactly, the peak of the activations within a quarter."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, MistralConfig, ModernBertConfig, Qwen3Config, XLMRobertaConfig

from actors.compute.cost import GPU_WORKERS, MEMORY_SHARE, choose_budget, read_shape
from actors.compute.resolve import Compute
from actors.network.backbone import wrap_backbone
from actors.network.rotary_encoder import can_pack
from actors.network.transformers_backbone import PACKABLE, PACKED_ATTENTION, PackedTransformer
from actors.outputs import offsets_of

SIZES: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 3, "intermediate_size": 704, "vocab_size": 100}
CONFIGS = {
    "bert": BertConfig(num_attention_heads=4, max_position_embeddings=64, **SIZES),
    "xlm-roberta": XLMRobertaConfig(num_attention_heads=8, max_position_embeddings=66, pad_token_id=1, **SIZES),
    "modernbert": ModernBertConfig(
        num_attention_heads=4,
        local_attention=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        **SIZES,
    ),
    "qwen3": Qwen3Config(num_attention_heads=4, num_key_value_heads=2, head_dim=128, **SIZES),
    "mistral": MistralConfig(num_attention_heads=4, num_key_value_heads=2, sliding_window=None, **SIZES),
}
LENGTHS = np.array([16] * 30 + [8] * 4)
META = torch.device("meta")


def backbone(kind: str) -> Any:
    config = CONFIGS[kind]
    packed = kind in PACKABLE and not can_pack(config)
    with META:
        options = {"attn_implementation": PACKED_ATTENTION} if packed else {}
        model = AutoModel.from_config(config, dtype=torch.bfloat16, **options).eval()
    return (
        PackedTransformer(model) if packed else wrap_backbone(model, Compute(META, torch.bfloat16, 1, None, False, ()))
    )


def forward(model: Any) -> None:
    ids = torch.zeros(int(LENGTHS.sum()), dtype=torch.int64, device=META)
    model.forward(ids, offsets_of(LENGTHS))


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_flops_are_those_that_torch_counts(kind: str) -> None:
    shape, model = read_shape(CONFIGS[kind]), backbone(kind)
    assert shape is not None
    with FlopCounterMode(display=False) as counter:
        forward(model)
    # nothing of the embedding is a product; a decoder's rotary angles are one of width 1
    expected = shape.product_flops * int(LENGTHS.sum()) + shape.attention_flops(LENGTHS)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: Counter[int] = Counter()
        self.foreign: set[int] = set()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in pytree.tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.alive:
                self.foreign.add(x.untyped_storage()._cdata)
        found = func(*args, **kwargs or {})
        for x in pytree.tree_leaves(found):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.foreign:
                self.add(x, x.untyped_storage()._cdata, x.untyped_storage().nbytes())
        return found

    def add(self, x: torch.Tensor, key: int, size: int) -> None:
        self.bytes += 0 if key in self.alive else size
        self.alive[key] += 1
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(x, self.drop, key, size)

    def drop(self, key: int, size: int) -> None:
        self.alive[key] -= 1
        if not self.alive[key]:
            del self.alive[key]
            self.bytes -= size


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_the_peak_of_the_activations_is_that_of_the_formula(kind: str) -> None:
    shape, model = read_shape(CONFIGS[kind]), backbone(kind)
    assert shape is not None
    with PeakMemory() as memory:
        forward(model)
    measured = memory.peak / int(LENGTHS.sum())
    assert 0.75 * shape.peak_bytes <= measured <= 1.25 * shape.peak_bytes


def test_parameters_are_those_of_the_model() -> None:
    shape = read_shape(CONFIGS["bert"])
    assert shape is not None
    with META:
        model = AutoModel.from_config(CONFIGS["bert"], add_pooling_layer=False)
    assert shape.parameters == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)


def test_heads_cost_what_their_widths_say() -> None:
    plain, headed = read_shape(CONFIGS["bert"]), read_shape(CONFIGS["bert"], {"colbert": 64, "sparse": 100})
    assert plain is not None
    assert headed is not None
    assert headed.product_flops - plain.product_flops == 2 * 256 * (64 + 256 + 100)


def test_local_attention_sees_its_window_only() -> None:
    shape = read_shape(CONFIGS["modernbert"])
    assert shape is not None
    assert shape.local_layers == 2
    long, short = (shape.attention_flops(np.array([n])) for n in (1000, 100))
    assert long < 50 * short, "ten times the length, and a third of the layers sees all of it"


def test_an_unknown_architecture_has_no_formula() -> None:
    assert read_shape(AutoModel.from_config(BertConfig(**SIZES, num_attention_heads=4)).config) is not None
    assert read_shape(type("Config", (), {"model_type": "mamba"})()) is None


@pytest.mark.parametrize("gib", [2, 6, 16, 80])
def test_the_budget_follows_from_free_memory(gib: int) -> None:
    shape = read_shape(XLMRobertaConfig(
        vocab_size=250002, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ))  # fmt: skip
    assert shape is not None
    free = gib * 2**30
    budget, why = choose_budget(shape, 1024, free)
    needed = 2 * shape.parameters + GPU_WORKERS * budget * shape.peak_bytes
    assert needed <= MEMORY_SHARE * free or budget == 4096
    assert budget == 65536 or 2 * needed > MEMORY_SHARE * free
    assert ("free memory" in why) == (budget < 65536)
