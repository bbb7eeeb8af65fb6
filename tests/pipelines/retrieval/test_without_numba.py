"""Where numba is absent or switched off, numpy gives the same answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.search_indexes.postings import update_postings
from tests.indexes import corpus, make_index

SCRIPT = """
import json, sys
if sys.argv[2] == "absent":
    sys.modules["numba"] = None
from pipelines.retrieval.index import open_index
from actors.kernels.jit import HAS_NUMBA
from pipelines.search_indexes.postings import update_postings
from tests.indexes import WordEmbedder
index = open_index(sys.argv[1], embedder=WordEmbedder())
assert len(index.channels["sparse"].index.segments) == 1
queries = ["scheduler reads dirty pages", "timer case 17", "the kernel", "page page page cache 3 of batch4", "zzz"]
answers = {
    f"{mode} {where} {query}": [[hit.chunk_id, hit.score] for hit in index.search(query, k=40, mode=mode, where=where)]
    for mode in ("sparse", "dense", "colbert", "hybrid") for where in (None, "chunk_id < 'd0200'") for query in queries
}
print(json.dumps([HAS_NUMBA, answers]))
"""


def answers(uri: str, case: str) -> tuple[bool, dict[str, list]]:
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1" if case == "off" else "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, uri, case], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    compiled, found = json.loads(done.stdout)
    return compiled, found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, list]]:
    folder: Path = tmp_path_factory.mktemp("plain")
    uri = make_index(folder, corpus(), codec="rotated_sign", full_text=False)
    update_postings(uri)
    compiled, found = answers(uri, "there")
    assert compiled
    return uri, found


@pytest.mark.parametrize("numba", ["absent", "off"])
def test_the_answers_are_the_same(case: tuple[str, dict[str, list]], numba: str) -> None:
    uri, expected = case
    compiled, found = answers(uri, numba)
    assert not compiled
    assert any(len(hits) == 40 for hits in found.values())
    for name, hits in expected.items():
        assert [score for _, score in found[name]] == pytest.approx([score for _, score in hits], rel=1e-5, abs=1e-6)
        if name.startswith("sparse"):
            assert found[name] == hits
