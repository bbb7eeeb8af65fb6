"""Records the goldens of cross-encoders with sentence-transformers 6.2 and transformers. From the repository root:

python tests/parity/record_cross_encoders.py [KIND ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from checkpoints_cross_encoders import CROSS_ENCODERS, build_cross_encoder, pairs_of  # noqa: E402
from checkpoints_rerankers import PAIRS  # noqa: E402

QUERY = 5
"""The pair whose query ranks all passages."""


def record(folder: Path) -> dict[str, Any]:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu")
    ranked = model.rank(PAIRS[QUERY][0], [passage for _, passage in PAIRS], batch_size=1)
    return {
        "scores": model.predict(pairs_of(folder.name), batch_size=1),
        "order": np.array([found["corpus_id"] for found in ranked], np.int32),
        "ranked": np.array([found["score"] for found in ranked], np.float32),
    }


def record_model_card(folder: Path) -> dict[str, Any]:
    """Qwen3-Reranker's model card, one pair at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    no, yes = tokenizer.convert_tokens_to_ids("no"), tokenizer.convert_tokens_to_ids("yes")
    head = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    tail = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (head, tail))
    task = "Given a web search query, retrieve relevant passages that answer the query"

    def score(query: str, document: str) -> float:
        text = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
        limit = 8192 - len(before) - len(after)
        ids = tokenizer(text, truncation="longest_first", max_length=limit)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + ids + after])).logits[0, -1]
        return float(torch.nn.functional.log_softmax(torch.stack([logits[no], logits[yes]]), 0)[1].exp())

    ranked = np.array([score(PAIRS[QUERY][0], passage) for _, passage in PAIRS], np.float32)
    order = np.argsort(-ranked, kind="stable").astype(np.int32)
    return {"scores": np.array([score(*pair) for pair in PAIRS], np.float32), "order": order, "ranked": ranked[order]}


def main(kinds: list[str]) -> None:
    for kind in kinds or CROSS_ENCODERS:
        with tempfile.TemporaryDirectory() as made:
            folder = build_cross_encoder(kind, Path(made) / kind)
            arrays = record_model_card(folder) if kind.startswith("Qwen3") else record(folder)
            print(kind, np.round(arrays["scores"][:6], 4))
            np.savez_compressed(HERE / f"cross_encoder_{kind.lower().replace('-', '_')}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1:])
