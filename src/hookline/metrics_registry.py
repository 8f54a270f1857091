"""Metric families: cheap to count, rendered when somebody asks.

Lives here: `MetricsRegistry`, the `Metrics` of host.py, and its children. Elsewhere: what is counted (each plugin), `/metrics` (builtins/metrics.py).
Idea: a child is a plain number that the event loop's thread adds to: 0.1 µs, where prometheus-client's children with their locks take 0.33 and its
histograms 0.7 (one call makes six to nine of these). prometheus-client does what it is good at, the text format and the process's own figures, when
somebody reads. Asking twice for a family gives the first one, so counters go on over a reload; asking for it with other labels is a mistake, said at start."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from hookline.errors import StartupError

NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
CHILDREN_MAX = 10_000
"""Label combinations of one family; all beyond are counted together, with every label "other"."""


class CounterChild:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class GaugeChild:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def set(self, value: float) -> None:
        self.value = value


class HistogramChild:
    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.total += amount


Child = TypeVar("Child", CounterChild, GaugeChild, HistogramChild)


class Family(Generic[Child]):
    """One metric name with its children by label values."""

    def __init__(self, name: str, doc: str, labels: tuple[str, ...], make: Callable[[], Child]) -> None:
        self.name, self.doc, self.labels = name, doc, labels
        self.children: dict[tuple[str, ...], Child] = {}
        self._make: Callable[[], Child] = make

    def child(self, *values: object) -> Child:
        """The child for these label values, in the order of `labels`. Keep it; raises ValueError on a wrong count."""
        if len(values) != len(self.labels):
            raise ValueError(f"metric {self.name} has labels {self.labels}, got {values}")
        key = tuple(map(str, values))
        found = self.children.get(key)
        if found is None:
            if len(self.children) >= CHILDREN_MAX:
                key = ("other",) * len(self.labels)
            found = self.children.setdefault(key, self._make())
        return found


class MetricsRegistry:
    """All families of one process. Implements `Metrics`."""

    def __init__(self) -> None:
        self._counters: dict[str, Family[CounterChild]] = {}
        self._gauges: dict[str, Family[GaugeChild]] = {}
        self._histograms: dict[str, Family[HistogramChild]] = {}
        self._shapes: dict[str, object] = {}
        self._exposition = CollectorRegistry(auto_describe=False)
        self._exposition.register(self)
        ProcessCollector(registry=self._exposition)

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., CounterChild]:
        return self._family(self._counters, name, doc, labels, CounterChild)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Callable[..., GaugeChild]:
        return self._family(self._gauges, name, doc, labels, GaugeChild)

    def histogram(
        self, name: str, doc: str, labels: Sequence[str] = (), *, buckets: Sequence[float]
    ) -> Callable[..., HistogramChild]:
        bounds = tuple(sorted(buckets))
        return self._family(self._histograms, name, doc, labels, lambda: HistogramChild(bounds), bounds)

    def render(self) -> bytes:
        """All families, and the process's own figures, in the Prometheus text format."""
        return generate_latest(self._exposition)

    def collect(self) -> Iterator[Metric]:
        """What prometheus-client asks a collector for."""
        for counters in self._counters.values():
            counter = CounterMetricFamily(counters.name, counters.doc, labels=counters.labels)
            for values, counted in counters.children.items():
                counter.add_metric(values, counted.value)
            yield counter
        for gauges in self._gauges.values():
            gauge = GaugeMetricFamily(gauges.name, gauges.doc, labels=gauges.labels)
            for values, level in gauges.children.items():
                gauge.add_metric(values, level.value)
            yield gauge
        for histograms in self._histograms.values():
            histogram = HistogramMetricFamily(histograms.name, histograms.doc, labels=histograms.labels)
            for values, observed in histograms.children.items():
                histogram.add_metric(values, buckets=_cumulative(observed), sum_value=observed.total)
            yield histogram

    def _family(
        self,
        families: dict[str, Family[Child]],
        name: str,
        doc: str,
        labels: Sequence[str],
        make: Callable[[], Child],
        *more: object,
    ) -> Callable[..., Child]:
        if not NAME.fullmatch(name):
            raise StartupError([f'metric "{name}": a name is letters, digits and _, and begins with no digit'])
        shape = (id(families), tuple(labels), more)
        if self._shapes.setdefault(name, shape) != shape:
            raise StartupError(
                [f'metric "{name}" exists with other labels, buckets or kind; give this one another name']
            )
        if name not in families:
            families[name] = Family(name, doc, tuple(labels), make)
        return families[name].child


def _cumulative(histogram: HistogramChild) -> list[tuple[str, float]]:
    """Pairs of upper bound and how many observations are not above it."""
    pairs: list[tuple[str, float]] = []
    count = 0
    for bound, own in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
        count += own
        pairs.append((str(float(bound)) if bound != math.inf else "+Inf", count))
    return pairs
