"""CPU per call of the proxy process on Redis beside memory, in one run: full.toml both times, rounds in turn.

python -m bench.redis_cpu [--rounds 3] [--seconds 3]; needs redis-server and wrk."""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.contenders import KEY, REPO
from bench.load import Aim, run_wrk
from bench.processes import Process, find_free_port, read_cpu_s
from hookline.testing.redis import RedisServer

CONNECTIONS = 64
READY_WITHIN_S = 30


def start(folder: Path, shared: str, upstream_port: int) -> tuple[Process, int]:
    folder.mkdir()
    config = (REPO / "bench" / "full.toml").read_text().replace('shared = "memory"', f'shared = "{shared}"')
    (folder / "full.toml").write_text(config)
    port = find_free_port()
    argv = [sys.executable, "-m", "hookline", "serve", "--config", str(folder / "full.toml"), "--port", str(port)]
    env = {"BENCH_UPSTREAM": f"http://127.0.0.1:{upstream_port}/v1", "BENCH_KEY": KEY}
    return Process(argv, core=0, env=env, cwd=REPO), port


def wait_ready(port: int) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"nothing serves on port {port}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--query", default="")
    given = parser.parse_args()
    upstream_port = find_free_port()
    upstream = Process([sys.executable, "-m", "bench.upstream", "--port", str(upstream_port)], core=1, cwd=REPO)
    with tempfile.TemporaryDirectory() as name, RedisServer(Path(name)) as redis:
        started = {
            shared: start(Path(name) / label, shared, upstream_port)
            for label, shared in (("memory", "memory"), ("redis", redis.url + given.query))
        }
        for _, port in started.values():
            wait_ready(port)
        figures: dict[str, list[float]] = {shared: [] for shared in started}
        for _ in range(given.rounds):
            for shared, (process, port) in started.items():
                before_s = read_cpu_s(process.pid)
                aim = Aim(f"http://127.0.0.1:{port}/v1", key=KEY)
                calls = run_wrk(aim, connections=CONNECTIONS, seconds=given.seconds, core=1)
                process.wait_idle(limit_s=2)
                us = (read_cpu_s(process.pid) - before_s) / max(calls.calls, 1) * 1e6
                figures[shared].append(us)
                print(f"{shared:40} {us:7.1f} us per call, {calls.per_s:7.0f} calls/s, {calls.errors} errors")
        memory, shared_us = (statistics.median(values) for values in figures.values())
        print(f"memory {memory:.1f} us, redis {shared_us:.1f} us: ratio {shared_us / memory:.2f}")
        for process, _ in started.values():
            process.stop()
    upstream.stop()


if __name__ == "__main__":
    main()
