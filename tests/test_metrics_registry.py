"""Metric families: what is counted is what a scrape shows."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hookline import StartupError
from hookline.metrics_registry import CHILDREN_MAX, MetricsRegistry


def scraped(registry: MetricsRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(registry.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_counters_add_up_per_label():
    registry = MetricsRegistry()
    calls = registry.counter("calls_total", "Calls.", ["model"])

    calls("a").inc()
    calls("a").inc(2)
    calls('quoted"\n').inc()

    shown = scraped(registry)
    assert shown["calls_total", (("model", "a"),)] == 3
    assert shown["calls_total", (("model", 'quoted"\n'),)] == 1


def test_a_gauge_shows_its_last_value():
    registry = MetricsRegistry()
    open_calls = registry.gauge("open_calls", "Open calls.")()

    open_calls.set(5)
    open_calls.set(2)

    assert scraped(registry)["open_calls", ()] == 2


def test_a_histogram_counts_each_observation_in_every_bucket_it_does_not_exceed():
    registry = MetricsRegistry()
    seconds = registry.histogram("wait_seconds", "Waits.", buckets=[0.1, 1])()

    for amount in (0.05, 0.1, 0.5, 7):
        seconds.observe(amount)

    shown = scraped(registry)
    assert [shown["wait_seconds_bucket", (("le", le),)] for le in ("0.1", "1.0", "+Inf")] == [2, 3, 4]
    assert shown["wait_seconds_count", ()] == 4
    assert shown["wait_seconds_sum", ()] == pytest.approx(7.65)


def test_a_family_asked_for_again_goes_on_counting():
    registry = MetricsRegistry()
    registry.counter("calls_total", "Calls.")().inc()

    registry.counter("calls_total", "Calls.")().inc()

    assert scraped(registry)["calls_total", ()] == 2


def test_a_family_asked_for_with_other_labels_is_refused():
    registry = MetricsRegistry()
    registry.counter("calls_total", "Calls.", ["model"])

    with pytest.raises(StartupError, match='"calls_total" exists with other labels'):
        registry.counter("calls_total", "Calls.", ["provider"])
    with pytest.raises(StartupError, match='"calls_total" exists with other labels, buckets or kind'):
        registry.gauge("calls_total", "Calls.", ["model"])


def test_a_histogram_asked_for_with_other_buckets_is_refused():
    registry = MetricsRegistry()
    registry.histogram("wait_seconds", "Waits.", buckets=[1, 2])

    with pytest.raises(StartupError, match="buckets"):
        registry.histogram("wait_seconds", "Waits.", buckets=[1, 3])


def test_a_name_that_is_none_is_refused():
    with pytest.raises(StartupError, match='metric "calls-total"'):
        MetricsRegistry().counter("calls-total", "Calls.")


def test_a_wrong_number_of_label_values_is_refused():
    with pytest.raises(ValueError, match="has labels"):
        MetricsRegistry().counter("calls_total", "Calls.", ["model"])("a", "b")


def test_label_values_beyond_the_bound_are_counted_together():
    registry = MetricsRegistry()
    calls = registry.counter("calls_total", "Calls.", ["model"])

    for number in range(CHILDREN_MAX + 5):
        calls(f"m{number}").inc()

    shown = scraped(registry)
    assert shown["calls_total", (("model", "other"),)] == 5
    assert sum(1 for name, _ in shown if name == "calls_total") == CHILDREN_MAX + 1


def test_the_process_itself_is_shown():
    assert ("process_resident_memory_bytes", ()) in scraped(MetricsRegistry())
