"""The scoring engine and its four classes, on tiny random checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints_rerankers import PAIRS, build

from actors.network.decoders import Compression
from actors.rerankers.engine import Reranker
from actors.rerankers.layerwise import LayerWiseFlagLLMReranker
from actors.rerankers.lightweight import LightWeightFlagLLMReranker
from actors.rerankers.pairs import Layout, PairBatch, join, token_ids
from actors.rerankers.registry import RERANKERS, FlagAutoReranker, class_of, load_reranker
from actors.spec import ComputeSpec

FP32 = ComputeSpec(dtype="fp32", device="cpu")
KINDS = ("bert", "xlm_roberta", "llama", "gemma", "minicpm", "cost_wise_gemma")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("rerankers")
    return {kind: build(kind, base / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def rerankers(folders: dict[str, Path]) -> dict[str, Reranker]:
    return {kind: load_reranker(str(folder), compute=FP32) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_score_does_not_depend_on_neighbours(rerankers: dict[str, Reranker], kind: str) -> None:
    together = rerankers[kind].compute_score(PAIRS)
    alone = [rerankers[kind].compute_score(pair)[0] for pair in PAIRS]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    small = load_reranker(str(rerankers[kind].checkpoint.folder), compute=ComputeSpec(dtype="fp32", budget=100))
    np.testing.assert_allclose(small.compute_score(PAIRS, batch_size=2), together, atol=1e-5)


def test_running_out_of_memory_halves_the_budget_and_loses_no_pair(
    folders: dict[str, Path], rerankers: dict[str, Reranker], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load_reranker(str(folders["bert"]), compute=FP32)
    score = type(small.scorer).score

    def tight(self: object, batch: PairBatch, *arguments: object) -> torch.Tensor:
        if len(batch.tokens.lengths) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(self, batch, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(type(small.scorer), "score", tight)
    scores = small.compute_score(PAIRS)
    monkeypatch.undo()
    assert small.executor.halvings >= 1
    np.testing.assert_allclose(scores, rerankers["bert"].compute_score(PAIRS), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_stays_near_fp32(folders: dict[str, Path], rerankers: dict[str, Reranker], kind: str) -> None:
    half = load_reranker(str(folders[kind]), compute=ComputeSpec(dtype="bf16", device="cpu"))
    assert half.compute.dtype == torch.bfloat16
    exact = np.array(rerankers[kind].compute_score(PAIRS))
    error = np.abs(np.array(half.compute_score(PAIRS)) - exact)
    assert 0 < error.max() < 0.35 * exact.std() + 0.1


def test_score_is_one_query_against_its_passages(rerankers: dict[str, Reranker]) -> None:
    passages = [passage for _, passage in PAIRS]
    scores = rerankers["bert"].score("what is panda?", passages)
    assert scores.dtype == np.float32
    expected = rerankers["bert"].compute_score([("what is panda?", passage) for passage in passages])
    np.testing.assert_array_equal(scores, np.array(expected, dtype=np.float32))


def test_a_query_is_tokenised_once(rerankers: dict[str, Reranker], monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = rerankers["bert"].tokenizer
    seen: list[str] = []
    ids = type(tokenizer).ids
    monkeypatch.setattr(type(tokenizer), "ids", lambda self, texts: seen.extend(texts) or ids(self, texts))
    token_ids(tokenizer, ["query"] * 100)
    assert seen == ["query"]


def test_layers_in_any_order_keep_their_heads(rerankers: dict[str, Reranker]) -> None:
    layers = rerankers["minicpm"]
    ascending = layers.compute_score(PAIRS, cutoff_layers=[2, 4, 6])
    shuffled = layers.compute_score(PAIRS, cutoff_layers=[6, 2, 4, 2])
    assert [shuffled[1], shuffled[2], shuffled[0], shuffled[3]] == [*ascending, ascending[0]]
    for layer, scores in zip((2, 4, 6), ascending, strict=True):
        np.testing.assert_allclose(layers.compute_score(PAIRS, cutoff_layers=layer), scores, atol=1e-5)


def test_nothing_runs_above_the_deepest_layer_asked(folders: dict[str, Path]) -> None:
    for kind in ("minicpm", "cost_wise_gemma"):
        reranker = load_reranker(str(folders[kind]), compute=FP32)
        expected = reranker.compute_score(PAIRS, cutoff_layers=[3])
        del reranker.scorer.decoder.layers[3:]  # type: ignore[attr-defined]
        assert reranker.compute_score(PAIRS, cutoff_layers=[3]) == expected


def test_lightweight_heads_by_position_or_by_layer(rerankers: dict[str, Reranker]) -> None:
    light = rerankers["cost_wise_gemma"]
    by_position = light.compute_score(PAIRS, cutoff_layers=[4])
    by_layer = light.compute_score(PAIRS, cutoff_layers=[4], heads_by_layer=True)
    several = light.compute_score(PAIRS, cutoff_layers=[2, 3, 4])
    np.testing.assert_allclose(by_layer, several[2], atol=1e-5)
    assert np.abs(np.array(by_position) - np.array(by_layer)).max() > 0.01
    shuffled = light.compute_score(PAIRS, cutoff_layers=[4, 2, 3])
    assert shuffled == [several[2], several[0], several[1]]


def test_compression_averages_neighbours_of_the_passage_alone() -> None:
    x = torch.arange(9.0)[:, None]
    squeeze = Compression((1,), 2, starts=np.array([1, 1]), tails=np.array([1, 2]))
    shorter, offsets = squeeze(x, np.array([0, 5, 9]))
    assert shorter[:, 0].tolist() == [0, 1.5, 3, 4, 5, 6, 7, 8]
    assert offsets.tolist() == [0, 4, 8]


@pytest.mark.parametrize("head_type", ["raw", "complex"])
@pytest.mark.parametrize("head_multi", [True, False])
def test_vocabulary_heads_give_the_logit_of_yes(tmp_path: Path, head_type: str, head_multi: bool) -> None:
    """The row of 'Yes', copied into a checkpoint of the simple kind, gives the same scores."""
    from safetensors.torch import load_file, save_file

    wide = build("minicpm", tmp_path / "wide", head_type=head_type, head_multi=head_multi)
    narrow = build("minicpm", tmp_path / "narrow", head_multi=head_multi)
    reranker = load_reranker(str(wide), compute=FP32)
    yes = reranker.tokenizer.ids(["Yes"])[0][0]
    weights = load_file(wide / "model.safetensors")
    for name in [name for name in weights if name.startswith("lm_head")]:
        row = weights.pop(name)[yes : yes + 1] / 2  # hidden 32 / base 16
        weights[name.replace(".weight", ".linear_head.weight") if head_type == "raw" else name] = row
    save_file(weights, narrow / "model.safetensors")
    expected = load_reranker(str(narrow), compute=FP32).compute_score(PAIRS, cutoff_layers=[3, 6])
    np.testing.assert_allclose(reranker.compute_score(PAIRS, cutoff_layers=[3, 6]), expected, atol=1e-5)


def test_weights_may_be_pickled_or_sharded(folders: dict[str, Path], tmp_path: Path) -> None:
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    for kind in ("bert", "llama", "minicpm", "cost_wise_gemma"):
        expected = load_reranker(str(folders[kind]), compute=FP32).compute_score(PAIRS)
        folder = shutil.copytree(folders[kind], tmp_path / kind)
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(weights)
        shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for shard, part in shards.items():
            save_file({name: weights[name] for name in part}, folder / shard, metadata={"format": "pt"})
        index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}, "metadata": {}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert load_reranker(str(folder), compute=FP32).compute_score(PAIRS) == expected
        for path in folder.glob("model*"):
            path.unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        assert load_reranker(str(folder), compute=FP32).compute_score(PAIRS) == expected


@pytest.mark.parametrize("kind", ["bert", "xlm_roberta", "llama"])
def test_the_address_of_mapped_weights_does_not_matter(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The header's length decides where tensors begin, and a matrix product picks its kernel by that address."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(folders[kind], tmp_path / kind)
    weights = load_file(folder / "model.safetensors")
    scores = []
    for length in range(0, 64, 8):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt", "filler": "x" * length})
        scores.append(load_reranker(str(folder), compute=FP32).compute_score(PAIRS))
    assert all(found == scores[0] for found in scores)


def test_padding_side_of_the_tokenizer_does_not_matter(tmp_path: Path) -> None:
    """Upstream's lightweight model refuses left padding; here nothing is padded."""
    import json

    folder = build("cost_wise_gemma", tmp_path / "light")
    options = {"compress_layers": [3], "compress_ratio": 2}
    right = LightWeightFlagLLMReranker(str(folder), devices="cpu", **options).compute_score(PAIRS)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    assert LightWeightFlagLLMReranker(str(folder), devices="cpu", **options).compute_score(PAIRS) == right


def test_other_architectures_run_padded_with_the_same_rules(tmp_path: Path) -> None:
    """ELECTRA is no architecture that we pack; its scores are those of its own classes on each pair alone."""
    from transformers import AutoModelForSequenceClassification, ElectraConfig, ElectraForSequenceClassification

    folder = build("bert", tmp_path / "electra")
    (folder / "model.safetensors").unlink()
    config = ElectraConfig(
        vocab_size=200, embedding_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, num_labels=1, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    ElectraForSequenceClassification(config).save_pretrained(folder)
    reranker = load_reranker(str(folder), compute=FP32)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    layout = reranker.scorer.layout(reranker.options)
    for pair, score in zip(PAIRS, reranker.compute_score(PAIRS), strict=True):
        query, passage = token_ids(reranker.tokenizer, pair)
        batch = join(reranker.tokenizer, layout, [query], [passage], 384, 512)
        ids = torch.from_numpy(batch.tokens.ids.astype(np.int64))[None]
        kinds = batch.kinds(layout)
        assert kinds is not None
        assert set(kinds) == {0, 1}
        with torch.no_grad():
            logit = model(ids, token_type_ids=torch.from_numpy(kinds)[None]).logits.item()
        assert score == pytest.approx(logit, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt_neox", "phi3"])
def test_other_decoders_run_padded_and_give_the_logit_of_yes(tmp_path: Path, family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = build("llama", tmp_path / family)
    (folder / "model.safetensors").unlink()
    config = AutoConfig.for_model(
        family, vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=1024, initializer_range=0.3, pad_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    reranker = load_reranker(str(folder), model_class="decoder-only-base", compute=FP32)
    assert type(reranker.scorer.backbone).__name__ == "PaddedTransformer"  # type: ignore[attr-defined]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    yes = reranker.tokenizer.ids(["Yes"])[0][0]
    layout = reranker.scorer.layout(reranker.options)
    for (query, passage), score in zip(PAIRS, reranker.compute_score(PAIRS), strict=True):
        ids = token_ids(reranker.tokenizer, ["A: " + query, "B: " + passage])
        row = torch.from_numpy(join(reranker.tokenizer, layout, ids[:1], ids[1:], 384, 512).tokens.ids.astype(np.int64))
        with torch.no_grad():
            logit = model(row[None]).logits[0, -1, yes].item()
        assert score == pytest.approx(logit, abs=1e-4)


def test_attributes_are_read_at_every_call(folders: dict[str, Path]) -> None:
    front = LayerWiseFlagLLMReranker(str(folders["minicpm"]), devices="cpu")
    before = front.compute_score(PAIRS)
    front.cutoff_layers, front.normalize = [3], True
    after = front.compute_score(PAIRS)
    assert after == front.compute_score(PAIRS, cutoff_layers=3, normalize=True)
    assert before != after
    assert all(0 < score < 1 for score in after)


def test_several_devices_share_the_pairs(folders: dict[str, Path], rerankers: dict[str, Reranker]) -> None:
    front = FlagAutoReranker.from_finetuned(str(folders["bert"]), devices=["cpu", "cpu"])
    np.testing.assert_allclose(front.compute_score(PAIRS), rerankers["bert"].compute_score(PAIRS), atol=1e-5)
    np.testing.assert_allclose(front.compute_score(PAIRS[0]), rerankers["bert"].compute_score(PAIRS[0]), atol=1e-5)


def test_the_table_and_the_checkpoint_say_the_class(folders: dict[str, Path], tmp_path: Path) -> None:
    assert len(RERANKERS) == 10
    expected = {
        "bert": "FlagReranker",
        "gemma": "FlagLLMReranker",
        "minicpm": "LayerWiseFlagLLMReranker",
        "cost_wise_gemma": "LightWeightFlagLLMReranker",
    }
    for kind, name in expected.items():
        assert type(FlagAutoReranker.from_finetuned(str(folders[kind]), devices="cpu")).__name__ == name
    assert class_of("BAAI/bge-reranker-v2-gemma/checkpoint-500", tmp_path) == "decoder-only-base"
    given = FlagAutoReranker.from_finetuned(str(folders["minicpm"]), "decoder-only-layerwise", cutoff_layers=[2])
    assert given.compute_score([("a", "b")], cutoff_layers=[2, 3]) != given.compute_score([("a", "b")])


def test_identity_names_what_scores_depend_on(folders: dict[str, Path], rerankers: dict[str, Reranker]) -> None:
    same = load_reranker(str(folders["bert"]), compute=FP32)
    assert same.identity() == rerankers["bert"].identity()
    assert load_reranker(str(folders["bert"]), compute=FP32, max_length=64).identity() != same.identity()
    assert rerankers["xlm_roberta"].identity()["weights"] != same.identity()["weights"]


def test_rows_fit_the_positions_of_the_model(rerankers: dict[str, Reranker]) -> None:
    tokenizer = rerankers["bert"].tokenizer
    layout = Layout((101,), (102,), (102,), positions=20)
    rows = join(tokenizer, layout, [list(range(30)), [1] * 5, [1]], [[2] * 30, [2] * 30, [2]], 30, 30)
    assert rows.tokens.lengths.tolist() == [20, 20, 5]
    assert rows.starts.tolist() == [19, 7, 3]
    assert rows.tokens.n_truncated.tolist() == [43, 18, 0]
    assert rows.tokens.ids[19] == 102
