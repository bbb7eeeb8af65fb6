"""Evaluates every channel and the hybrid on judged queries, with intervals and a significance test against BM25."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from actors.output_paths import refuse_file
from pipelines.config import ConfigError, SearchOptions
from pipelines.evaluation.metrics import MEASURES, Doubles, Run, interval, means, paired_p, per_query
from pipelines.evaluation.qrels import Qrels, judged
from pipelines.evaluation.run_file import write_run
from pipelines.evaluation.runs import channel_run, fused_run, rank, reranked_run
from pipelines.retrieval.fusion import FusionRule
from pipelines.retrieval.index import Index

BASELINE = "bm25"
DECIDING = next(iter(MEASURES))


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Holds the runs on one set of judged queries. values: for each run and measure one number per query."""

    query_ids: tuple[str, ...]
    runs: Mapping[str, Run]
    values: Mapping[str, Mapping[str, Doubles]]
    unjudged_queries: int
    """Queries without a relevant document: left out."""
    unknown_documents: int
    """Relevant documents that the index does not hold: they count as missed."""
    unknown_queries: int
    """RankedQuery queries whose text is not among the queries: left out."""

    def means(self) -> dict[str, dict[str, float]]:
        return {name: means(values) for name, values in self.values.items()}

    def versus(self, baseline: str = BASELINE) -> dict[str, dict[str, float]]:
        """Returns the difference in nDCG@10 to the baseline run, and the p of a paired randomisation test."""
        if baseline not in self.values:
            return {}
        base = self.values[baseline][DECIDING]
        others = {name: values[DECIDING] for name, values in self.values.items() if name != baseline}
        return {n: {"difference": float((v - base).mean()), "p": paired_p(v, base)} for n, v in others.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values: `runs` holds the means; intervals and tests have keys of their own."""
        return {
            "runs": self.means(),
            "intervals": {n: {m: list(interval(v)) for m, v in values.items()} for n, values in self.values.items()},
            f"versus_{BASELINE}": self.versus(),
            "queries": len(self.query_ids),
            "unjudged_queries": self.unjudged_queries,
            "unknown_queries": self.unknown_queries,
            "unknown_documents": self.unknown_documents,
        }

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row per run: the means, the interval of nDCG@10, difference and p against BM25."""
        versus = self.versus()
        rows = {}
        for name, values in self.values.items():
            low, high = interval(values[DECIDING])
            other = versus.get(name, {})
            test = {"vs bm25": other.get("difference"), "p": other.get("p")}
            rows[name] = {**means(values), "low": low, "high": high, **test}
        return pd.DataFrame.from_dict(rows, orient="index")

    def text(self) -> str:
        """Returns the table for a terminal."""
        versus = self.versus()
        lines = [f"{'run':12} {'nDCG@10':>8} {'95% interval':>17} {'R@100':>7} {'MRR@10':>7} {'MAP':>7}  against bm25"]
        for name, values in self.values.items():
            low, high = interval(values[DECIDING])
            mean = means(values)
            test = f"{versus[name]['difference']:+.4f} (p {versus[name]['p']:.4f})" if name in versus else ""
            rest = " ".join(f"{mean[m]:7.4f}" for m in ("R@100", "MRR@10", "MAP"))
            lines.append(f"{name:12} {mean[DECIDING]:8.4f}  {low:.4f} to {high:.4f} {rest}  {test}".rstrip())
        return "\n".join([*lines, self._note()])

    def _note(self) -> str:
        return (
            f"{len(self.query_ids)} queries; {self.unjudged_queries} without a relevant document left out; "
            f"{self.unknown_queries} judged queries have no text; {self.unknown_documents} relevant documents are not "
            "in the index"
        )

    __repr__ = text

    def _repr_html_(self) -> str:
        styled = self.to_pandas().to_html(float_format=lambda value: f"{value:.4f}", na_rep="", border=0)
        return f"{styled}<div style='color:#888;font-size:12px'>{escape(self._note())}</div>"

    def write_runs(self, folder: str | Path, *, force: bool = False) -> list[Path]:
        """Writes a TREC run file for each run: `query Q0 document rank score name`.

        OutputExists (a ValueError), before any is written, where one is there and may not be replaced.
        """
        for name in self.runs:
            refuse_file(Path(folder) / f"{name}.trec", force=force, name="run file")
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for name, run in self.runs.items():
            path = Path(folder) / f"{name.replace('/', '_')}.trec"
            ranked = ((query, dict(sorted(run[query].items(), key=_score_then_id))) for query in run)
            write_run(path, ranked, name)
            paths.append(path)
        return paths


def _score_then_id(item: tuple[str, float]) -> tuple[float, str]:
    return -item[1], item[0]


def evaluate(
    index: Index,
    queries: Mapping[str, str],
    qrels: Qrels,
    *,
    rules: Mapping[str, FusionRule] | None = None,
    rerankers: Mapping[str, Any] | None = None,
    rerank_k: int = 100,
    candidates: int = 200,
) -> Evaluation:
    """Measures each channel, the default hybrid, reciprocal rank fusion, and the additional runs.

    queries: id to text. qrels: query id to document id to grade. rules: further fusions by name. rerankers: objects
    with `.score(query, passages)` by name, over the best `rerank_k` of the hybrid. candidates: rows of each channel,
    at least 100, or recall@100 would be cut.
    """
    if candidates < 100:
        raise ConfigError(f"candidates: must be at least 100 for recall@100, got {candidates}")
    kept = judged(queries, qrels)
    ranked = rank(index, kept, candidates)
    runs = {str(channel): channel_run(ranked, channel) for channel in index.channels}
    fusions = {
        "hybrid": index.default_fusion,
        "rrf": FusionRule("rrf", dict.fromkeys(index.channels, 1.0)),
        **(rules or {}),
    }
    runs |= {name: fused_run(ranked, rule) for name, rule in fusions.items()}
    for name, reranker in (rerankers or {}).items():
        runs[name] = reranked_run(index, ranked, index.default_fusion, reranker, rerank_k)
    ids = tuple(kept)
    return Evaluation(
        ids,
        runs,
        {name: per_query(run, qrels, ids) for name, run in runs.items()},
        len(queries) - len(kept),
        _count_unknown(index, {d for q in ids for d, grade in qrels[q].items() if grade > 0}),
        len(qrels.keys() - queries.keys()),
    )


def _count_unknown(index: Index, documents: set[str]) -> int:
    """Counts the ids that the index does not hold."""
    wanted = pa.array(sorted(documents), pa.string())
    found: set[str] = set()
    for batch in index.snapshot.scan(["doc_id"], 65_536):
        column = batch.column(0)
        found.update(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return len(documents - found)


def rules_of(index: Index, configs: Mapping[str, SearchOptions]) -> dict[str, FusionRule]:
    """Returns the fusion of each search file by its name, as `evaluate` takes them.

    ConfigError for a file that takes its channels from other embedders: one evaluation has one set of channels.
    """
    other = next((n for n, o in configs.items() if o.channels is not None and o.channels != index.embedder_names), None)
    if other is not None:
        raise ConfigError(f"{other}: channels: the index was opened with {index.embedder_names}; evaluate it by itself")
    return {name: index.request(options).rule for name, options in configs.items()}
