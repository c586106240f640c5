"""What the service counts of itself, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figures:
    """Of one application.

    Attributes:
        requests: answered, by path, method and status.
        seconds: that an answer took, by path.
        active: requests that are being answered.
        batch: samples in a pass of a model.
        model_seconds: of a pass.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own = self._registry
        self.requests = Counter("dmpt_requests", "Requests answered", ["path", "method", "status"], registry=own)
        self.seconds = Histogram(
            "dmpt_request_seconds",
            "Seconds from the head of a request to its answer",
            ["path"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=own,
        )
        self.active = Gauge("dmpt_requests_active", "Requests that are being answered", registry=own)
        self.batch = Histogram(
            "dmpt_batch_samples", "Samples in a pass of a model", ["model"], buckets=(1, 2, 4, 8, 12, 16), registry=own
        )
        self.model_seconds = Histogram("dmpt_model_seconds", "Seconds of a pass of a model", ["model"], registry=own)

    def gauge(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A number that is asked for when it is told."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
