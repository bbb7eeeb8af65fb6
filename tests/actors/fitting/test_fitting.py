"""Heads fitted on a tiny encoder: the layout, the numbers, the choice, and the same heads from the same seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ir_measures import nDCG
from safetensors.torch import load_file
from torch import nn

from actors.embedders.registry import load_embedder
from actors.fitting import FitConfig, FitResult, fit_heads
from actors.fitting.colbert import identity, pca_projection
from actors.fitting.data import read_source, split
from actors.fitting.losses import distillation
from actors.fitting.mining import Mined, bm25, idf, sparse_scores, zscore
from actors.fitting.select import choose_variant, ndcg
from actors.fitting.sparse import gather_shared_tokens, idf_start, lexical_weights
from actors.fitting.states import States
from actors.fitting.train import average_layers, scale_output
from actors.models.identity import ASSETS, describe
from actors.models.preparation import load_preparation
from actors.outputs import TokenBatch, offsets_of
from actors.spec import ComputeSpec, EmbedderSpec
from tests.checkpoints import build

WORDS = ("the", "what", "is", "panda", "bear", "of", "and", "river", "query", "passage")
EXACT = ComputeSpec(dtype="fp32", threads=1)


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join([*rng.choice(WORDS, 12), *rng.choice(list("abcdefgh"), 6)]) for _ in range(count)]


def write_pairs(path: Path, count: int = 40) -> Path:
    rows = [{"query": " ".join(text.split()[6:15]), "positive": text} for text in sentences(count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def fit(folder: Path, data: Sequence[Path], output: str = "fitted", **options: object) -> FitResult:
    model = folder / "encoder"
    if not model.exists():
        build("bert", model)
    chosen = {"steps": 20, "batch": 8, "compute": EXACT, **options}
    return fit_heads(
        FitConfig(model=str(model), data=tuple(map(str, data)), output=str(folder / output), **chosen)  # type: ignore[arg-type]
    )


def states(rows: list[list[int]], hidden: int = 6, seed: int = 0) -> States:
    ids = np.array([i for row in rows for i in row], np.int32)
    offsets = offsets_of(np.array([len(row) for row in rows]))
    values = np.random.default_rng(seed).standard_normal((len(ids), hidden)).astype(np.float16)
    return States(TokenBatch(ids, offsets, np.zeros(len(rows), np.int32)), values, ids > 1)


def test_the_checkpoint_is_read_back_as_m3(tmp_path: Path) -> None:
    result = fit(tmp_path, [write_pairs(tmp_path / "pairs.jsonl")])
    embedder = load_embedder(EmbedderSpec(model=str(result.output), compute=EXACT))
    assert embedder.outputs == ("dense", "sparse", "colbert")
    frozen = load_embedder(EmbedderSpec(model=str(tmp_path / "encoder"), compute=EXACT))
    texts = sentences(3, seed=5)
    fitted, plain = embedder.embed_corpus(texts).dense, frozen.embed_corpus(texts).dense
    assert fitted is not None
    assert plain is not None
    np.testing.assert_array_equal(fitted, plain)


def test_an_index_will_know_that_the_heads_were_fitted(tmp_path: Path) -> None:
    output = fit(tmp_path, [write_pairs(tmp_path / "pairs.jsonl")]).output
    fitted, plain = (describe(load_preparation(EmbedderSpec(model=str(m)))) for m in (output, tmp_path / "encoder"))
    assert fitted["fitted_heads"] is True
    assert "fitted_heads" not in plain


def test_lexical_scores_vary_as_much_as_dense_ones(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    embedder = load_embedder(EmbedderSpec(model=str(fit(tmp_path, [pairs], sparse="idf").output), compute=EXACT))
    texts = sentences(40)
    asked, found = embedder.embed_queries([t[-30:] for t in texts]), embedder.embed_corpus(texts)
    lexical = sparse_scores(asked.sparse, found.sparse, embedder.vocab_size).std(axis=1).mean()
    dense = (asked.dense @ found.dense.T).std(axis=1).mean()
    assert 0.3 < lexical / dense < 3


def test_both_published_forms_hold_the_same_numbers(tmp_path: Path) -> None:
    output = fit(tmp_path, [write_pairs(tmp_path / "pairs.jsonl")]).output
    for name, shape in (("sparse_linear", (1, 32)), ("colbert_linear", (32, 32))):
        pickled = torch.load(output / f"{name}.pt", weights_only=True)
        safe = load_file(output / f"{name}.safetensors")
        assert set(pickled) == {"weight", "bias"}
        assert pickled["weight"].shape == shape
        assert all(torch.equal(pickled[key], safe[key]) for key in pickled)


def test_the_same_seed_gives_the_same_heads_and_another_seed_others(tmp_path: Path) -> None:
    pairs = [write_pairs(tmp_path / "pairs.jsonl")]
    outputs = [
        fit(tmp_path, pairs, name, seed=seed, sparse="trained").output for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, again, other = ((folder / "sparse_linear.safetensors").read_bytes() for folder in outputs)
    assert first == again
    assert first != other


def test_heads_only_leaves_the_encoder_and_an_identity_out(tmp_path: Path) -> None:
    output = fit(tmp_path, [write_pairs(tmp_path / "pairs.jsonl")], heads_only=True, colbert="identity").output
    assert sorted(path.name for path in output.iterdir()) == [
        "README.md", "fitted_heads.json", "sparse_linear.pt", "sparse_linear.safetensors",
    ]  # fmt: skip


def test_the_card_names_data_command_seed_and_scores(tmp_path: Path) -> None:
    result = fit(tmp_path, [write_pairs(tmp_path / "pairs.jsonl")], seed=7, notes=("pairs: made up, CC0",))
    card = (result.output / "README.md").read_text(encoding="utf-8")
    assert "pairs: made up, CC0" in card
    assert "--seed 7" in card
    assert "tridex fit-heads" in card
    assert f"| sparse | idf | pairs | {result.scores[2].ndcg:.4f} |" in card


def test_fewer_colbert_dimensions_by_pca(tmp_path: Path) -> None:
    pairs = [write_pairs(tmp_path / "pairs.jsonl")]
    result = fit(tmp_path, pairs, colbert="pca", colbert_dim=8)
    assert result.colbert == "pca 8"
    assert load_file(result.output / "colbert_linear.safetensors")["weight"].shape == (8, 32)


def test_l1_makes_the_output_sparser(tmp_path: Path) -> None:
    pairs = [write_pairs(tmp_path / "pairs.jsonl")]
    free, pressed = (_trained_nonzero(tmp_path, pairs, f"l1-{weight}", weight) for weight in (0.0, 30.0))
    assert pressed < 0.5 * free


def _trained_nonzero(folder: Path, data: Sequence[Path], output: str, l1: float) -> float:
    return fit(folder, data, output, l1=l1, sparse="trained", steps=60, colbert="identity").nonzero


def test_unlabelled_text_is_cropped_into_pairs(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n\n".join(sentences(60)), encoding="utf-8")
    source = read_source(tmp_path / "texts.txt", 20, 50, np.random.default_rng(0))
    assert len(source) == 20
    assert len(source.passages) == 50
    assert all(query in source.passages[rows[0]] for query, rows in zip(source.queries, source.positives, strict=True))
    result = fit(tmp_path, [tmp_path / "texts.txt"])
    assert result.sources[0].name == "texts"


def test_a_beir_folder_may_lie_beside_its_corpus(tmp_path: Path) -> None:
    train = tmp_path / "made" / "train"
    train.mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": "t", "text": text} for i, text in enumerate(sentences(5))]
    (tmp_path / "made" / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (train / "queries.jsonl").write_text("\n".join(json.dumps({"_id": f"q{i}", "text": "panda"}) for i in range(3)))
    (train / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td3\t1\nq0\td4\t0\nq1\td1\t2\n")
    source = read_source(train, 10, 10, np.random.default_rng(0))
    assert source.name == "made-train"
    assert [source.passages[rows[0]] for rows in source.positives] == [f"t {corpus[i]['text']}" for i in (3, 1)]


def test_queries_of_one_passage_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"query": f"{text} {i}", "positive": text} for text in sentences(20) for i in range(3)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read_source(tmp_path / "p.jsonl", 100, 100, np.random.default_rng(0))
    train, held = split(source, 0.25, np.random.default_rng(0))
    passages = [{source.positives[i][0] for i in rows} for rows in (train, held)]
    assert not passages[0] & passages[1]
    assert (len(train), len(held)) == (45, 15)


def test_flag_embeddings_rows_are_read(tmp_path: Path) -> None:
    texts = sentences(9)
    rows = [{"query": f"{t} {i}", "pos": [t, texts[8]], "neg": [texts[(i + 3) % 8]]} for i, t in enumerate(texts[:8])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = read_source(tmp_path / "train.jsonl", 99, 99, np.random.default_rng(0))
    for i, row in enumerate(rows):
        assert source.queries[i] == row["query"]
        assert [source.passages[j] for j in source.positives[i]] == row["pos"]
        assert [source.passages[j] for j in source.negatives[i]] == row["neg"]


def test_given_negatives_come_right_after_the_positive(tmp_path: Path) -> None:
    texts = sentences(8)
    rows = [{"query": texts[i], "positive": texts[i], "negatives": [texts[(i + 3) % 8]]} for i in range(8)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read_source(tmp_path / "p.jsonl", 100, 100, np.random.default_rng(0))
    named = [source.passages[rows[0]] for rows in source.negatives]
    assert named == [texts[(texts.index(query) + 3) % 8] for query in source.queries]


def test_scores_in_training_are_the_scores_of_search() -> None:
    """The gathered, differentiable form and the embedder's own lexical weights give the same dot products."""
    queries, passages = states([[0, 5, 6, 5, 1], [0, 7, 1]]), states([[0, 5, 6, 6, 1], [0, 7, 5, 1], [0, 9, 1]], seed=1)
    rows = np.array([[0, 2, 1], [1, 0, 2]])
    head = nn.Linear(6, 1).requires_grad_(False)
    nn.init.constant_(head.bias, 0.5)
    shared = gather_shared_tokens(queries, passages, Mined(rows, np.zeros((2, 3), np.float32)), np.arange(2), 10)
    excluded = frozenset({0, 1})
    full = sparse_scores(lexical_weights(queries, head, excluded), lexical_weights(passages, head, excluded), 10)
    expected = np.take_along_axis(full, rows, axis=1)
    assert expected.any()
    np.testing.assert_allclose(shared.scores(head, np.arange(2)).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(shared.scores(head, np.array([1])).numpy(), expected[1:], rtol=1e-5)


def test_the_start_comes_near_idf_where_states_tell_tokens_apart() -> None:
    rows = [[2, 3], [2, 4], [2, 5], [2, 3], [2, 6], [2, 4]]
    texts = states(rows, hidden=8)
    one_hot = np.eye(8, dtype=np.float16)[texts.tokens.ids]
    texts = States(texts.tokens, 20 * one_hot, texts.weighted)
    head = idf_start([texts], 8, 100, np.random.default_rng(0)).requires_grad_(False)
    common, twice, once = (float(head(torch.eye(8)[i] * 20)) for i in (2, 3, 5))
    assert common < twice < once


def test_bm25_is_the_formula() -> None:
    queries, passages = states([[5, 5]]), states([[5, 5, 6], [6, 7, 8], [8, 8, 8]])
    weight = idf(np.array([1]), 3)[0] * 2 * 2.2 / (2 + 1.2)
    np.testing.assert_allclose(bm25(queries, passages, 10), [[weight, 0, 0]], rtol=1e-6)


def test_pca_keeps_dot_products_that_its_dimensions_can_hold() -> None:
    flat = states([[2] * 50], hidden=6)
    flat.hidden[:, 3:] = 0
    head = pca_projection([flat], 3, 1000, np.random.default_rng(0))
    before = torch.from_numpy(flat.hidden.astype(np.float32))
    after = head(before)
    torch.testing.assert_close(after @ after.T, before @ before.T, rtol=1e-3, atol=1e-3)


def test_identity_changes_nothing() -> None:
    x = torch.randn(3, 5)
    torch.testing.assert_close(identity(5)(x), x)


def test_distillation_is_zero_for_the_teachers_own_scores_only() -> None:
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    assert float(distillation(teacher + 3, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(-teacher, teacher)) > 0.5


def test_zscores_of_equal_scores_are_zero() -> None:
    np.testing.assert_array_equal(zscore(np.full((1, 4), 2.0, np.float32)), np.zeros((1, 4)))


def test_ndcg_agrees_with_ir_measures() -> None:
    rng = np.random.default_rng(3)
    scores = rng.permutation(30 * 5).reshape(5, 30).astype(np.float32)
    positives = [rng.choice(30, int(rng.integers(1, 15)), replace=False).tolist() for _ in range(5)]
    run = {str(i): {str(j): float(s) for j, s in enumerate(row)} for i, row in enumerate(scores)}
    qrels = {str(i): {str(j): 1 for j in rows} for i, rows in enumerate(positives)}
    expected = {m.query_id: m.value for m in (nDCG @ 10).iter_calc(qrels, run)}
    np.testing.assert_allclose(ndcg(scores, positives), [expected[str(i)] for i in range(5)], atol=1e-9)


@pytest.mark.parametrize(("gains", "kept"), [
    ((0.2, 0.2), "trained"), ((0.0, 0.0), "simple"), ((-0.2, -0.2), "simple"), ((0.4, -0.1), "simple"),
    ((0.4, 0.0), "trained"),
])  # fmt: skip
def test_the_simplest_is_kept_unless_another_gains_and_nowhere_loses(gains: tuple[float, float], kept: str) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 100)
    base = np.full(100, 0.5)
    trained = [base + gain + noise - noise.mean() for gain in gains]
    assert choose_variant({"simple": [base, base], "trained": trained}) == kept


def test_of_several_that_win_the_best_mean_over_sources_is_kept() -> None:
    def results(*means: float) -> list[np.ndarray]:
        return [np.linspace(mean - 0.01, mean + 0.01, 50) for mean in means]

    heads = {"idf": results(0.5, 0.5), "half": results(0.6, 0.7), "all": results(0.7, 0.5)}
    assert choose_variant(heads) == "half"


def test_mixed_heads_lie_between_both() -> None:
    start, trained = nn.Linear(3, 1), nn.Linear(3, 1)
    quarter = average_layers(start, trained, 0.25)
    x = torch.randn(5, 3)
    torch.testing.assert_close(quarter(x), 0.75 * start(x) + 0.25 * trained(x))
    assert torch.equal(average_layers(start, trained, 1.0).weight, trained.weight)
    torch.testing.assert_close(scale_output(start, 3)(x), 3 * start(x))


def test_cached_states_are_used_again(tmp_path: Path) -> None:
    pairs = [write_pairs(tmp_path / "pairs.jsonl")]
    fit(tmp_path, pairs, "one", cache=str(tmp_path / "cache"))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    fit(tmp_path, pairs, "two", cache=str(tmp_path / "cache"))
    assert len(times) == 2
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}


def test_the_default_heads_are_small_equal_in_both_forms_and_documented() -> None:
    folder = ASSETS / "all-MiniLM-L6-v2"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
    pickled = torch.load(folder / "sparse_linear.pt", weights_only=True)
    safe = load_file(folder / "sparse_linear.safetensors")
    assert pickled["weight"].shape == (1, 384)
    assert all(torch.equal(pickled[key], safe[key]) for key in ("weight", "bias"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("tridex fit-heads all-MiniLM-L6-v2", "--seed", "WordNet", "CC BY-SA 4.0"))


def test_the_default_head_weighs_content_words_above_common_ones() -> None:
    embedder = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2", compute=EXACT))
    sparse = embedder.embed_corpus(["what is a giant panda ? a bear of the mountains ."]).sparse
    assert sparse is not None
    found = {embedder.tokenizer.decode([int(i)]): float(w) for i, w in zip(*sparse.row(0), strict=True)}
    common = [found.get(word, 0.0) for word in ("what", "is", "a", "of", "the", ".", "[SEP]")]
    assert min(found[word] for word in ("giant", "panda", "bear", "mountains")) > max(common)
