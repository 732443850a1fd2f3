"""Prometheus metrics. Labels are route templates, statuses and other fixed values, never what a client sent."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The metrics of one server, in a registry of its own, so that two servers in one process do not collide."""

    def __init__(self) -> None:
        disable_created_metrics()  # would add a second series for each
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "peg_rag_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "peg_rag_request_seconds", "Time to the end of the answer.", ["route"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.texts = Counter("peg_rag_embedded_texts", "Texts embedded.", ["input_type"], registry=self.registry)
        self.tokens = Counter("peg_rag_embedded_tokens", "Tokens embedded.", ["input_type"], registry=self.registry)
        self.generated = Counter(
            "peg_rag_generated_answers", "Answers by the language model.", ["outcome"], registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def add_gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when the metrics are read."""
        Gauge(f"peg_rag_{name}", help_text, registry=self.registry).set_function(value)

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
