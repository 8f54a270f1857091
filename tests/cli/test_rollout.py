"""Replacing what serves: rolling restarts of workers, takeovers by another server. Nobody is refused, no stream is cut."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import APIError, OpenAI

from hookline.testing.process import HOOKLINE, ProxyProcess, clean_environ

LONG = os.environ.get("HOOKLINE_LONG") == "1"
RESTARTS = 20 if LONG else 2
STREAMS = 50 if LONG else 8

Serve = Callable[..., ProxyProcess]
DEMO = '[providers.demo]\nkind = "demo"\ndefault = true\n'


def ask(base_url: str, model: str = "demo/echo") -> str:
    with OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        reply = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "hi"}])
    return reply.choices[0].message.content or ""


def config(*, workers: int = 2, plugins: str = "") -> str:
    return (
        f"[server]\nport = 0\nworkers = {workers}\ndrain_s = 30\nhandover_socket = 'hookline.sock'\n"
        f"[chain]\nplugins = [{plugins}]\n{DEMO}chunk_interval_ms = 50\n"
    )


class Callers:
    """Threads that call without a pause until told to stop; each keeps its connection. What failed is in `failures`."""

    def __init__(self, base_url: str) -> None:
        address = urlsplit(base_url)
        self._host, self._port = address.hostname or "", address.port
        self._base_url = base_url
        self._is_over = threading.Event()
        self.failures: list[str] = []
        self.calls = self.streams = 0
        self._lock = threading.Lock()

    def call(self) -> None:
        body = json.dumps({"model": "demo/echo", "messages": [{"role": "user", "content": "hello"}]})
        connection = http.client.HTTPConnection(self._host, self._port, timeout=60)
        while not self._is_over.wait(0.02):
            try:
                connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
                reply = connection.getresponse()
                told = reply.read()
                if reply.status != 200:
                    self.failures.append(f"call: {reply.status} {told[:200]!r}")
                with self._lock:
                    self.calls += 1
            except Exception as error:
                self.failures.append(f"call: {error!r}")
                connection = http.client.HTTPConnection(self._host, self._port, timeout=60)

    def stream(self) -> None:
        text = "one two three four five six seven eight nine ten eleven twelve"
        with OpenAI(base_url=f"{self._base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            while not self._is_over.is_set():
                try:
                    chunks = list(
                        client.chat.completions.create(
                            model="demo/echo", messages=[{"role": "user", "content": text}], stream=True
                        )
                    )
                    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
                    if told.strip() != text or chunks[-1].choices[0].finish_reason != "stop":
                        self.failures.append(f"stream: cut after {told!r}")
                    with self._lock:
                        self.streams += 1
                except Exception as error:
                    self.failures.append(f"stream: {error!r}")

    @contextmanager
    def at_work(self, *, callers: int, streams: int) -> Iterator[None]:
        threads = [threading.Thread(target=self.call) for _ in range(callers)]
        threads += [threading.Thread(target=self.stream) for _ in range(streams)]
        for thread in threads:
            thread.start()
        try:
            while self.calls < callers or self.streams < streams:
                assert not self.failures
                time.sleep(0.02)
            yield
            seen = self.calls + self.streams
            while self.calls + self.streams < seen + callers + streams and not self.failures:
                time.sleep(0.02)
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()


@pytest.mark.timeout(600 if LONG else 120)
def test_rolling_restarts_refuse_nobody_and_cut_no_stream(serve: Serve) -> None:
    server = serve(config())
    callers = Callers(server.base_url)
    generations = [set(server.worker_pids)]

    with callers.at_work(callers=4, streams=STREAMS):
        for number in range(1, RESTARTS + 1):
            server.send(signal.SIGUSR2)
            server.wait_for("rolling restart: 2 new workers serve", count=number)
            generations.append(set(server.worker_pids) - set().union(*generations))

    assert callers.failures == []
    assert [len(pids) for pids in generations] == [2] * (RESTARTS + 1)
    server.send(signal.SIGTERM)
    assert server.wait() == 0


def test_new_workers_read_the_configuration_and_a_broken_one_stops_the_restart(serve: Serve, folder: Path) -> None:
    server = serve(config())
    former = set(server.worker_pids)
    (folder / "proxy.toml").write_text(config() + "nonsense = 1\n")

    server.send(signal.SIGUSR2)
    server.wait_for("a new worker did not get ready; the former ones serve on")

    assert set(server.worker_pids) == former
    assert ask(server.base_url) == "hi"
    (folder / "proxy.toml").write_text(config() + '[models.other]\ndeployments = ["demo/echo"]\n')
    server.send(signal.SIGUSR2)
    server.wait_for("rolling restart: 2 new workers serve")
    while former & set(server.worker_pids):
        time.sleep(0.02)
    assert ask(server.base_url, "other") == "hi"


def test_workers_that_die_while_they_are_replaced_are_replaced_once(serve: Serve) -> None:
    server = serve(config())
    former = set(server.worker_pids)

    server.send(signal.SIGUSR2)
    server.wait_for("rolling restart of 2 workers")
    for pid in former:
        os.kill(pid, signal.SIGKILL)
    server.wait_for("the former ones finish their calls")
    while len(server.worker_pids) < 2:
        time.sleep(0.02)

    assert len(server.worker_pids) == 2
    assert not former & set(server.worker_pids)
    assert ask(server.base_url) == "hi"


SLOW_TO_FAIL = """
import asyncio, sys
from pathlib import Path

class Plugin:
    async def start(self):
        if Path("fail").exists():
            print("about to fail", file=sys.stderr, flush=True)
            while Path("fail").exists():
                await asyncio.sleep(0.02)
            raise RuntimeError("failed")
"""


def test_a_reload_during_a_restart_that_fails_reaches_every_worker(serve: Serve, folder: Path) -> None:
    """The one that was to be replaced serves on, so it needs the configuration that the others have got."""
    (folder / "slow.py").write_text(SLOW_TO_FAIL)
    text = config().replace("plugins = []", 'plugins = [{ name = "slow", path = "./slow.py" }]')
    server = serve(text)
    (folder / "fail").touch()

    server.send(signal.SIGUSR2)
    server.wait_for("about to fail")
    (folder / "slow.py").write_text("class Plugin: pass\n")
    server.send(signal.SIGHUP)
    server.wait_for("reloaded")
    (folder / "fail").unlink()
    server.wait_for("a new worker did not get ready; the former ones serve on")

    server.wait_for("reloaded", count=2)
    assert ask(server.base_url) == "hi"


def test_stopping_in_the_middle_of_a_restart_ends_everything(serve: Serve) -> None:
    server = serve(config())

    server.send(signal.SIGUSR2)
    server.send(signal.SIGUSR2)
    server.wait_for("rolling restart of 2 workers")
    pids = server.worker_pids
    server.send(signal.SIGTERM)

    assert server.wait() == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_of_two_successors_at_once_one_takes_over(serve: Serve) -> None:
    """The other one, which asks a server that has been replaced, is told so, or takes over from its successor."""
    first = serve(config(workers=1))
    results: list[ProxyProcess | str] = []

    def succeed() -> None:
        try:
            results.append(serve(None, "--takeover"))
        except AssertionError as error:
            results.append(str(error))

    threads = [threading.Thread(target=succeed) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert first.wait() == 0
    alive = [found for found in results if isinstance(found, ProxyProcess) and found.process.poll() is None]
    refused = [found for found in results if isinstance(found, str)]
    assert len(alive) == 1 or len(refused) == 0
    assert all("can't take over" in text and "Traceback" not in text for text in refused)
    assert ask(alive[-1].base_url) == "hi"


def test_a_path_that_is_too_long_for_a_socket_is_said(
    run: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    text = config(workers=1).replace("'hookline.sock'", f"'{'x' * 100}.sock'")
    (folder / "proxy.toml").write_text(text)

    failed, taking = run("serve"), run("serve", "--takeover")

    assert (failed.returncode, taking.returncode) == (2, 2)
    assert "too long" in failed.stderr
    assert "too long" in taking.stderr
    assert "Traceback" not in failed.stderr + taking.stderr


def test_one_process_says_that_it_has_no_workers_to_replace(serve: Serve) -> None:
    server = serve(config(workers=1))

    server.send(signal.SIGUSR2)

    server.wait_for("this server is one process: start its successor with `serve --takeover`")
    assert ask(server.base_url) == "hi"


@pytest.mark.parametrize(("workers", "plugins"), [(1, ""), (1, '"rate_limit"'), (2, "")])
def test_a_successor_takes_the_port_over(serve: Serve, workers: int, plugins: str) -> None:
    first = serve(config(workers=workers, plugins=plugins))
    callers = Callers(first.base_url)

    with callers.at_work(callers=4, streams=4):
        second = serve(None, "--takeover")
        assert first.wait() == 0

    assert second.base_url == first.base_url
    assert callers.failures == []
    first.wait_for("a successor has taken over")
    third = serve(None, "--takeover")
    assert second.wait() == 0
    assert ask(third.base_url) == "hi"


FAILS_TO_START = """
class Plugin:
    async def start(self):
        raise RuntimeError("no")
"""


BROKEN = '{ name = "broken", path = "./broken.py" }'
COUNTS = '"rate_limit"'
"""With limits in memory, as here, no two servers may run side by side."""


def test_a_successor_that_fails_once_the_former_has_drained_leaves_it_serving(
    serve: Serve, run: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    """Symptom: with limits in memory the former server had ended when its successor found that it could not start."""
    text = config(workers=1, plugins=COUNTS)
    server = serve(text)
    (folder / "broken.py").write_text(FAILS_TO_START)
    (folder / "proxy.toml").write_text(config(workers=1, plugins=f"{COUNTS}, {BROKEN}"))

    failed = run("serve", "--takeover")
    server.wait_for("the successor ended before it served; serving again")

    assert failed.returncode == 2
    assert ask(server.base_url) == "hi"
    server.wait_for("serves http", count=2)
    second = serve(text, "--takeover")
    assert server.wait() == 0
    assert ask(second.base_url) == "hi"


def test_workers_whose_successor_counts_and_fails_serve_again_when_they_can(
    serve: Serve, run: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    """They read proxy.toml themselves: until that is put right, connections wait."""
    server = serve(config())
    (folder / "broken.py").write_text(FAILS_TO_START)
    (folder / "proxy.toml").write_text(config(workers=1, plugins=f"{COUNTS}, {BROKEN}"))

    failed = run("serve", "--takeover")
    server.wait_for("no worker got ready, and nobody else serves; trying again")
    (folder / "proxy.toml").write_text(config())

    assert failed.returncode == 2
    assert ask(server.base_url) == "hi"


def test_where_nothing_is_counted_a_successor_serves_beside_the_former(serve: Serve) -> None:
    first = serve(config(workers=1))

    with a_stream_that_runs(first.base_url):
        second = serve(None, "--takeover")
        assert ask(second.base_url) == "hi"
        assert first.process.poll() is None

    assert first.wait() == 0


def popen_successor(folder: Path) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [*HOOKLINE, "serve", "--takeover"], cwd=folder, env=clean_environ(), stdin=quiet, stdout=quiet, stderr=quiet
    )


@contextmanager
def a_stream_that_runs(base_url: str) -> Iterator[list[str]]:
    """Yields when it has begun; at the end the list holds all of its text."""
    text = " ".join(f"word{number}" for number in range(30))
    heard: list[str] = []
    with OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        messages: Any = [{"role": "user", "content": text}]
        chunks = iter(client.chat.completions.create(model="demo/echo", messages=messages, stream=True))
        next(chunks)
        yield heard
        heard += [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(heard).split()[-1] == "word29"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_successor_that_is_killed_while_it_waits_leaves_the_former_serving(
    serve: Serve, folder: Path, number: signal.Signals
) -> None:
    server = serve(config(workers=1, plugins=COUNTS))

    with a_stream_that_runs(server.base_url):
        successor = popen_successor(folder)
        server.wait_for("a successor has taken over")
        successor.send_signal(number)
        successor.wait()

    server.wait_for("serving again")
    assert ask(server.base_url) == "hi"


def test_a_server_that_is_told_to_stop_does_not_serve_again(serve: Serve, folder: Path) -> None:
    server = serve(config(workers=1, plugins=COUNTS))

    with a_stream_that_runs(server.base_url):
        successor = popen_successor(folder)
        server.wait_for("a successor has taken over")
        successor.kill()
        successor.wait()
        server.send(signal.SIGTERM)

    assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_manager_that_signals_every_process_cuts_nothing(serve: Serve, number: signal.Signals) -> None:
    """Symptom: a worker got the signal of systemd (KillMode=control-group) and the supervisor's, and two mean to cut the calls."""
    server = serve(config())

    with a_stream_that_runs(server.base_url):
        for pid in [server.process.pid, *server.worker_pids]:
            os.kill(pid, number)

    assert server.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_after_the_end_changes_no_exit_status(serve: Serve, workers: int) -> None:
    """Symptom: Ctrl-C reaches every process of a terminal; a worker that had ended already by then made `serve` end with 1, as if calls had been cut."""
    server = serve(config(workers=workers))
    pids = server.worker_pids or [server.process.pid]

    server.send(signal.SIGINT)
    server.wait_for(r"\]: stopped", count=workers)
    for pid in pids:
        while server.process.poll() is None and Path(f"/proc/{pid}").exists():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)

    assert server.wait() == 0


def test_a_second_signal_cuts_the_calls(serve: Serve) -> None:
    server = serve(config())

    with pytest.raises((APIError, AssertionError)), a_stream_that_runs(server.base_url):
        server.send(signal.SIGTERM)
        server.wait_for("stopping: running calls may go on", count=2)
        server.send(signal.SIGTERM)

    assert server.wait() == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_who_comes_while_a_server_stops_is_refused_at_once(serve: Serve, workers: int) -> None:
    """Symptom: with a `handover_socket` a copy of the listening socket went on queueing connections that nobody accepted."""
    server = serve(config(workers=workers))
    address = urlsplit(server.base_url)

    with a_stream_that_runs(server.base_url):
        server.send(signal.SIGTERM)
        server.wait_for("stopping: running calls may go on", count=workers)
        with pytest.raises(ConnectionRefusedError):
            while True:  # the line comes a moment before
                with contextlib.suppress(ConnectionResetError):  # it was in the queue when the socket closed
                    socket.create_connection((address.hostname or "", address.port or 0), timeout=5).close()

    assert server.wait() == 0


def test_without_a_server_a_takeover_is_a_start(serve: Serve) -> None:
    server = serve(config(workers=1), "--takeover")

    server.wait_for("there is no server to take over from at .*hookline.sock; starting as the first")
    assert ask(server.base_url) == "hi"


def test_a_successor_that_fails_changes_nothing(
    serve: Serve, run: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    server = serve(config(workers=1))
    (folder / "proxy.toml").write_text(config(workers=1) + "nonsense = 1\n")

    failed = run("serve", "--takeover")
    (folder / "proxy.toml").write_text(config(workers=1))
    elsewhere = run("serve", "--takeover", "--port", "1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanger:
        hanger.connect(str(folder / "hookline.sock"))

    assert failed.returncode == 2
    assert elsewhere.returncode == 2
    assert "not on 1; restart to change it" in elsewhere.stderr
    server.wait_for("a successor ended before it was ready; serving on")
    assert ask(server.base_url) == "hi"


def test_a_successor_for_another_host_is_refused(
    serve: Serve, run: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    """One that needs no keys, for it believes that only this machine reaches it, must not get a socket that everybody reaches."""
    server = serve(config(workers=1).replace("port = 0", "port = 0\nhost = '0.0.0.0'\nopen = true"))
    (folder / "proxy.toml").write_text(config(workers=1))

    alone = run("serve", "--takeover")
    several = run("serve", "--takeover", "--workers", "2")

    assert (alone.returncode, several.returncode) == (2, 2)
    for refused in (alone, several):
        assert "listens on 0.0.0.0, not on 127.0.0.1; restart to change it" in refused.stderr
        assert "Traceback" not in refused.stderr
    assert ask(server.base_url) == "hi"


def test_a_successor_that_calls_the_host_by_its_name_takes_over(serve: Serve) -> None:
    former = serve(config(workers=1).replace("port = 0", "port = 0\nhost = '127.0.0.1'"))

    successor = serve(config(workers=1).replace("port = 0", "port = 0\nhost = 'localhost'"), "--takeover")

    assert former.wait() == 0
    assert ask(successor.base_url) == "hi"


def test_a_server_that_gives_no_socket_is_not_taken_over(
    run: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    (folder / "proxy.toml").write_text(config(workers=1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(folder / "hookline.sock"))
        other.listen(1)
        threading.Thread(target=lambda: other.accept()[0].close(), daemon=True).start()
        refused = run("serve", "--takeover")

    assert refused.returncode == 2
    assert "gave no socket; its log says why" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_socket_is_its_owners_and_goes_with_the_server(serve: Serve, folder: Path) -> None:
    server = serve(config(workers=1))
    path = folder / "hookline.sock"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server.send(signal.SIGTERM)
    assert server.wait() == 0
    assert not path.exists()


def test_takeover_needs_the_option_and_a_file_is_no_socket(
    run: Callable[..., subprocess.CompletedProcess[str]], folder: Path
) -> None:
    (folder / "proxy.toml").write_text(config(workers=1).replace("handover_socket = 'hookline.sock'\n", ""))
    without = run("serve", "--takeover")
    (folder / "proxy.toml").write_text(config(workers=1))
    (folder / "hookline.sock").write_text("mine")
    blocked = run("serve")

    assert (without.returncode, blocked.returncode) == (2, 2)
    assert "`--takeover` needs `handover_socket`" in without.stderr
    assert "hookline.sock is there already and is no socket" in blocked.stderr
    assert "Traceback" not in without.stderr + blocked.stderr
    assert (folder / "hookline.sock").read_text() == "mine"


def test_several_workers_say_once_what_has_no_effect(serve: Serve) -> None:
    """Symptom: what one process says at its start (an unset variable, options of an idle plugin) `serve --workers 2` kept to itself."""
    server = serve(config() + "[plugins.cache]\nttl_s = 5\n")

    assert len([line for line in server.lines if '"cache" is not in [chain] plugins' in line]) == 1
