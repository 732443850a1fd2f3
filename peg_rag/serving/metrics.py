"""What Prometheus reads at `/metrics`. Labels are route templates and statuses, never what a client chose."""

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
    """The server's own registry, so that two servers in one process do not meet."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use here
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

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """A gauge that is asked for its value when it is read."""
        Gauge(f"peg_rag_{name}", help_text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
