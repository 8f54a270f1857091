"""wrk as load generator: one closed loop of C connections for S seconds, every call different (chat.lua).

Lives here: the command line, its answer. Elsewhere: streams whose order is checked (streams.py), CPU and memory (processes.py).
Idea: chat.lua prints one line of JSON in microseconds; wrk's own rounded text is never parsed."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import orjson

CALL_TIMEOUT_S = 30
_SCRIPT = Path(__file__).with_name("chat.lua")
_MARK = "BENCH "


class LoadError(Exception):
    """wrk did not run or did not report."""


@dataclass(frozen=True, slots=True)
class Calls:
    """What wrk saw. Errors: no connection, broken, timed out, or a status above 399."""

    calls: int
    seconds: float
    errors: int
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        return self.calls / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Aim:
    """Where wrk shoots: an SDK's base_url (it ends in /v1), a key, a model, headers."""

    base_url: str
    key: str = "sk-bench"
    model: str = "gpt-4o-mini"
    headers: Mapping[str, str] | None = None

    @property
    def origin(self) -> str:
        url = urlsplit(self.base_url)
        return f"{url.scheme}://{url.netloc}"

    @property
    def path(self) -> str:
        return urlsplit(self.base_url).path.rstrip("/") + "/chat/completions"


def run_wrk(
    aim: Aim, *, connections: int, seconds: int, core: int | None, stream: bool = False, prompt_bytes: int = 0
) -> Calls:
    """One load run. In: core = where wrk is pinned. Out: what it saw. Raises LoadError when wrk says nothing."""
    run = secrets.token_hex(3)
    headers = [text for pair in (aim.headers or {}).items() for text in pair]
    argv = ["taskset", "-c", str(core)] if core is not None else []
    argv += ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{CALL_TIMEOUT_S}s", "-s", str(_SCRIPT)]
    argv += [aim.origin, "--", aim.path, aim.key, aim.model, run, "1" if stream else "0", str(prompt_bytes), *headers]
    try:
        ended = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + CALL_TIMEOUT_S + 10, check=False)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"wrk against {aim.origin} did not end in {error.timeout:.0f} s") from error
    return parse_calls(ended.stdout, ended.stderr)


def parse_calls(stdout: str, stderr: str = "") -> Calls:
    """In: what wrk printed. Out: the figures. Raises LoadError when chat.lua's line is not there."""
    for line in stdout.splitlines():
        if line.startswith(_MARK):
            seen = orjson.loads(line[len(_MARK) :])
            return Calls(
                calls=seen["calls"],
                seconds=seen["duration_us"] / 1e6,
                errors=sum(seen[kind] for kind in ("connect", "read", "write", "status", "timeout")),
                p50_ms=seen["p50_us"] / 1000,
                p99_ms=seen["p99_us"] / 1000,
            )
    raise LoadError(f"wrk printed no figures: {(stderr or stdout).strip()[-500:]}")
