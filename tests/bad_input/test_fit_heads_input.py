"""What heads cannot be fitted from is refused with the file, line, option or step, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actors.fitting import FitConfig, fit_heads
from actors.fitting.states import compute_states
from actors.fitting.train import TrainingError, train
from actors.outputs import IntArray, TokenBatch
from tests.checkpoints import build, linear

GOOD = [{"query": f"panda {c}", "positive": f"the bear {c} of the river"} for c in "abcdefgh"]


def refused(folder: Path, rows: list[object], model: Path | None = None, **options: object) -> str:
    """The message of the refusal; no output may be left behind."""
    pairs = folder / "pairs.jsonl"
    pairs.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    model = model or build("bert", folder / "encoder")
    with pytest.raises(ValueError) as caught:
        fit_heads(FitConfig(model=str(model), data=(str(pairs),), output=str(folder / "out"), **options))  # type: ignore[arg-type]
    assert not (folder / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"query": "", "positive": "a"}, "pairs.jsonl:2: query is empty, expected text"),
        ({"query": "a", "positive": "  "}, "pairs.jsonl:2: positive is empty, expected text"),
        ({"query": "a"}, "pairs.jsonl:2: positive is missing, expected text"),
        ({"query": "a", "positive": 3}, "pairs.jsonl:2: positive is 3, expected text"),
        ({"query": "a", "positive": "b", "negatives": [""]}, "pairs.jsonl:2: negatives must be a list of texts"),
        ({"query": "a", "pos": []}, "pairs.jsonl:2: pos is empty, expected at least one text"),
        ({"query": "a", "pos": "b"}, "pairs.jsonl:2: pos must be a list of texts"),
        ({"query": "a", "pos": ["b"], "neg": [3]}, "pairs.jsonl:2: neg must be a list of texts"),
        ({"query": "a", "positive": "b", "negatives": "c"}, "pairs.jsonl:2: negatives must be a list of texts"),
        ([1], "pairs.jsonl:2 is a list, expected an object"),
        ("{not json", "pairs.jsonl:2 is not valid JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, words: str) -> None:
    assert words in refused(tmp_path, [GOOD[0], row, *GOOD[1:]])


def test_a_single_pair(tmp_path: Path) -> None:
    message = refused(tmp_path, [GOOD[0]])
    assert "pairs.jsonl is a single pair: nothing separates right passages from wrong ones" in message


def test_pairs_that_are_all_the_same(tmp_path: Path) -> None:
    assert "pairs.jsonl holds 5 pairs that are all the same" in refused(tmp_path, [GOOD[0]] * 5)


def test_one_passage_for_all_queries(tmp_path: Path) -> None:
    rows: list[object] = [{"query": c, "positive": "the bear"} for c in "abc"]
    assert "all 3 queries have the same passage" in refused(tmp_path, rows)


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    model = build("bert", tmp_path / "encoder")
    (model / "model.safetensors").unlink()
    assert "encoder holds no weights" in refused(tmp_path, list(GOOD), model)


def test_a_head_of_another_hidden_size(tmp_path: Path) -> None:
    model = build("bert", tmp_path / "encoder")
    torch.save(linear("sparse_linear", 1, hidden=48), model / "sparse_linear.pt")
    message = refused(tmp_path, list(GOOD), model)
    assert message.endswith("sparse_linear.pt takes states of 48 dimensions, the encoder gives 32")


def test_a_decoder(tmp_path: Path) -> None:
    model = build("qwen3", tmp_path / "decoder")
    assert "is decoder-only-base; M3 heads are fitted on encoders" in refused(tmp_path, list(GOOD), model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colbert_dim": 33}, "colbert_dim must be between 1 and the encoder's 32, got 33"),
        ({"colbert": "pca"}, "colbert pca needs colbert_dim"),
        ({"colbert": "identity", "colbert_dim": 8}, "colbert identity keeps all dimensions"),
        ({"sparse": "none"}, "sparse must be one of auto, idf, trained, got 'none'"),
        ({"colbert": "pcs"}, "colbert must be one of auto, identity, pca, trained, got 'pcs'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"dev_share": 1.0}, "dev_share must lie between 0 and 1, got 1.0"),
        ({"candidates": 1}, "candidates must be at least 2"),
    ],
)
def test_a_bad_option_is_named(tmp_path: Path, options: dict[str, object], words: str) -> None:
    assert words in refused(tmp_path, list(GOOD), **options)


def test_data_that_is_not_there(tmp_path: Path) -> None:
    config = FitConfig(model="all-MiniLM-L6-v2", data=(str(tmp_path / "none.jsonl"),), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist"):
        fit_heads(config)


def test_a_file_of_an_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "texts.docx").write_text("x")
    config = FitConfig(model="all-MiniLM-L6-v2", data=(str(tmp_path / "texts.docx"),), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"texts\.docx: unknown kind of file"):
        fit_heads(config)


def test_qrels_that_name_no_document(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "panda"}')
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "bear"}')
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\tgone\t1\n")
    config = FitConfig(model="all-MiniLM-L6-v2", data=(str(tmp_path),), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"qrels\.tsv:2: corpus-id 'gone' is not in the corpus"):
        fit_heads(config)


def test_an_output_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    config = FitConfig(model="all-MiniLM-L6-v2", data=("pairs.jsonl",), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        fit_heads(config)


def test_a_loss_that_is_not_a_number_stops_with_step_and_cause() -> None:
    calls: list[int] = []

    def loss(head: nn.Linear, rows: IntArray) -> Tensor:
        calls.append(len(rows))
        return head.weight.sum() * (float("nan") if len(calls) == 4 else 1.0)

    with pytest.raises(TrainingError, match=r"step 3: the loss on pairs is nan; the head is finite, so the scores"):
        train(nn.Linear(2, 1), [("pairs", 5, loss)], 10, 2, 0.1, 0)


def test_a_step_that_was_too_large_is_the_cause() -> None:
    def loss(head: nn.Linear, _rows: IntArray) -> Tensor:
        return (head.weight * 1e30).pow(2).sum()

    with pytest.raises(TrainingError, match=r"step 0: the loss on pairs is inf"):
        train(nn.Linear(2, 1), [("pairs", 5, loss)], 10, 2, 0.1, 0)


def test_states_that_are_not_finite_name_the_text(tmp_path: Path) -> None:
    class Broken:
        hidden_size = 4
        device = torch.device("cpu")

        def forward(self, ids: Tensor, offsets: IntArray) -> Tensor:
            return torch.where(ids[:, None] == 9, torch.nan, 1.0).expand(-1, 4)

    tokens = TokenBatch(np.array([1, 2, 3, 9], np.int32), np.array([0, 1, 2, 4]), np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="the encoder's state of text 2 is not finite"):
        compute_states(Broken(), tokens, frozenset(), 100, tmp_path, "model")  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*.npy"))
