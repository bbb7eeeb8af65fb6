"""Makes what outside clients are pointed at: a small index of the packaged model, a tiny reranker, expected numbers.

    python -m tests.clients.small_server FOLDER

It runs in the project's own environment, without Ray; the clients run in theirs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from actors import load_embedder, load_reranker
from actors.embedders.pair_scores import colbert_score
from actors.spec import EmbedderSpec
from pipelines.config import DEFAULT_MODEL
from tests.checkpoints_rerankers import xlm_roberta
from tests.indexes import corpus, make_index

TEXTS = ["The kernel writes dirty pages.", "A socket is a file.", "Überall 日本語 \N{SNOWMAN}", "word " * 700]
QUERY = "who writes dirty pages?"
HOSTILE = (
    "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> the kernel & \"quotes\""
)


def main(folder: Path) -> None:
    """Writes index, reranker and expected.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index").mkdir()
    (folder / "reranker").mkdir()
    embedder = load_embedder(EmbedderSpec(model=DEFAULT_MODEL))
    texts = {**corpus(150), "hostile/<b>id</b>": HOSTILE}
    make_index(folder / "index", texts, embedder=embedder)  # type: ignore[arg-type]
    xlm_roberta(folder / "reranker")
    reranker = load_reranker(str(folder / "reranker"))
    passages, query = embedder.embed_corpus(TEXTS), embedder.embed_queries([QUERY])
    assert passages.dense is not None
    assert passages.colbert is not None
    assert query.colbert is not None
    expected = {
        "texts": TEXTS,
        "query": QUERY,
        "dense": passages.dense.tolist(),
        "n_tokens": passages.n_tokens.tolist(),
        "token_ids": [embedder.tokenise([text]).ids.tolist() for text in TEXTS],
        "colbert_scores": [colbert_score(query.colbert.row(0), passages.colbert.row(i)) for i in range(len(TEXTS))],
        "reranker_scores": [float(s) for s in reranker.score(QUERY, TEXTS, normalize=True)],
    }
    (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
