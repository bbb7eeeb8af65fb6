"""What an embedder says to input that it cannot use: the message names the text, the argument or the file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import build

from actors import BGEM3FlagModel, EmbedderSpec, FlagAutoModel, FlagICLModel, FlagLLMModel, FlagModel, load_embedder
from actors.checkpoints.files import CheckpointError


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def model(bert: Path) -> FlagModel:
    return FlagModel(str(bert), use_fp16=False, devices="cpu")


@pytest.fixture(scope="module")
def m3(tmp_path_factory: pytest.TempPathFactory) -> BGEM3FlagModel:
    return BGEM3FlagModel(str(build("m3", tmp_path_factory.mktemp("m3"))), use_fp16=False, devices="cpu")


def test_an_empty_list_gives_an_empty_result_of_the_right_shape(model: FlagModel, m3: BGEM3FlagModel) -> None:
    assert np.shape(model.encode([])) == (0, 32)
    assert np.shape(model.encode_queries([])) == np.shape(model.encode_corpus([])) == (0, 32)
    result = m3.encode([], return_sparse=True, return_colbert_vecs=True)
    assert result["dense_vecs"].shape == (0, 32)
    assert result["lexical_weights"] == result["colbert_vecs"] == []
    assert m3.compute_score([]) == []


def test_an_empty_list_for_a_decoder_and_in_context(tmp_path: Path) -> None:
    folder = str(build("mistral", tmp_path))
    for front in (FlagLLMModel, FlagICLModel):
        assert np.shape(front(folder, use_fp16=False, devices="cpu").encode_queries([])) == (0, 32)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["fine", None], "text 1 is None, expected str"),
        (["fine", b"bytes"], "text 1 is bytes"),
        ([3], "text 0 is int"),
        ([["nested"]], "text 0 is list"),
        (None, "expected a list of str, got NoneType"),
        (b"bytes", "expected a list of str, got one bytes"),
        (5, "expected a list of str, got int"),
        (np.array([["a", "b"]]), r"array of shape \(1, 2\)"),
        (np.array([1.5]), "text 0 is float64"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus"])
def test_anything_but_str_is_refused_by_position(model: FlagModel, method: str, texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        getattr(model, method)(texts)


def test_an_array_of_str_is_a_list_of_str(model: FlagModel) -> None:
    expected = model.encode(["panda", "bear"])
    np.testing.assert_array_equal(model.encode(np.array(["panda", "bear"])), expected)
    np.testing.assert_array_equal(model.encode(np.array(["panda", "bear"], dtype=object)), expected)
    np.testing.assert_array_equal(model.encode(("panda", "bear")), expected)


def test_a_lone_surrogate_is_found(model: FlagModel) -> None:
    with pytest.raises(ValueError, match=r"text 1 is not valid Unicode: lone surrogate U\+D83D at character 4"):
        model.encode(["fine", "half\ud83d an emoji"])


@pytest.mark.parametrize("length", [513, 5000])
def test_a_length_beyond_the_positions_is_refused_even_for_a_short_text(
    model: FlagModel, bert: Path, length: int
) -> None:
    with pytest.raises(ValueError, match=f"max_length {length} is beyond the model's 512 positions"):
        model.encode(["short"], max_length=length)
    with pytest.raises(ValueError, match=f"query_max_length {length} is beyond the model's 512 positions"):
        FlagModel(str(bert), query_max_length=length, devices="cpu")


@pytest.mark.parametrize("length", [0, -1])
def test_a_length_below_one_is_refused(model: FlagModel, length: int) -> None:
    with pytest.raises(ValueError, match=f"max_length must be at least 1, got {length}"):
        model.encode(["short"], max_length=length)


def test_a_length_without_room_for_the_special_tokens_is_refused(model: FlagModel) -> None:
    with pytest.raises(ValueError, match="max_length 1 has no room for the 2 special tokens"):
        model.encode(["short"], max_length=1)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_size_below_one_is_refused(model: FlagModel, m3: BGEM3FlagModel, size: int) -> None:
    for front in (model, m3):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}"):
            front.encode(["short"], batch_size=size)


def test_unknown_devices_and_arguments_are_named(model: FlagModel, bert: Path) -> None:
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        FlagModel(str(bert), devices="gpu")
    with pytest.raises(TypeError, match="convert_to_nunpy"):
        model.encode(["short"], convert_to_nunpy=False)
    with pytest.raises(TypeError, match="batchsize"):
        FlagModel(str(bert), batchsize=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="pooling must be one of cls, mean, last_token, got 'max'"):
        FlagModel(str(bert), pooling_method="max", devices="cpu")
    with pytest.raises(ValueError, match="model_class 'encoder' is not one of encoder-only-base"):
        FlagAutoModel.from_finetuned(str(bert), model_class="encoder")


def test_a_decoder_pools_by_its_last_token_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pooling must be last_token for decoder-only-base, got 'mean'"):
        FlagLLMModel(str(build("qwen3", tmp_path)), pooling_method="mean", devices="cpu")


def test_a_template_with_other_slots_is_named(bert: Path) -> None:
    model = FlagModel(
        str(bert), devices="cpu", query_instruction_for_retrieval="Find", query_instruction_format="{}: {query}"
    )
    with pytest.raises(ValueError, match=r"template '\{\}: \{query\}' needs 2 positional slots"):
        model.encode_queries(["panda"])


def test_outputs_that_the_model_lacks(tmp_path: Path, bert: Path) -> None:
    folder = build("m3_sparse_only", tmp_path)
    model = BGEM3FlagModel(str(folder), use_fp16=False, devices="cpu")
    assert model.encode("panda", return_sparse=True)["lexical_weights"]
    with pytest.raises(ValueError, match="asked for dense, colbert: the checkpoint has no colbert head"):
        model.encode("panda", return_colbert_vecs=True)
    with pytest.raises(ValueError, match="no colbert head"):
        model.compute_score(("a", "b"))
    with pytest.raises(ValueError, match="asked for nothing"):
        model.encode("panda", return_dense=False)
    with pytest.raises(ValueError, match="gives dense, asked for sparse"):
        load_embedder(EmbedderSpec(model=str(bert))).embed_corpus(["panda"], ["sparse"])


def test_pairs_and_weights(m3: BGEM3FlagModel) -> None:
    with pytest.raises(TypeError, match="pair 1 must be two str"):
        m3.compute_score([("a", "b"), ("a", "b", "c")])
    with pytest.raises(TypeError, match="pair 0 must be two str"):
        m3.compute_score([("a", None)])
    with pytest.raises(ValueError, match="for dense, sparse, colbert; got 2"):
        m3.compute_score(("a", "b"), weights_for_different_modes=[1, 1])
    with pytest.raises(ValueError, match="two dicts or two lists of dicts, got dict and list"):
        m3.compute_lexical_matching_score({"5": 1.0}, [{"5": 1.0}])


def test_a_folder_that_does_not_exist_or_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model folder .*nowhere does not exist"):
        FlagModel(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"has no config.json: it is not a model folder"):
        FlagModel(str(tmp_path))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    folder = build("bert", tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: expected model.safetensors, pytorch_model.bin"):
        FlagModel(str(folder), devices="cpu")


@pytest.mark.parametrize("keep", [4, 100, 0.5])
def test_a_corrupt_safetensors_file(tmp_path: Path, keep: float) -> None:
    file = build("bert", tmp_path) / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 else keep * len(data))])
    with pytest.raises(CheckpointError, match=r"model.safetensors is corrupt"):
        FlagModel(str(tmp_path), devices="cpu")


class Harmful:
    """Would create a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_pickle_is_never_run(tmp_path: Path, as_zip: bool) -> None:
    folder, mark = build("bert", tmp_path), tmp_path / "was-run"
    (folder / "model.safetensors").unlink()
    if as_zip:
        torch.save({"x": Harmful(mark)}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Harmful(mark)}, protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is refused by torch's weights_only loader"):
        FlagModel(str(folder), devices="cpu")
    assert not mark.exists()


def test_a_harmful_head_is_never_run(tmp_path: Path) -> None:
    folder, mark = build("m3", tmp_path), tmp_path / "was-run"
    torch.save({"weight": Harmful(mark)}, folder / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=r"sparse_linear.pt is refused by torch's weights_only loader"):
        BGEM3FlagModel(str(folder), devices="cpu")
    assert not mark.exists()


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    folder = build("bert", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"weights missing or of another shape: encoder.layer.2"):
        FlagModel(str(folder), devices="cpu")


def test_a_shard_that_is_missing_and_an_index_that_is_no_json(tmp_path: Path) -> None:
    folder = build("bert", tmp_path)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00001.safetensors is missing"):
        FlagModel(str(folder), devices="cpu")
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"index.json is not valid JSON"):
        FlagModel(str(folder), devices="cpu")


def test_colbert_dim_is_checked_against_the_head(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"colbert_linear has a weight of shape \(16, 32\), expected \(8, 32\)"):
        BGEM3FlagModel(str(build("m3_small_colbert", tmp_path)), colbert_dim=8, devices="cpu")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, r"weight of shape \(1, 8\), expected \(1, 32\)"),
        ({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}, r"weight of shape \(2, 32\), expected \(1, 32\)"),
        ({"weight": torch.zeros(1, 32)}, r"must hold `weight` and `bias`, it holds \['weight'\]"),
    ],
)
def test_a_head_of_another_model(tmp_path: Path, head: dict[str, torch.Tensor], message: str) -> None:
    folder = build("m3", tmp_path)
    torch.save(head, folder / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=message):
        BGEM3FlagModel(str(folder), devices="cpu")


def test_no_tokenizer(tmp_path: Path) -> None:
    folder = build("bert", tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer: expected tokenizer.json or one of vocab.txt"):
        FlagModel(str(folder), devices="cpu")
