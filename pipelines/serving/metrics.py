"""Exports the server's counters and timings to Prometheus at `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Holds the metrics of one application in its own registry, so that two in one process stay separate."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered.", "path", "method", "status")
        self.latency = self._histogram("request_seconds", "From the first byte to the answer.", SECONDS, "path")
        self.stages = self._histogram("stage_seconds", "Time in each stage of an answer.", SECONDS, "stage")
        self.batches = self._histogram("batch_texts", "Texts encoded, or queries searched, together.", SIZES, "kind")
        self.queued = self._gauge("queued_texts", "Texts that wait to be encoded or searched.", "kind")
        self.active = self._gauge("active_requests", "Requests that are being answered.")
        self.refused = self._counter("refused_requests", "Requests refused because too many were being answered.")
        self.version = self._gauge("index_version", "Version of the index that answers.", "index")
        self.rows = self._gauge("index_rows", "Rows of the version that answers.", "index")
        self.opened = self._gauge("index_opened_seconds", "When that version was opened, in Unix time.", "index")
        self.refreshes = self._counter("index_refreshes", "New versions opened, and failures to.", "index", "outcome")
        self.model = Info("model", "Model behind an index.", ["index"], namespace="tridex", registry=self.registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, namespace="tridex", registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(name, what, labels, namespace="tridex", registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, what, labels, namespace="tridex", registry=self.registry, buckets=buckets)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times one stage of a request."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.stages.labels(name).observe(time.perf_counter() - begun)

    def text(self) -> bytes:
        """Formats the metrics in Prometheus's text format."""
        return generate_latest(self.registry)
