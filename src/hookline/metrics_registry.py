"""Metric families of this process, by name.

Lives here: `MetricsRegistry`, the `Metrics` of host.py on prometheus-client. Elsewhere: what is counted (each plugin), `/metrics` (builtins/metrics.py).
Idea: asking twice for a family gives the first one, so counters go on over a reload; asking for it with other labels is a mistake, said at start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.process_collector import ProcessCollector

from hookline import host
from hookline.errors import StartupError


class MetricsRegistry:
    """Implements `Metrics`."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one series more per child, which nobody reads
        self._registry = CollectorRegistry()
        self._families: dict[str, tuple[object, Any]] = {}
        ProcessCollector(registry=self._registry)

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., host.Counter]:
        return self._family(Counter, name, doc, labels)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., host.Gauge]:
        return self._family(Gauge, name, doc, labels)

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> Callable[..., host.Histogram]:
        return self._family(Histogram, name, doc, labels, buckets=tuple(buckets))

    def render(self) -> bytes:
        """All families in the Prometheus text format."""
        return generate_latest(self._registry)

    def _family(self, kind: type[Any], name: str, doc: str, labels: Sequence[str], **more: Any) -> Callable[..., Any]:
        shape = (kind, tuple(labels), tuple(more.items()))
        known_shape, family = self._families.get(name, (None, None))
        if family is None:
            try:
                family = kind(name, doc, labelnames=tuple(labels), registry=self._registry, **more)
            except ValueError as error:
                raise StartupError([f'metric "{name}": {error}']) from error
            self._families[name] = (shape, family)
        elif known_shape != shape:
            raise StartupError(
                [f'metric "{name}" exists with other labels, buckets or kind; give this one another name']
            )
        labelled: Callable[..., Any] = family.labels if labels else lambda: family
        return labelled
