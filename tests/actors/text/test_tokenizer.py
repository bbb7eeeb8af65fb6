"""Tokenising: the file's own pipeline, exact truncation, any number of threads."""

from __future__ import annotations

import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from checkpoints import build, byte_level_tokenizer, sentencepiece_bpe_tokenizer, xlmr_tokenizer
from checkpoints_chains import build_chain
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from actors.models.preparation import load_preparation
from actors.spec import EmbedderSpec
from actors.text.tokenizer import TextTokenizer, load_tokenizer, read_tokenizer


@pytest.fixture(scope="module")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xlmr")
    xlmr_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(xlmr: Path) -> TextTokenizer:
    return read_tokenizer(xlmr)


@pytest.fixture(scope="module")
def reference(xlmr: Path) -> Tokenizer:
    return Tokenizer.from_file(str(xlmr / "tokenizer.json"))


@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60), length=st.integers(2, 40))
@settings(max_examples=150, deadline=None)
def test_ids_are_those_of_the_file_cut_from_the_right(
    tokenizer: TextTokenizer, reference: Tokenizer, text: str, length: int
) -> None:
    full = reference.encode(text).ids
    batch = tokenizer.tokenise([text], length)
    expected = full if len(full) <= length else [*full[: length - 1], full[-1]]
    assert batch.ids.tolist() == expected
    assert batch.n_truncated.tolist() == [max(0, len(full) - length)]


def test_left_truncation_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    sentencepiece_bpe_tokenizer(tmp_path, "LlamaTokenizerFast", "left", spaces=False)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    tokenizer = read_tokenizer(tmp_path)
    whole = tokenizer.tokenise(["abcdef"], 100).ids.tolist()
    assert tokenizer.tokenise(["abcdef"], 5).ids.tolist() == [whole[0], *whole[-4:]]


def test_offsets_point_into_the_text(tokenizer: TextTokenizer) -> None:
    text = "what is 的 panda"
    ids, starts, ends = tokenizer.offsets(text)
    assert len(ids) == len(starts) == len(ends)
    assert [text[s:e].strip() for s, e in zip(starts, ends, strict=True)] == ["what", "is", "", "的", "panda"]
    assert [len(part) for part in tokenizer.offsets("")] == [0, 0, 0]


def test_a_flag_of_the_config_does_not_take_the_files_closing_token(tmp_path: Path) -> None:
    byte_level_tokenizer(tmp_path)  # `add_bos_token: false` in its config, `<|endoftext|>` in its post-processor
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.prefix == ()
    assert tokenizer.suffix == (tokenizer.backend.token_to_id("<|endoftext|>"),)


def test_a_flag_of_the_config_adds_what_the_file_lacks(tmp_path: Path) -> None:
    byte_level_tokenizer(tmp_path)
    pipeline = json.loads((tmp_path / "tokenizer.json").read_text())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**pipeline, "post_processor": None}))
    assert read_tokenizer(tmp_path).suffix == ()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "add_eos_token": True}))
    assert read_tokenizer(tmp_path).suffix == (read_tokenizer(tmp_path).named["eos_token"],)


def test_without_tokenizer_json_the_vocabulary_is_used(tmp_path: Path) -> None:
    folder = build("bert", tmp_path)
    before = read_tokenizer(folder).tokenise(["What is THE panda?"], 64)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    np.testing.assert_array_equal(read_tokenizer(folder).tokenise(["What is THE panda?"], 64).ids, before.ids)


def test_many_threads_with_different_lengths(tokenizer: TextTokenizer) -> None:
    texts = [f"what is the panda {i} " * (1 + i % 5) for i in range(50)]
    lengths = [4 + i % 13 for i in range(64)]
    expected = {length: tokenizer.tokenise(texts, length).ids.tolist() for length in set(lengths)}
    barrier = threading.Barrier(8)

    def work(length: int) -> list[int]:
        if barrier.n_waiting < barrier.parties and not barrier.broken:
            barrier.wait(timeout=5)
        return tokenizer.tokenise(texts, length).ids.tolist()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, lengths)) == [expected[length] for length in lengths]


def test_it_travels_and_names_its_file(tokenizer: TextTokenizer, xlmr: Path, tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert copy.tokenise(["panda"], 8).ids.tolist() == tokenizer.tokenise(["panda"], 8).ids.tolist()
    assert load_tokenizer(EmbedderSpec(model=str(xlmr))).sha256 == tokenizer.sha256 == copy.sha256
    pipeline = json.loads((xlmr / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**pipeline, "normalizer": None}))
    (tmp_path / "tokenizer_config.json").write_text((xlmr / "tokenizer_config.json").read_text())
    assert read_tokenizer(tmp_path).sha256 != tokenizer.sha256


def continued(tokenizer: TextTokenizer, text: str) -> list[str]:
    """The tokens of the text that go on with a word."""
    return [tokenizer.names[i] for i in tokenizer.ids([text])[0] if tokenizer.continuing[i]]


def test_which_tokens_go_on_with_a_word_is_read_off_the_vocabularys_marks(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    packaged = load_tokenizer(EmbedderSpec(model="all-MiniLM-L6-v2"))
    assert continued(packaged, "really, photosynthesizing") == ["##yn", "##thes", "##izing"]
    assert continued(tokenizer, "what is the panda") == []
    byte_level_tokenizer(tmp_path)
    assert continued(read_tokenizer(tmp_path), "ab c.") == ["a", "b", "c"]  # its vocabulary has no "Ġc"


def test_a_module_chain_has_the_tokenizer_of_its_transformer(tmp_path: Path) -> None:
    """Inference-free SPLADE keeps its document model in a folder below the root."""
    folder = build_chain("inference_free", tmp_path)
    spec = EmbedderSpec(model=str(folder), model_class="sparse-encoder")
    assert load_tokenizer(spec).sha256 == load_preparation(spec).tokenizer.sha256
