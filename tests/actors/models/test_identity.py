"""What is said of a model without its weights is what the loaded model is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from actors import EmbedderSpec, load_embedder
from actors.checkpoints.files import CheckpointError
from actors.models.identity import ASSETS, available_outputs, describe
from actors.models.preparation import hidden_size, load_preparation
from tests.checkpoints import KINDS, build
from tests.checkpoints_vision import TOWER, build_visualized


@pytest.mark.parametrize("truncate_dim", [None, 16])
@pytest.mark.parametrize("kind", ["all-MiniLM-L6-v2", *KINDS])
def test_outputs_and_dimensions_are_those_of_the_loaded_model(
    kind: str, truncate_dim: int | None, tmp_path: Path
) -> None:
    model = kind if kind not in KINDS else str(build(kind, tmp_path))
    spec = EmbedderSpec(model=model, truncate_dim=truncate_dim)
    preparation, loaded = load_preparation(spec), load_embedder(spec)
    told = describe(preparation)
    assert (told["dim"], told["colbert_dim"]) == (loaded.dim, loaded.colbert_dim)
    assert available_outputs(preparation) == loaded.outputs
    assert hidden_size(preparation.folder) == loaded.engine.backbone.hidden_size


def test_the_packaged_model_has_three_outputs() -> None:
    assert available_outputs(load_preparation(EmbedderSpec(model="all-MiniLM-L6-v2"))) == ("dense", "sparse", "colbert")


def test_a_colbert_head_of_another_width_is_seen_in_both_formats(tmp_path: Path) -> None:
    folder = build("m3", tmp_path)
    preparation = load_preparation(EmbedderSpec(model=str(folder)))
    width = describe(preparation)["colbert_dim"]
    (head,) = folder.glob("colbert_linear.*")
    import torch
    from safetensors.torch import save_file

    tensors = torch.load(head, weights_only=True) if head.suffix == ".pt" else load_file(head)
    head.unlink()
    save_file(
        {"weight": tensors["weight"][:7].contiguous(), "bias": tensors["bias"][:7]},
        folder / "colbert_linear.safetensors",
    )
    assert (width, describe(preparation)["colbert_dim"]) == (32, 7)


def test_a_model_that_sees_pictures_says_how_large(tmp_path: Path) -> None:
    built = build_visualized("bert", tmp_path / "visualized")
    preparation = load_preparation(EmbedderSpec(model=str(built.folder), picture_weights=str(built.weights)))
    told = describe(preparation)
    assert (told["picture_size"], told["model_class"]) == (TOWER.size, "encoder-only-base")
    assert available_outputs(preparation) == ("dense",)


def test_damaged_weights_are_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = build("m3", tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is corrupt"):
        describe(load_preparation(EmbedderSpec(model=str(folder))))


def test_an_index_knows_which_lexical_head_this_program_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preparation = load_preparation(EmbedderSpec(model="all-MiniLM-L6-v2"))
    before = describe(preparation)
    folder = shutil.copytree(ASSETS / "all-MiniLM-L6-v2", tmp_path / "all-MiniLM-L6-v2")
    (folder / "sparse_linear.safetensors").write_bytes(b"another head")
    monkeypatch.setattr("actors.models.identity.ASSETS", tmp_path)
    after = describe(preparation)
    assert {key for key in before if before[key] != after[key]} == {"lexical_head"}


@pytest.mark.parametrize(("instruction", "words"), [(None, 0), ("a passage of text", 4)])
def test_room_is_what_special_tokens_and_the_instruction_leave(instruction: str | None, words: int) -> None:
    spec = EmbedderSpec(model="all-MiniLM-L6-v2", passage_instruction=instruction, passage_instruction_format="{} {}")
    preparation = load_preparation(spec)
    assert preparation.room == 256 - 2 - words
    full = " ".join(["word"] * preparation.room)
    assert preparation.tokenise([full, f"{full} more"]).n_truncated.tolist() == [0, 1]
