"""The benchmark's command line: start the contenders, measure them in turns, write the report.

Lives here: options, the order of things, the record of machine and versions. Elsewhere: everything that is measured (measure.py).
Idea: all contenders stand at the same time and take turns round by round (A B C, A B C), so that a slow minute hits all.

Run: ./scripts/bench --help"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bench.chart import render_chart
from bench.contenders import CONTENDERS, Contender, Launch, Site, find_own_version, make_revision
from bench.installs import REPO, WORK, InstallError
from bench.load import Aim, LoadError
from bench.measure import NotReady, Sample, Standing, UpstreamControl, measure, wait_until_right, warm_up
from bench.processes import Process, choose_cores, find_free_port
from bench.report import (
    BASELINE,
    Results,
    build_rows,
    compute_cpu_us,
    describe_references,
    render_json,
    render_markdown,
)
from bench.scenarios import SCENARIOS, Kind, Scenario
from bench.streams import Door

_OPEN_FILES = 16384
_WARM_UP_S = 2


def main(
    contenders: Annotated[str, typer.Option(help="Comma-separated; all: " + ", ".join(CONTENDERS))] = ",".join(
        CONTENDERS
    ),
    scenarios: Annotated[str, typer.Option(help="Comma-separated; all: " + ", ".join(SCENARIOS))] = "",
    seconds: Annotated[int, typer.Option(help="Of one measurement.", min=1)] = 5,
    rounds: Annotated[int, typer.Option(help="Turns of each contender in each scenario.", min=1)] = 3,
    out: Annotated[Path, typer.Option(help="Folder for result.json, result.md and result.svg.")] = WORK / "last",
    reference: Annotated[str, typer.Option(help="The contender whose ratio is 1.")] = "smg",
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="Two commits of hookline, instead of the contenders.")
    ] = None,
    url: Annotated[str, typer.Option(help="Any OpenAI-compatible base_url, instead of the contenders.")] = "",
    key: Annotated[str, typer.Option(help="With --url.", envvar="BENCH_URL_KEY")] = "sk-bench",
    model: Annotated[str, typer.Option(help="With --url.")] = "gpt-4o-mini",
    install_only: Annotated[
        bool, typer.Option("--install-only", help="Install the contenders, measure nothing.")
    ] = False,
) -> None:
    """Measure LLM proxies side by side on one scripted upstream: CPU per call and per chunk, latency added, memory, errors."""
    _end_on_sigterm()
    _raise_open_files()
    chosen = _choose_scenarios(scenarios, is_short=bool(compare or url))
    if url:
        results, reference = _run_url(url, key, model, chosen, seconds, rounds), "url"
    else:
        picked = _choose_contenders(contenders, compare)
        names = [contender.name for contender in picked]
        if compare:
            references = {name: name.replace(f"@{compare[1]}", f"@{compare[0]}") for name in names}
            reference = names[0]
        else:
            reference = reference if reference in names else names[0]
            references = dict.fromkeys(names, reference)
        results = Results(about=_describe(picked, seconds, rounds), references=references)
        results.about["ratio"] = describe_references(references)
        _run_contenders(picked, chosen, results, seconds=seconds, rounds=0 if install_only else rounds)
    if not install_only:
        _write(results, chosen, out, reference)
    for name, reason in results.missing.items():
        typer.echo(f"not measured: {name}: {reason}", err=True)


def _choose_scenarios(names: str, *, is_short: bool) -> list[Scenario]:
    wanted = [name for name in names.split(",") if name] or (["chat", "stream"] if is_short else list(SCENARIOS))
    return [SCENARIOS[name] for name in _known(wanted, SCENARIOS, "scenario")]


def _choose_contenders(names: str, compare: tuple[str, str] | None) -> list[Contender]:
    if compare is not None:
        return [make_revision(config, revision) for config in ("full.toml", "bare.toml") for revision in compare]
    wanted = _known([name for name in names.split(",") if name], CONTENDERS, "contender")
    return [CONTENDERS[name] for name in wanted]


def _known(names: Sequence[str], table: dict[str, Scenario] | dict[str, Contender], kind: str) -> Sequence[str]:
    for name in names:
        if name not in table:
            raise typer.BadParameter(f"no {kind} {name!r}; there are {', '.join(table)}")
    return names


def _run_contenders(
    picked: list[Contender], chosen: list[Scenario], results: Results, *, seconds: int, rounds: int
) -> None:
    proxy_core, load_core, upstream_core = choose_cores()
    launches = {}
    for contender in picked:
        try:
            launches[contender.name] = contender.prepare()
        except InstallError as error:
            results.missing[contender.name] = str(error)
    if not rounds:
        return
    os.sched_setaffinity(0, {load_core})  # this process is the client of the checked streams
    with ExitStack() as stack:
        upstream_port = find_free_port()
        stack.enter_context(_running(_upstream_argv(upstream_port), core=upstream_core, cwd=REPO))
        _wait_for_upstream(upstream := UpstreamControl(upstream_port))
        standing: list[Standing] = []
        for name, launch in launches.items():
            site = Site(find_free_port(), upstream_port, stack.enter_context(_own_folder(name)))
            try:
                standing.append(_start(stack, name, launch(site), site, upstream, (proxy_core, load_core)))
            except NotReady as error:
                results.missing[name] = str(error)
        for scenario in chosen:
            _run_scenario(scenario, standing, results, seconds=seconds, rounds=rounds)


def _run_scenario(scenario: Scenario, standing: list[Standing], results: Results, *, seconds: int, rounds: int) -> None:
    table: dict[str, list[Sample]] = results.samples.setdefault(scenario.name, {each.name: [] for each in standing})
    playing = list(standing)
    for number in range(rounds if scenario.kind is Kind.LOAD else 1):
        for each in list(playing):
            try:
                if number == 0 and scenario.kind is not Kind.OPEN:
                    warm_up(each, scenario, seconds=_WARM_UP_S)
                sample = measure(each, scenario, seconds=seconds)
            except (LoadError, OSError) as error:
                results.missing[f"{each.name} in {scenario.name}"] = str(error)
                playing.remove(each)
                continue
            table[each.name].append(sample)
            cpu_us = compute_cpu_us(sample, scenario)
            cost = "" if cpu_us is None else f"{cpu_us:11.1f} µs"
            typer.echo(
                f"{scenario.name:17} round {number + 1} {each.name:18}{cost:>14} {sample.errors} errors", err=True
            )


def _start(
    stack: ExitStack, name: str, launch: Launch, site: Site, upstream: UpstreamControl, cores: tuple[int, int]
) -> Standing:
    port, process = site.upstream_port, None
    if launch.argv is not None:
        port = site.port
        process = stack.enter_context(_running(launch.argv, core=cores[0], cwd=site.folder, env=dict(launch.env)))
    standing = Standing(
        name=name,
        aim=Aim(f"http://127.0.0.1:{port}/v1", headers=launch.headers),
        door=Door(port, headers=launch.headers),
        process=process,
        upstream=upstream,
        load_core=cores[1],
    )
    wait_until_right(standing, limit_s=launch.ready_within_s)
    return standing


def _run_url(url: str, key: str, model: str, chosen: list[Scenario], seconds: int, rounds: int) -> Results:
    """Latency, rate and errors only: neither its process nor its upstream is ours to look at."""
    standing = Standing(name="url", aim=Aim(url, key, model), door=None, process=None, upstream=None, load_core=None)
    results = Results(about={**_describe([], seconds, rounds), "url": url, "model": model}, references={})
    loads = [scenario for scenario in chosen if scenario.kind is Kind.LOAD]
    for scenario in loads:
        _run_scenario(scenario, [standing], results, seconds=seconds, rounds=rounds)
    return results


@contextmanager
def _running(argv: list[str], *, core: int, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Process]:
    process = Process(argv, core=core, env=env, cwd=cwd)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def _own_folder(name: str) -> Iterator[Path]:
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"run-{name.replace('/', '_')}-", dir=WORK))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _upstream_argv(port: int) -> list[str]:
    return [sys.executable, "-m", "bench.upstream", "--port", str(port)]


def _wait_for_upstream(upstream: UpstreamControl) -> None:
    for _ in range(100):
        try:
            upstream.read_counts()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("bench: the scripted upstream did not start within 10 s")


def _describe(picked: list[Contender], seconds: int, rounds: int) -> dict[str, str]:
    proxy_core, load_core, upstream_core = choose_cores()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{_find_cpu()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, Linux {platform.release()}",
        "hookline": f"{find_own_version()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{each.name} {each.find_version()}" for each in picked) or "not known",
        "method": f"proxy on core {proxy_core}, wrk on core {load_core}, upstream on core {upstream_core}; "
        f"{rounds} interleaved rounds of {seconds} s, medians",
    }


def _find_cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _write(results: Results, chosen: list[Scenario], out: Path, reference: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = render_markdown(results, chosen)
    (out / "result.md").write_text(text, encoding="utf-8")
    (out / "result.json").write_bytes(render_json(results, chosen))
    panels = [
        (f"CPU per {'chunk' if scenario.is_stream else 'call'}: {scenario.title}", build_rows(results, scenario))
        for scenario in chosen
        if scenario.name in ("chat", "stream")
    ]
    shown = [(title, [row for row in rows if row.contender != BASELINE]) for title, rows in panels]
    (out / "result.svg").write_text(render_chart(shown, reference=reference), encoding="utf-8")
    typer.echo(text)
    typer.echo(f"written: {out}/result.md, result.json, result.svg", err=True)


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _end_on_sigterm() -> None:
    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)  # unwinds the ExitStack: every process we started ends

    signal.signal(signal.SIGTERM, end)


if __name__ == "__main__":
    typer.run(main)
