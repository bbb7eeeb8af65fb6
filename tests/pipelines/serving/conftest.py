"""Applications over small indexes, and a client that talks to them in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from pipelines.retrieval.encoder import QueryEncoder
from pipelines.serving.app import create_app
from pipelines.serving.settings import ServeConfig
from tests.indexes import WordEmbedder, corpus, make_index

Client = Callable[..., TestClient]


@pytest.fixture(scope="session")
def word_index(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 sentences with a tenant, a note that is a number for tenant a alone, and a year."""
    n = 120
    metadata = {
        "tenant": pa.array(["ab"[i % 2] for i in range(n)]),
        "note": pa.array([str(i) if i % 2 == 0 else f"secret of b {i}" for i in range(n)]),
        "year": pa.array([2000 + i % 7 for i in range(n)]),
    }
    return make_index(tmp_path_factory.mktemp("words"), corpus(n), metadata=metadata)


@pytest.fixture(scope="session")
def _word_model() -> Iterator[None]:
    """Indexes of `make_index` load their embedder, as others load a model; other indexes load theirs."""
    real = QueryEncoder._load

    def load(self: QueryEncoder) -> Any:
        described = self.identity.embedders[self.name]
        if described["model"] not in ("words", "others"):
            return real(self)
        return WordEmbedder(described["model"], described["outputs"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QueryEncoder, "_load", load)
        yield


@pytest.fixture(scope="session")
def started(_word_model: None) -> Iterator[Client]:
    """Starts an application: `started(uri, limits={...}, ...)` gives a client of it."""
    with ExitStack() as stack:

        def start(*indexes: str, **settings: Any) -> TestClient:
            app = create_app(ServeConfig.model_validate({"indexes": indexes, **settings}))
            client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
            return stack.enter_context(client)

        yield start


@pytest.fixture(scope="session")
def client(started: Client, word_index: str) -> TestClient:
    """A server of `word_index` under the name `words`, without keys."""
    return started(f"words={word_index}")


def write_keys(path: Path, **keys: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Writes a key file; returns the headers that each key's requests carry."""
    import yaml

    from pipelines.serving.keys import hash_key

    entries = [{"name": name, "sha256": hash_key(f"token of {name}"), **key} for name, key in keys.items()]
    path.write_text(yaml.safe_dump({"keys": entries}))
    return {name: {"Authorization": f"Bearer token of {name}"} for name in keys}
