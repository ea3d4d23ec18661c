"""Counters, gauges and histograms, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[str, ...]


class Metric:
    """A name, what it means, and the names of its labels."""

    kind = "untyped"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help, tuple(labels)

    def lines(self) -> Iterable[str]:
        """Samples, one a line."""
        raise NotImplementedError

    def _named(self, values: Labels, *more: tuple[str, str]) -> str:
        pairs = [*zip(self.labels, values, strict=True), *more]
        inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs)
        return f"{{{inside}}}" if inside else ""


class Counter(Metric):
    """What only rises."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, help, labels)
        self._values: dict[Labels, float] = {}

    def add(self, n: float, *labels: str) -> None:
        """Count n more."""
        self._values[labels] = self._values.get(labels, 0) + n

    def value(self, *labels: str) -> float:
        """The count so far."""
        return self._values.get(labels, 0)

    def lines(self) -> Iterable[str]:
        for labels, value in sorted(self._values.items()):
            yield f"{self.name}{self._named(labels)} {value:.10g}"


class Gauge(Counter):
    """What is now."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        """Put a value in the place of the last."""
        self._values[labels] = value

    def clear(self) -> None:
        """Forget all values, as before they are set anew."""
        self._values.clear()


class Histogram(Metric):
    """How often a value fell into each of some ranges."""

    kind = "histogram"

    def __init__(
        self, name: str, help: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        super().__init__(name, help, labels)
        self._bounds = tuple(bounds)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Note one value."""
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterable[str]:
        for labels, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip([*map(str, self._bounds), "+Inf"], counts, strict=True):
                total += count
                yield f"{self.name}_bucket{self._named(labels, ('le', bound))} {total}"
            yield f"{self.name}_sum{self._named(labels)} {self._sums[labels]:.10g}"
            yield f"{self.name}_count{self._named(labels)} {total}"


class Figures:
    """All that the server counts."""

    def __init__(self) -> None:
        self.requests = Counter(
            "edgelm_requests_total", "Requests answered.", ["route", "method", "code"]
        )
        self.duration = Histogram(
            "edgelm_request_duration_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            SECONDS,
        )
        self.queue_wait = Histogram(
            "edgelm_queue_wait_seconds", "Before a worker took a request.", ["model"], SECONDS
        )
        self.first_token = Histogram(
            "edgelm_first_token_seconds", "To the first piece of an answer.", ["model"], SECONDS
        )
        self.batch_texts = Histogram(
            "edgelm_batch_texts", "Texts that went to a worker at once.", ["model"], SIZES
        )
        self.tokens = Counter("edgelm_tokens_total", "Tokens computed.", ["model", "kind"])
        self.rejected = Counter("edgelm_rejected_total", "Requests refused.", ["reason"])
        self.restarts = Counter("edgelm_worker_restarts_total", "Workers that ended.", ["model"])
        self.swaps = Counter("edgelm_swaps_total", "New versions put in place.", ["model"])
        self.queue_depth = Gauge("edgelm_queue_depth", "Requests that wait.", ["model"])
        self.queue_tokens = Gauge("edgelm_queue_tokens", "Tokens that wait, about.", ["model"])
        self.running = Gauge("edgelm_requests_running", "Requests in a worker.", ["model"])
        self.ready = Gauge("edgelm_model_ready", "Whether the model takes requests.", ["model"])
        self.memory = Gauge(
            "edgelm_worker_memory_bytes", "Resident memory of the worker.", ["model"]
        )
        self.model_info = Gauge(
            "edgelm_model_info",
            "Always 1.",
            ["name", "digest", "version", "release", "variant"],
        )

    def text(self) -> str:
        """The whole page."""
        metrics = [m for m in vars(self).values() if isinstance(m, Metric)]
        lines: list[str] = []
        for metric in metrics:
            lines += [
                f"# HELP {metric.name} {metric.help}",
                f"# TYPE {metric.name} {metric.kind}",
                *metric.lines(),
            ]
        return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
