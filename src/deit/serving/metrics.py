"""What the server measures, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of a server, each by the name of the model."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("deit_requests", "Requests by route and status.", ["route", "status"], registry=registry)
        self.queued = Gauge("deit_queued_images", "Images that wait.", ["model"], registry=registry)
        self.queue_age = Histogram(
            "deit_queue_seconds", "Time that an image waited.", ["model"], buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "deit_batch_images",
            "Images of a batch, by why it left the queue.",
            ["model", "reason"],
            buckets=BATCHES,
            registry=registry,
        )
        self.decode_seconds = Histogram(
            "deit_decode_seconds", "Time to decode and resize an image.", ["model"], buckets=SECONDS, registry=registry
        )
        self.model_seconds = Histogram(
            "deit_model_seconds", "Time of a batch in the model.", ["model"], buckets=SECONDS, registry=registry
        )

    def text(self) -> bytes:
        """Returns the metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
