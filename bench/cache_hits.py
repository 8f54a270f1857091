"""What a hit of the response cache costs beside a miss: CPU of the proxy process per call, all nine plugins on memory.

Lives here: one connection, calls one after the other, misses and hits in turns. Elsewhere: load and peers (run.py), the upstream's replies (upstream.py).
Idea: CPU from /proc of the proxy alone; rounds take turns, so that a slow minute hits all; medians count.

.venv/bin/python -m bench.cache_hits"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.processes import find_free_port, read_cpu_s
from hookline.testing.process import ProxyProcess

KEY = "bench-key-0123456789"
ROUNDS, CALLS, STREAMS = 5, 400, 60
_NUMBERS = itertools.count()


def payload(number: int, *, streams: bool, usage: bool = False) -> dict[str, Any]:
    text = f"{number:012d} " + "word " * 110
    asked: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], "stream": streams}
    return {**asked, "stream_options": {"include_usage": True}} if usage else asked


def measure(proxy: ProxyProcess, url: str) -> Iterator[tuple[str, float]]:
    """(what, microseconds of CPU per call), round by round."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port))
    said: set[str | None] = set()

    def ask(asked: dict[str, Any]) -> None:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 200, reply.status
        said.add(reply.headers["x-hookline-cache"])

    def cost(what: str, calls: int, expected: str, make: Any) -> tuple[str, float]:
        said.clear()
        before = read_cpu_s(proxy.process.pid)
        for _ in range(calls):
            ask(make())
        used = read_cpu_s(proxy.process.pid) - before
        assert said == {expected}, (what, said)
        return what, used / calls * 1e6

    for _ in range(ROUNDS):
        plain, stream = next(_NUMBERS), next(_NUMBERS)
        ask(payload(plain, streams=False))
        ask(payload(stream, streams=True, usage=True))
        yield cost("plain miss", CALLS, "miss", lambda: payload(next(_NUMBERS), streams=False))
        yield cost("plain hit", CALLS, "hit", lambda plain=plain: payload(plain, streams=False))
        yield cost("plain hit, told as a stream", CALLS, "hit", lambda plain=plain: payload(plain, streams=True))
        yield cost("stream miss", STREAMS, "miss", lambda: payload(next(_NUMBERS), streams=True, usage=True))
        yield cost("stream hit", STREAMS, "hit", lambda stream=stream: payload(stream, streams=True, usage=True))
        yield cost("stream hit, told plain", STREAMS, "hit", lambda stream=stream: payload(stream, streams=False))
        yield cost("stream hit, no usage", STREAMS, "hit", lambda stream=stream: payload(stream, streams=True))


def main() -> None:
    here = Path(__file__).parent
    port = find_free_port()
    upstream = subprocess.Popen([sys.executable, "-m", "bench.upstream", "--port", str(port)], cwd=here.parent)
    environ = {"BENCH_UPSTREAM": f"http://127.0.0.1:{port}/v1", "BENCH_KEY": KEY}
    costs: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = (here / "full.toml").read_text().replace("[server]", "[server]\nport = 0", 1)
            with ProxyProcess(Path(folder), text, environ={**os.environ, **environ}) as proxy:
                for what, cost in measure(proxy, proxy.base_url):
                    costs.setdefault(what, []).append(cost)
    finally:
        upstream.terminate()
        upstream.wait()
    for what, each in costs.items():
        print(f"{what:<30} {statistics.median(each):8.0f} us")


if __name__ == "__main__":
    main()
