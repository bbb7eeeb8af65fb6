"""One index, three models: dense of one, sparse of another, ColBERT of a third, searched as one hybrid."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import lance
import numpy as np
import pytest
from checkpoints_chains import build_chain
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from actors import load_embedder
from actors.spec import Output
from pipelines.cli import app
from pipelines.config import ConfigError, EmbedderConfig, InvalidRequest
from pipelines.config.settings import CodecConfig
from pipelines.indexing.build import build_index
from pipelines.indexing.stages import EncodeOutputs
from pipelines.retrieval.create import create_index
from pipelines.retrieval.index import Index, open_index
from pipelines.serving.app import create_app
from pipelines.serving.settings import ServeConfig
from tests.indexes import corpus

QUERY = "the scheduler reads dirty pages"
MODELS = {"dense": "mean_dense_tanh", "splade": "splade_bert", "late": "pylate"}
ONE_OUTPUT = ("splade_bert", "splade_modernbert", "inference_free", "pylate", "stanford", "multi_vector_expanded")
CHANNELS: dict[Output, str] = {"dense": "dense", "sparse": "splade", "colbert": "late"}
CHOSEN: dict[Output, str] = {"sparse": "splade", "colbert": "late"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: build_chain(kind, root / name) for name, kind in MODELS.items()}


def make(uri: Path, folders: dict[str, Path], names: tuple[str, ...], texts: dict[str, str]) -> str:
    embedders = [{"name": name, "model": str(folders[name]), "compute": {"dtype": "fp32"}} for name in names]
    index = create_index(uri, embedder=embedders, chunk={"mode": "tokens", "size": 60})
    index.upsert([{"doc_id": key, "text": text} for key, text in texts.items()])
    return str(uri)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> str:
    return make(tmp_path_factory.mktemp("three") / "index", folders, tuple(MODELS), corpus(40))


def test_each_output_is_scored_by_its_own_model(uri: str, folders: dict[str, Path], tmp_path: Path) -> None:
    index = open_index(uri)
    assert index.embedder_names == CHANNELS
    assert [c for c in index.channels if c != "bm25"] == ["dense", "sparse", "colbert"]
    hits = index.search(QUERY, k=5)
    for output, name in CHANNELS.items():
        alone = open_index(make(tmp_path / name, folders, (name,), corpus(40)))
        expected = {hit.doc_id: hit.scores[output] for hit in alone.search(QUERY, k=40, mode=output)}
        for hit in hits:
            assert hit.scores[output] == pytest.approx(expected[hit.doc_id], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    "kind", ["splade_bert", "splade_modernbert", "inference_free", "pylate", "stanford", "multi_vector_expanded"]
)
def test_one_model_with_one_output(kind: str, tmp_path: Path) -> None:
    """An index of such a model is built, searched by its channel and as a hybrid, and explained to the last part."""
    folder = build_chain(kind, tmp_path / "model")
    index = create_index(tmp_path / "index", embedder={"name": "m", "model": str(folder), "compute": {"dtype": "fp32"}})
    index.upsert([{"doc_id": key, "text": text + ", or not!"} for key, text in corpus(20).items()])
    index = open_index(tmp_path / "index")
    (output,) = index.embedder_names
    assert index.default_fusion.weights[output] > 0
    best = index.search(QUERY, k=3)[0]
    told = index.explain(QUERY, best.doc_id)
    assert told.score == pytest.approx(best.score, abs=1e-6)
    parts = [m.product for m in told.sparse] if output == "sparse" else [m.part for m in told.colbert]
    assert parts
    assert sum(parts) == pytest.approx(best.scores[output], rel=1e-4)


@pytest.mark.parametrize("kind", ["pylate", "stanford", "multi_vector", "multi_vector_expanded"])
def test_distinct_pooling_keeps_one_vector_per_scored_token(kind: str, tmp_path: Path) -> None:
    """These models score the first token and skip others; a job's actor and an upsert store the same."""
    folder = build_chain(kind, tmp_path / "model")
    codec = CodecConfig(colbert="float32", colbert_pooling="distinct")
    config = EmbedderConfig(name="m", model=str(folder), codec=codec)
    texts = ["the scheduler, the scheduler!", "dirty pages", "..."]
    index = create_index(tmp_path / "index", embedder=config.model_dump(exclude_unset=True))
    index.upsert([{"doc_id": str(i), "text": text} for i, text in enumerate(texts)])
    table = lance.dataset(str(tmp_path / "index" / "documents.lance")).to_table(["text", "m_colbert"])
    stored = {row["text"]: row["m_colbert"] for row in table.to_pylist()}
    model = load_embedder(config.spec())
    tokens = model.tokenise(texts)
    scored = model.scored_tokens(tokens, "passage")
    for i, text in enumerate(texts):
        part = slice(*tokens.offsets[i : i + 2])
        assert len(stored[text]) == len(set(tokens.ids[part][scored[part]].tolist()))
    columns = EncodeOutputs(config)(model.embed_tokens(tokens), tokens, model.colbert_ids)
    for text, vectors in zip(texts, columns["m_colbert"].to_pylist(), strict=True):
        np.testing.assert_allclose(np.array(vectors), np.array(stored[text]), atol=1e-6)


def test_explanations_show_the_tokens_of_each_model(uri: str) -> None:
    index = open_index(uri)
    hit = index.search(QUERY, k=1)[0]
    told = index.explain(QUERY, hit.doc_id)
    assert told.score == pytest.approx(hit.score, abs=1e-6)
    assert sum(match.product for match in told.sparse) == pytest.approx(told.channels["sparse"].score, rel=1e-4)
    assert sum(match.part for match in told.colbert) == pytest.approx(told.channels["colbert"].score, rel=1e-4)
    late, splade = index.encoders["colbert"].embedder, index.encoders["sparse"].embedder.tokenizer
    tokens = late.tokenise([QUERY], "query")
    asked = tokens.ids[late.scored_tokens(tokens, "query")]
    assert [match.query_token for match in told.colbert] == [late.tokenizer.decode([i]).strip() for i in asked]
    assert all(match.token == splade.decode([match.token_id]).strip() for match in told.sparse)


def test_channels_of_one_search(uri: str) -> None:
    index = open_index(uri)
    some = index.search(QUERY, k=3, channels={"sparse": "splade", "colbert": "late"})
    assert set(some[0].scores) == {"sparse", "colbert"} | ({"bm25"} & set(index.channels))
    opened = open_index(uri, channels={"sparse": "splade", "colbert": "late"})
    assert opened.search(QUERY, k=3).ids == some.ids
    assert opened.explain(QUERY, some.ids[0]).score == pytest.approx(some[0].score)
    one = index.search(QUERY, k=3, channels={"dense": "dense"}, mode="dense")
    assert one.ids == open_index(uri, embedder="dense").search(QUERY, k=3, mode="dense").ids
    again: Index = pickle.loads(pickle.dumps(opened))  # noqa: S301 - our own bytes
    assert again.embedder_names == {"sparse": "splade", "colbert": "late"}


def test_models_may_be_passed_in_by_name(uri: str) -> None:
    loaded = {encoder.name: encoder.embedder for encoder in open_index(uri).encoders.values()}
    assert open_index(uri, embedder=loaded).encoders["colbert"].loaded is loaded["late"]
    assert open_index(uri, embedder=loaded["late"]).embedder_names == {"colbert": "late"}
    with pytest.raises(ConfigError, match="embedder: this search takes splade, late; give a mapping"):
        open_index(uri, embedder=loaded["late"], channels=CHOSEN)
    with pytest.raises(ConfigError, match="embedder: the index has no 'x'"):
        open_index(uri, embedder={"x": loaded["late"]})


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"dense": "splad"}, r"channels.dense: the index has no embedder 'splad'; it has dense, splade, late; did you"),
        ({"dense": "splade"}, "channels.dense: 'splade' stores no dense output; it stores sparse"),
        ({"bm25": "splade"}, "channels: 'bm25' takes no model; models give dense, sparse, colbert"),
        ({}, "channels: name an embedder for at least one channel"),
    ],
)
def test_wrong_channels(uri: str, channels: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_index(uri, channels=channels)
    with pytest.raises(InvalidRequest, match=message):
        open_index(uri).search(QUERY, channels=channels)  # type: ignore[arg-type]


def test_embedder_and_channels_exclude_each_other(uri: str) -> None:
    with pytest.raises(ConfigError, match="embedder and channels: name one embedder, or one for each channel"):
        open_index(uri, embedder="late", channels=CHANNELS)


def test_models_that_read_less_than_a_chunk_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """ColBERT checkpoints often read fewer tokens than others: chunks of one model are cut short by the other."""
    embedders = [{"name": "dense", "model": str(folders["splade"])}, {"name": "late", "model": str(folders["late"])}]
    with pytest.raises(ConfigError, match=r"embedders: .*cut for 'dense', up to 200 tokens .* 'late' reads 90"):
        create_index(tmp_path / "index", embedder=embedders)


def test_upsert_writes_the_columns_of_every_model(folders: dict[str, Path], tmp_path: Path) -> None:
    uri = make(tmp_path / "index", folders, tuple(MODELS), corpus(6))
    open_index(uri, embedder="splade").upsert([{"doc_id": "new", "text": "a zebra crossing"}])
    table = open_index(uri).snapshot.dataset.to_table(filter="doc_id = 'new'").to_pylist()[0]
    assert np.linalg.norm(table["dense_dense"]) == pytest.approx(1, abs=1e-5)
    assert table["splade_sparse"]["indices"]
    assert table["late_colbert"]


def test_commands_take_channels(uri: str) -> None:
    index = open_index(uri)
    for arguments, channels in (([], None), (["--channels", "sparse=splade, colbert=late"], CHOSEN)):
        result = CliRunner().invoke(app, ["search", uri, QUERY, "--json", *arguments])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)[0]["hits"]
        expected = index.search(QUERY, channels=channels)
        assert [hit["chunk_id"] for hit in found] == [hit.chunk_id for hit in expected]
        told = CliRunner().invoke(app, ["explain", uri, QUERY, expected[0].doc_id, "--json", *arguments])
        assert json.loads(told.stdout)["score"] == pytest.approx(expected[0].score)
    wrong = CliRunner().invoke(app, ["search", uri, QUERY, "--channels", "splade"])
    assert "--channels: 'splade': expected CHANNEL=EMBEDDER" in wrong.output


def test_a_server_offers_the_joined_view_and_one_per_embedder(uri: str, folders: dict[str, Path]) -> None:
    with TestClient(create_app(ServeConfig(indexes=(f"three={uri}",))), base_url="http://127.0.0.1") as client:
        described = {i["name"]: i for i in client.get("/v1/indexes").json()["indexes"]}
        assert list(described) == ["three", "three/dense", "three/splade", "three/late"]
        assert described["three"]["embedder"] == "dense=dense, sparse=splade, colbert=late"
        assert described["three"]["model"] == "dense, splade, late"
        for path in ("/v1/indexes", "/v1/models", "/metrics"):
            assert str(folders["late"].parent) not in client.get(path).text
        for model in ("late", str(folders["late"])):
            with_late = client.post("/v1/search", json={"query": QUERY, "index": model}).json()
            assert with_late["index"] == "three/late"
        index = open_index(uri)
        for name, channels in (("three", None), ("three", CHOSEN), ("three/late", None)):
            body = {"query": QUERY, "k": 3, "index": name, **({"channels": channels} if channels else {})}
            answer = client.post("/v1/search", json=body).json()["results"][0]
            view = index if name == "three" else open_index(uri, embedder="late")
            expected = view.search(QUERY, k=3, channels=channels)
            assert [hit["chunk_id"] for hit in answer["hits"]] == [hit.chunk_id for hit in expected]
        told = client.post("/v1/explain", json={"query": QUERY, "id": "d0003", "channels": CHOSEN}).json()
        assert set(told["explanation"]["channels"]) == set(CHOSEN) | ({"bm25"} & set(index.channels))
        refused = client.post("/v1/search", json={"query": QUERY, "channels": {"dense": "late"}})
        assert refused.status_code == 400
        assert "channels.dense: 'late' stores no dense output" in refused.text


@pytest.mark.ray
def test_a_job_builds_an_index_of_an_inference_free_model(tmp_path: Path) -> None:
    """Its tokenizer lies in a folder below the root, and its queries need no model."""
    folder, uri = build_chain("inference_free", tmp_path / "model"), tmp_path / "index"
    rows = [{"id": key, "text": text} for key, text in corpus(20).items()]
    build_index(
        rows, index=uri, embedders=[{"name": "m", "model": str(folder)}], ray={"num_cpus": 4, "progress": False}
    )
    assert len(open_index(uri).search(QUERY, k=3, mode="sparse")) == 3


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_builds_and_stores_the_channels(folders: dict[str, Path], tmp_path: Path) -> None:
    """A build of three models with a choice to make; a second build changes the stored choice and nothing else."""
    rows = [{"id": key, "text": text} for key, text in corpus(60).items()]
    embedders = [{"name": name, "model": str(folder)} for name, folder in folders.items()]
    embedders.append({"name": "other", "model": str(folders["late"]), "query_max_length": 16})
    settings = {"embedders": embedders, "chunk": {"size": 60}, "ray": {"num_cpus": 4, "progress": False}}
    uri = tmp_path / "index"
    build_index(rows, index=uri, search={"channels": CHANNELS}, **settings)
    index = open_index(uri)
    assert index.embedder_names == CHANNELS
    hits = index.search(QUERY, k=3)
    assert set(hits[0].scores) == {"dense", "sparse", "colbert", "bm25"}
    assert index.explain(QUERY, hits[0].doc_id).score == pytest.approx(hits[0].score, abs=1e-6)
    again = build_index(rows, index=uri, search={"channels": {"dense": "dense", "colbert": "other"}}, **settings)
    assert again.unchanged == 60
    assert open_index(uri).embedder_names == {"dense": "dense", "colbert": "other"}
    with pytest.raises(ConfigError, match=r"search.channels.dense: 'late' stores no dense output"):
        build_index(rows, index=uri, search={"channels": {"dense": "late"}}, **settings)
