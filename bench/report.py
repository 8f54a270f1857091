"""From samples to tables: medians over rounds, ratios within a round, Markdown and JSON.

Lives here: `Results` (all that a run saw), rows, text. Elsewhere: the samples (measure.py), the picture (chart.py).
Idea: a ratio is taken round by round against the reference of the same round, then its median: what slows a machine for a
while slows both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import orjson

from bench.measure import Sample
from bench.scenarios import Kind, Scenario

BASELINE = "direct"
_ABSENT = "-"


@dataclass(slots=True)
class Results:
    about: dict[str, str]
    """Machine, versions, method: printed as they are."""
    references: dict[str, str]
    """Contender -> the one it is compared with."""
    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    """Scenario -> contender -> its rounds."""
    missing: dict[str, str] = field(default_factory=dict)
    """Contender -> why it was not measured (at all, or in a scenario)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one scenario, medians over its rounds; None = cannot be known."""

    contender: str
    cpu_us: float | None
    """Per chunk for streams, else per call."""
    ratio: float | None
    per_s_per_core: float | None
    per_s: float
    p50_ms: float
    p99_ms: float
    added_p50_ms: float | None
    added_p99_ms: float | None
    rss_mib: float | None
    errors: int
    problems: str
    open_most: int
    growth_mib: float | None


def build_rows(results: Results, scenario: Scenario) -> list[Row]:
    """Out: a row per contender of the scenario, in the order measured."""
    by_contender = results.samples.get(scenario.name, {})
    return [_build_row(results, scenario, name, rounds) for name, rounds in by_contender.items() if rounds]


def compute_cpu_us(sample: Sample, scenario: Scenario) -> float | None:
    """Out: CPU per chunk of a stream (its share of the call's own cost included), else per call."""
    units = sample.chunks if scenario.is_stream else sample.served
    return sample.cpu_s / units * 1e6 if sample.cpu_s is not None and units else None


def compute_growth_mib(series: Sequence[tuple[int, float]]) -> float | None:
    """In: (calls so far, MiB) pairs. Out: how much the second half of the calls added; None for less than 4 samples."""
    if len(series) < 4:
        return None
    half = series[-1][0] / 2
    middle = next(mib for calls, mib in series if calls >= half)
    return series[-1][1] - middle


def _build_row(results: Results, scenario: Scenario, name: str, rounds: list[Sample]) -> Row:
    by_contender = results.samples[scenario.name]
    reference = by_contender.get(results.references.get(name, ""), [])
    direct = by_contender.get(BASELINE, []) if name != BASELINE else []

    def cpu_us(sample: Sample) -> float | None:
        return compute_cpu_us(sample, scenario)

    def units(sample: Sample) -> int:
        return sample.chunks if scenario.is_stream else sample.calls

    def pair(ours: Callable[[Sample], float], theirs: Sequence[Sample]) -> list[float]:
        return [ours(mine) - ours(other) for mine, other in zip(rounds, theirs, strict=False)]

    return Row(
        contender=name,
        cpu_us=_median(cpu_us(sample) for sample in rounds),
        ratio=_median(_divide(cpu_us(mine), cpu_us(ref)) for mine, ref in zip(rounds, reference, strict=False)),
        per_s_per_core=_median(_divide(1e6, cpu_us(sample)) for sample in rounds),
        per_s=median(units(sample) / sample.seconds for sample in rounds),
        p50_ms=median(sample.p50_ms for sample in rounds),
        p99_ms=median(sample.p99_ms for sample in rounds),
        added_p50_ms=_median(pair(lambda sample: sample.p50_ms, direct)),
        added_p99_ms=_median(pair(lambda sample: sample.p99_ms, direct)),
        rss_mib=_median(sample.rss_mib for sample in rounds),
        errors=sum(sample.errors for sample in rounds),
        problems="; ".join(sorted({text for sample in rounds for text in sample.problems})),
        open_most=max(sample.open_most for sample in rounds),
        growth_mib=_median(compute_growth_mib(sample.rss_series) for sample in rounds),
    )


def _median(values: Iterator[float | None] | Sequence[float]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _divide(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def render_json(results: Results, scenarios: Sequence[Scenario]) -> bytes:
    """Out: everything, raw samples too, so that other questions can be asked of a run later."""
    tables = {
        scenario.name: [dataclasses.asdict(row) for row in build_rows(results, scenario)] for scenario in scenarios
    }
    whole: dict[str, Any] = {**dataclasses.asdict(results), "rows": tables}
    return orjson.dumps(whole, option=orjson.OPT_INDENT_2)


def render_markdown(results: Results, scenarios: Sequence[Scenario]) -> str:
    """Out: what was measured and how, a table per scenario, what is missing."""
    lines = ["# Benchmark", ""]
    lines += [f"- {name}: {text}" for name, text in results.about.items()]
    for scenario in scenarios:
        if rows := build_rows(results, scenario):
            lines += ["", f"## {scenario.title}", "", *_render_table(_columns(scenario), rows)]
            lines += [f"\n{row.contender}: {row.errors} errors: {row.problems}" for row in rows if row.problems]
    if results.missing:
        lines += ["", "## Not measured", ""]
        lines += [f"- {name}: {' '.join(reason.split())[:400]}" for name, reason in results.missing.items()]
    return "\n".join(lines) + "\n"


Column = tuple[str, Callable[[Row], str]]


def _columns(scenario: Scenario) -> list[Column]:
    unit = "chunk" if scenario.is_stream else "call"
    cost: list[Column] = [
        (f"CPU µs/{unit}", lambda row: _number(row.cpu_us)),
        ("ratio", lambda row: _number(row.ratio, digits=2)),
    ]
    rss: Column = ("RSS MiB", lambda row: _number(row.rss_mib, digits=0))
    errors: Column = ("errors", lambda row: str(row.errors))
    if scenario.kind is Kind.MEMORY:
        growth: Column = ("growth in 2nd half, MiB", lambda row: _number(row.growth_mib))
        return [*cost, rss, growth, errors]
    if scenario.kind is Kind.OPEN:
        most: Column = ("open at once", lambda row: str(row.open_most))
        return [*cost, most, ("first chunk p99 ms", lambda row: _number(row.p99_ms, digits=1)), rss, errors]
    return [
        *cost,
        (f"{unit}s/s per core", lambda row: _number(row.per_s_per_core, digits=0)),
        (f"{unit}s/s seen", lambda row: _number(row.per_s, digits=0)),
        ("p50 ms", lambda row: _number(row.p50_ms, digits=2)),
        ("p99 ms", lambda row: _number(row.p99_ms, digits=2)),
        ("added p50 ms", lambda row: _number(row.added_p50_ms, digits=2)),
        ("added p99 ms", lambda row: _number(row.added_p99_ms, digits=2)),
        rss,
        errors,
    ]


def _render_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    head = "| | " + " | ".join(name for name, _ in columns) + " |"
    rule = "|---|" + "---:|" * len(columns)
    return [
        head,
        rule,
        *(f"| {row.contender} | " + " | ".join(show(row) for _, show in columns) + " |" for row in rows),
    ]


def _number(value: float | None, *, digits: int = 1) -> str:
    return _ABSENT if value is None else f"{value:,.{digits}f}"


def describe_references(references: Mapping[str, str]) -> str:
    """Out: one line saying what "ratio" is divided by."""
    by_reference: dict[str, list[str]] = {}
    for name, reference in references.items():
        by_reference.setdefault(reference, []).append(name)
    if len(by_reference) == 1:
        return f"CPU, divided by that of {next(iter(by_reference))} in the same round"
    pairs = (f"{name} / {reference}" for name, reference in references.items() if name != reference)
    return "CPU, in the same round: " + ", ".join(pairs)
