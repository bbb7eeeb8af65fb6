"""The packed forward against transformers' own padded one, on tiny random checkpoints of each architecture."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from actors.compute.resolve import resolve_compute
from actors.network.backbone import Backbone, load_backbone
from actors.network.first_token_encoder import FirstTokenEncoder
from actors.network.packed_encoder import PackedEncoder
from actors.network.rotary_encoder import RotaryEncoder
from actors.network.transformers_backbone import PackedTransformer, PaddedTransformer
from actors.outputs import IntArray, offsets_of
from actors.spec import ComputeSpec, DType

SHAPE = {
    "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
DECODER = SHAPE | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "bert": BertConfig(**SHAPE | {"pad_token_id": 0}, max_position_embeddings=128),
    "roberta": RobertaConfig(**SHAPE, max_position_embeddings=130),
    "xlm-roberta": XLMRobertaConfig(**SHAPE, max_position_embeddings=130, type_vocab_size=1),
    "bert-relu": BertConfig(**SHAPE, max_position_embeddings=128, hidden_act="relu"),
    "llama": LlamaConfig(**DECODER),
    "mistral": MistralConfig(**DECODER, sliding_window=16),
    "qwen2": Qwen2Config(**DECODER, use_sliding_window=True, sliding_window=16, layer_types=SLIDING),
    "qwen2-bidirectional": Qwen2Config(**DECODER, is_causal=False),
    "qwen3": Qwen3Config(**DECODER),
    "gemma": GemmaConfig(**DECODER),
    "gemma2": Gemma2Config(**DECODER, sliding_window=16, query_pre_attn_scalar=17, layer_types=SLIDING),
    "modernbert": ModernBertConfig(
        **SHAPE, cls_token_id=0, sep_token_id=2, max_position_embeddings=256, local_attention=16, layer_types=SLIDING
    ),
    "mpnet": MPNetConfig(**SHAPE, max_position_embeddings=130),
}
LENGTHS = np.array([61, 40, 40, 7, 7, 7, 3, 1])


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        AutoModel.from_config(config).save_pretrained(made[name])
    return made


def backbone_of(folder: Path, dtype: DType = "fp32") -> Backbone:
    return load_backbone(folder, resolve_compute(ComputeSpec(dtype=dtype, device="cpu"), BertConfig()))


def texts() -> tuple[torch.Tensor, IntArray]:
    ids = torch.randint(3, 200, (int(LENGTHS.sum()),), generator=torch.Generator().manual_seed(1))
    return ids, offsets_of(LENGTHS)


@torch.inference_mode()
def reference(folder: Path, ids: torch.Tensor, offsets: IntArray) -> torch.Tensor:
    """One right-padded batch through transformers' eager attention, padding removed."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    padded = torch.nn.utils.rnn.pad_sequence(
        [ids[a:b] for a, b in pairwise(offsets)], batch_first=True, padding_value=1
    )
    mask = torch.arange(padded.shape[1]) < torch.from_numpy(np.diff(offsets))[:, None]
    return model(padded, attention_mask=mask.long()).last_hidden_state[mask]


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_hidden_states_are_those_of_the_padded_model(folders: dict[str, Path], name: str) -> None:
    ids, offsets = texts()
    hidden = backbone_of(folders[name]).forward(ids, offsets)
    torch.testing.assert_close(hidden, reference(folders[name], ids, offsets), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_text_gets_the_same_vectors_alone_and_in_company(folders: dict[str, Path], name: str) -> None:
    ids, offsets = texts()
    backbone = backbone_of(folders[name])
    together = backbone.forward(ids, offsets)
    for start, stop in pairwise(offsets):
        alone = backbone.forward(ids[start:stop], np.array([0, stop - start]))
        torch.testing.assert_close(alone, together[start:stop], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_stays_close(folders: dict[str, Path], name: str) -> None:
    ids, offsets = texts()
    exact = backbone_of(folders[name]).forward(ids, offsets)
    half = backbone_of(folders[name], "bf16").forward(ids, offsets).float()
    assert torch.cosine_similarity(exact, half).mean() > 0.998


def test_the_fast_forwards_are_taken_where_they_exist(folders: dict[str, Path]) -> None:
    kinds = {name: type(backbone_of(folder)) for name, folder in folders.items()}
    assert {kinds[name] for name in ("bert", "roberta", "xlm-roberta", "bert-relu")} == {PackedEncoder}
    assert {kinds[name] for name in ("llama", "mistral", "qwen3", "gemma2")} == {PackedTransformer}
    assert kinds["modernbert"] is RotaryEncoder
    assert kinds["mpnet"] is PaddedTransformer
    assert PaddedTransformer.padded, "metrics count padding by it"


def test_a_literal_pad_token_keeps_transformers_positions(folders: dict[str, Path]) -> None:
    ids, offsets = torch.tensor([0, 5, 1, 9, 2]), np.array([0, 5])
    model = AutoModel.from_pretrained(folders["xlm-roberta"], attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(ids[None], attention_mask=torch.ones(1, 5)).last_hidden_state[0]
    torch.testing.assert_close(backbone_of(folders["xlm-roberta"]).forward(ids, offsets), expected, atol=1e-5, rtol=0)


def test_token_types_reach_bert(folders: dict[str, Path]) -> None:
    ids, offsets = torch.tensor([0, 5, 2, 9, 2]), np.array([0, 5])
    kinds = torch.tensor([0, 0, 0, 1, 1])
    model = AutoModel.from_pretrained(folders["bert"], attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(ids[None], token_type_ids=kinds[None]).last_hidden_state[0]
    backbone = backbone_of(folders["bert"])
    assert isinstance(backbone, PackedEncoder)
    torch.testing.assert_close(backbone.forward(ids, offsets, kinds), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["bert", "xlm-roberta", "bert-relu"])
def test_first_states_are_the_first_rows_of_the_whole_forward(folders: dict[str, Path], name: str) -> None:
    ids, offsets = torch.randint(3, 200, (int(LENGTHS.sum()),)), offsets_of(LENGTHS)
    expected = backbone_of(folders[name]).forward(ids, offsets)[offsets[:-1]]
    model = AutoModel.from_pretrained(folders[name], add_pooling_layer=False).eval()
    found = FirstTokenEncoder(model, torch.float32).first_states(ids, offsets)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_first_row_loses_less_to_bf16_than_the_others() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(BertConfig(**SHAPE | {"initializer_range": 0.05}), add_pooling_layer=False).eval()
    ids, offsets = torch.randint(3, 200, (640,)), offsets_of(np.full(10, 64))
    exact = FirstTokenEncoder(copy.deepcopy(model), torch.float32).first_states(ids, offsets)
    encoder = FirstTokenEncoder(model, torch.bfloat16)
    error = (encoder.first_states(ids, offsets) - exact).norm()
    encoder.firsts = []
    assert 0 < error < 0.5 * (encoder.first_states(ids, offsets) - exact).norm()


@pytest.mark.parametrize("name", ["bert", "qwen3", "mpnet"])
def test_texts_that_the_model_cannot_take_are_refused(folders: dict[str, Path], name: str) -> None:
    backbone = backbone_of(folders[name])
    size = backbone.max_positions + 1
    with pytest.raises(ValueError, match=f"a text has {size} tokens, the model takes {size - 1}"):
        backbone.forward(torch.full((size,), 5), np.array([0, size]))
    with pytest.raises(ValueError, match="text 1 of the batch has no tokens"):
        backbone.forward(torch.tensor([5, 6]), np.array([0, 1, 1, 2]))


def test_no_text_gives_no_vector(folders: dict[str, Path]) -> None:
    for name in ("bert", "qwen3"):
        hidden = backbone_of(folders[name]).forward(torch.zeros(0, dtype=torch.int64), np.array([0]))
        assert hidden.shape == (0, 32)


def test_a_checkpoint_with_a_head_gives_its_base_model(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folders["xlm-roberta"], num_labels=1)
    model.save_pretrained(tmp_path)
    ids, offsets = texts()
    torch.testing.assert_close(
        backbone_of(tmp_path).forward(ids, offsets), backbone_of(folders["xlm-roberta"]).forward(ids, offsets)
    )


def test_missing_weights_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["bert"], tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights missing .*encoder\.layer\.1\.output\.dense\.weight \(1 in all\)"):
        backbone_of(tmp_path)


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_states(folders: dict[str, Path]) -> None:
    spec = ComputeSpec(dtype="fp32", device="cpu", compile=True)
    compiled = load_backbone(folders["xlm-roberta"], resolve_compute(spec, BertConfig()))
    ids, offsets = texts()
    expected = backbone_of(folders["xlm-roberta"]).forward(ids, offsets)
    torch.testing.assert_close(compiled.forward(ids, offsets), expected, atol=1e-5, rtol=1e-5)
