"""Medians, ratios, tables, the picture: from samples made by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import orjson
import pytest
from bench.chart import render_chart
from bench.measure import Sample
from bench.report import Results, build_rows, compute_growth_mib, describe_references, render_json, render_markdown
from bench.scenarios import SCENARIOS

CHAT, STREAM = SCENARIOS["chat"], SCENARIOS["stream"]


def make_sample(cpu_us: float | None, *, p50_ms: float = 1.0, chunks: int = 0, **more: object) -> Sample:
    units = chunks or 1000
    cpu_s = None if cpu_us is None else cpu_us * units / 1e6
    return Sample(calls=1000, served=1000, seconds=2.0, chunks=chunks, cpu_s=cpu_s, p50_ms=p50_ms, p99_ms=9.0, **more)  # type: ignore[arg-type]


def make_results(samples: dict[str, list[Sample]], scenario: str = "chat") -> Results:
    return Results(about={"machine": "test"}, references=dict.fromkeys(samples, "smg"), samples={scenario: samples})


def test_a_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_medians():
    results = make_results(
        {
            "hookline-full": [make_sample(50), make_sample(100), make_sample(400)],
            "smg": [make_sample(100), make_sample(400), make_sample(500)],
        }
    )

    ours, reference = build_rows(results, CHAT)

    assert ours.ratio == pytest.approx(0.5)  # of 0.5, 0.25, 0.8; the medians would say 0.25
    assert reference.ratio == pytest.approx(1.0)
    assert ours.cpu_us == pytest.approx(100)
    assert ours.per_s_per_core == pytest.approx(10_000)


def test_cost_of_a_stream_is_per_chunk_the_upstream_sent():
    results = make_results({"smg": [make_sample(8, chunks=50_000)]}, "stream")

    (row,) = build_rows(results, STREAM)

    assert row.cpu_us == pytest.approx(8)
    assert row.per_s == pytest.approx(25_000)


def test_added_latency_is_taken_against_the_direct_upstream_of_the_same_round():
    results = make_results(
        {
            "direct": [make_sample(None, p50_ms=1), make_sample(None, p50_ms=5)],
            "smg": [make_sample(100, p50_ms=2), make_sample(100, p50_ms=9)],
        }
    )

    direct, smg = build_rows(results, CHAT)

    assert smg.added_p50_ms == pytest.approx(2.5)
    assert direct.added_p50_ms is None
    assert direct.cpu_us is None


def test_growth_is_what_the_second_half_of_the_calls_added():
    assert compute_growth_mib([(10, 50.0), (20, 60.0), (30, 61.0), (40, 62.5)]) == pytest.approx(2.5)
    assert compute_growth_mib([(10, 50.0)]) is None


def test_markdown_shows_rows_errors_and_what_is_missing():
    failing = make_sample(300, errors=3, problems={"failed calls": 3})
    results = make_results({"smg": [make_sample(100)], "litellm": [failing]})
    results.missing["portkey"] = "npm is\nnot installed"

    text = render_markdown(results, [CHAT, STREAM])

    assert "- machine: test" in text
    assert "| smg | 100.0 | 1.00 | 10,000 | 500 |" in text
    assert "| litellm | 300.0 | 3.00 |" in text
    assert "litellm: 3 errors: failed calls" in text
    assert "- portkey: npm is not installed" in text
    assert STREAM.title not in text


def test_json_holds_rows_and_raw_samples():
    results = make_results({"smg": [make_sample(100)]})

    whole = orjson.loads(render_json(results, [CHAT]))

    assert whole["rows"]["chat"][0]["cpu_us"] == pytest.approx(100)
    assert whole["samples"]["chat"]["smg"][0]["calls"] == 1000


def test_references_are_one_sentence():
    assert describe_references({"a": "smg", "smg": "smg"}).endswith("that of smg in the same round")
    assert describe_references({"x@1": "x@1", "x@2": "x@1", "y@1": "y@1", "y@2": "y@1"}).endswith(
        "x@2 / x@1, y@2 / y@1"
    )


def test_the_picture_cuts_a_bar_that_is_too_long_and_still_names_its_figure():
    results = make_results(
        {"smg": [make_sample(100)], "hookline-full": [make_sample(80)], "<slow>": [make_sample(9000)]}
    )

    svg = ElementTree.fromstring(render_chart([("CPU per call", build_rows(results, CHAT))], reference="smg"))

    bars = [float(bar.get("width", "0")) for bar in svg.findall("{*}rect")[1:]]
    texts = [text.text or "" for text in svg.findall("{*}text")]
    assert bars[1] < bars[0] < bars[2]
    assert bars[2] / bars[0] == pytest.approx(3.0, abs=0.01)
    assert len(svg.findall("{*}path")) == 1
    assert "9,000.0 µs · 90.00" in texts
    assert "<slow>" in texts
