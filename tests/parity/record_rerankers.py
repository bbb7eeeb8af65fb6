"""Records the reranker goldens with FlagEmbedding 1.4.2. Run it once in each environment, from the repository root:

    python tests/parity/record_rerankers.py legacy    # transformers 4.46.3: encoders, layerwise, lightweight
    python tests/parity/record_rerankers.py parity    # transformers 5.23.0: plain LLM rerankers

No release of transformers runs all four classes. Encoders are recorded on the old one because only that one joins the
pair as token ids; on the new one FlagEmbedding decodes the ids and tokenises the text again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from checkpoints_rerankers import PAIRS, build, lora  # noqa: E402
from reranker_cases import CASES, Case  # noqa: E402


def score(case: Case, folder: Path) -> Any:
    import FlagEmbedding

    checkpoint = build(case.kind, folder / "model", **case.checkpoint)
    load = dict(case.load)
    if case.lora:
        load["peft_path"] = str(lora(folder / "adapter", checkpoint))
    front = getattr(FlagEmbedding, case.flag_class)
    batches = [[pair] for pair in PAIRS] if case.fresh else [PAIRS]
    scores = [front(str(checkpoint), devices="cpu", **load).compute_score(b, **case.call) for b in batches]
    return [score for batch in scores for score in batch]


def main(env: str) -> None:
    goldens = {}
    for name, case in CASES.items():
        if case.env == env:
            with tempfile.TemporaryDirectory() as folder:
                goldens[name] = score(case, Path(folder))
    lines = [f'"{name}": {json.dumps(scores)}' for name, scores in goldens.items()]
    (HERE / f"rerankers_{env}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
