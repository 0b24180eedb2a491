"""What is counted, in Prometheus' form."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from qwen_edge.runtime.events import Event

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

Gauges = Callable[[], Iterable[tuple[str, str, float]]]
"""Returns name, help and value of what is so now."""


class Metrics:
    """Counters of one server.

    Args:
        gauges: What is read at the time of asking.

    State:
        Only grows.
    """

    def __init__(self, gauges: Gauges = lambda: ()) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests for answers by outcome", "outcome")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("cached_tokens", "Tokens of prompts that were in the cache")
        self._new = self._counter("completion_tokens", "Tokens of answers, reasoning included")
        self._first = self._histogram("first_token_seconds", "Time to the first token")
        self._whole = self._histogram("answer_seconds", "Time to the end of an answer")
        self._registry.register(_Gauges(gauges))

    def count_request(self, outcome: str) -> None:
        """Count a request: "client left", or the status it had."""
        self._requests.labels(outcome=outcome).inc()

    def count_events(self, events: Sequence[Event]) -> None:
        """Count an answer that has come to its end."""
        timings = events[-1].timings if events else None
        if timings is None:
            return
        self._prompt.inc(timings.prompt_tokens)
        self._cached.inc(timings.reused_tokens)
        self._new.inc(timings.decode_tokens)
        self._whole.observe(timings.total_s)
        if timings.ttft_s is not None:
            self._first.observe(timings.ttft_s)

    def write(self) -> bytes:
        """Return all figures as text."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"qwen_edge_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"qwen_edge_{name}", text, buckets=_SECONDS, registry=self._registry)


class _Gauges(Collector):
    """Reads what is so now."""

    def __init__(self, read: Gauges) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield one family for each value."""
        for name, text, value in self._read():
            yield GaugeMetricFamily(f"qwen_edge_{name}", text, value)
