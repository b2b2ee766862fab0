"""What `/metrics` says, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest

from tools.serving.generations import Generations


class ServerMetrics:
    """Counts of one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "siglip_jax_requests", "Requests by address and status.", ["address", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "siglip_jax_request_seconds", "From a request to its answer.", ["address"], registry=self._registry
        )
        self._items = Gauge(
            "siglip_jax_index_items", "Items of the index.", ["side", "generation"], registry=self._registry
        )
        self._encoded = Gauge(
            "siglip_jax_encoded_queries", "Pictures and texts encoded so far.", ["side"], registry=self._registry
        )
        self._batches = Gauge(
            "siglip_jax_encoded_batches", "Batches that they were encoded in.", ["side"], registry=self._registry
        )
        self._broken = Gauge(
            "siglip_jax_index_broken", "1 where the newest generation cannot be read.", ["source"],
            registry=self._registry,
        )  # fmt: skip
        self._overlap = Summary(
            "siglip_jax_compare_overlap", "Share of the first items that the candidate has too.",
            registry=self._registry,
        )  # fmt: skip
        self._rbo = Summary(
            "siglip_jax_compare_rank_biased_overlap", "Of the candidate's order.", registry=self._registry
        )
        self._candidate = Histogram(
            "siglip_jax_compare_candidate_seconds", "Until the candidate answered.", registry=self._registry
        )

    def compared(self, overlap: float, rank_biased_overlap: float, seconds: float) -> None:
        self._overlap.observe(overlap)
        self._rbo.observe(rank_biased_overlap)
        self._candidate.observe(seconds)

    def text(self, generations: Generations) -> bytes:
        standing = generations.standing
        self._items.clear()
        for side, generation in (("active", standing.active), ("candidate", standing.candidate)):
            if generation is not None:
                self._items.labels(side, generation.name).set(len(generation.answers.index))
                if generation.queue is not None:
                    self._encoded.labels(side).set(generation.queue.encoded)
                    self._batches.labels(side).set(generation.queue.batches)
        for source in generations.sources:
            self._broken.labels(source).set(source in generations.broken)
        return generate_latest(self._registry)
