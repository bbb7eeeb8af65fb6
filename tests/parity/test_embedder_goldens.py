"""Every embedder class against FlagEmbedding 1.4.2's numbers, over 48 texts. The goldens: record_embedders.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from embedder_cases import CASES, TEXTS, checkpoint, run

import actors
from actors import ComputeSpec, EmbedderSpec, load_embedder
from actors.text.tokenizer import read_tokenizer

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_upstreams(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    options = {"use_fp16": False, "devices": "cpu", **case.load}
    model = getattr(actors, case.flag_class)(str(checkpoint(case, tmp_path)), **options)
    ours = run(model, case)
    goldens = np.load(HERE / f"embedder_{name}.npz")
    assert set(ours) == set(goldens.files)
    for part in goldens.files:
        np.testing.assert_allclose(ours[part], goldens[part], atol=2e-5, rtol=0, err_msg=f"{name} {part}")


def test_the_packaged_model_has_sentence_transformers_vectors() -> None:
    model = load_embedder(EmbedderSpec(model="all-MiniLM-L6-v2", compute=ComputeSpec(dtype="fp32", device="cpu")))
    goldens = np.load(HERE / "minilm_sentence_transformers.npz")
    batch = model.embed_corpus(TEXTS, ["dense"])
    np.testing.assert_allclose(batch.dense, goldens["dense"], atol=2e-5, rtol=0)
    assert batch.n_tokens.max() == 256
    front = actors.FlagAutoModel.from_finetuned("all-MiniLM-L6-v2", use_fp16=False, devices="cpu")
    np.testing.assert_allclose(front.encode(TEXTS)["dense_vecs"], goldens["dense"], atol=2e-5, rtol=0)


def test_tokenizer_json_is_honoured_where_transformers_rebuilds_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = checkpoint(CASES["xlmr_mean"], tmp_path)
    rebuilt, ours = AutoTokenizer.from_pretrained(folder), read_tokenizer(folder).tokenise(TEXTS, 100_000)
    differ = [
        i for i, text in enumerate(TEXTS)
        if rebuilt(text)["input_ids"] != ours.ids[ours.offsets[i] : ours.offsets[i + 1]].tolist()
    ]  # fmt: skip
    assert differ == json.loads((HERE / "xlmr_rebuilt.json").read_text())
