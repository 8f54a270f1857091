"""Call log: one JSON line per call.

Lives here: what a line says, and the sink that gets it out of the process. Elsewhere: log messages that are not about one call (`host.log`, stdlib logging), what is counted (metrics.py).
Idea: the event loop only appends bytes to a list; a thread writes them in batches. A reader that stops reading costs lines, which are counted, and never the loop or the memory.

The sink's rules
- At most `max_buffer_bytes` wait, in the list and with the thread; a line beyond that is dropped and counted.
- After a loss, the next line that gets through is preceded by `{"time", "dropped_lines": n}`.
- Into a pipe, writes hold whole lines and at most PIPE_BUF bytes, so that lines of several workers never mix.
- At the end the thread is waited for, STOP_WAIT_S at most; what a blocked pipe has not taken by then is lost."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import select
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from hookline import CACHE_STATUS, END_USER, NANO_PER_USD, SKIPPED, Attempt, Call, Host, Result, StartupError, hookimpl

FLUSH_BYTES = 64 * 1024
FLUSH_S = 0.2
STOP_WAIT_S = 2.0
FILE_WRITE_BYTES = 256 * 1024
TEXT_MAX_CHARS = 500
SKIPPED_MAX = 20
STANDARD_STREAMS = {"stdout": 1, "stderr": 2}


class LoggingOptions(BaseModel):
    """`[plugins.logging]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    to: str = Field("stderr", min_length=1, description='"stderr", "stdout", or the path of a file to append to.')
    prompts: bool = Field(False, description="Add the request's body: what people wrote is then in the log.")
    max_prompt_bytes: int = Field(
        64 * 1024, ge=0, le=1 << 30, description="A longer request is logged by its size only."
    )
    max_buffer_bytes: int = Field(
        4 * 1024 * 1024,
        ge=64 * 1024,
        le=1 << 30,
        description="Lines that wait for a slow reader; more are dropped and counted.",
    )


class Plugin:
    """Makes a line of every call's end and hands it to the sink."""

    Options = LoggingOptions

    def __init__(self, options: LoggingOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        for model, of_model in host.options_by_model.items():
            if (of_model.to, of_model.max_buffer_bytes) != (options.to, options.max_buffer_bytes):
                raise StartupError(
                    [f'[models."{model}".plugins.logging]: only prompts and max_prompt_bytes can differ per model']
                )
        self._dropped = host.metrics.counter(
            "hookline_log_lines_dropped_total", "Call log lines lost to a slow reader"
        )()
        self._sink: LineSink | None = None
        self._second = 0
        self._second_text = ""

    def start(self) -> None:
        """Open the destination. Raises StartupError when it can't be written."""
        self._sink = LineSink(open_destination(self._options.to), self._options.max_buffer_bytes, self._dropped.inc)

    async def stop(self) -> None:
        """Write what waits. On a reload calls go on beside us, so the wait is not the loop's."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()
            await asyncio.to_thread(sink.join)
            sink.count_failed()

    @hookimpl
    def call_ended(self, call: Call, result: Result) -> None:
        if self._sink is None:  # a detached stream that outlived us
            self._dropped.inc()
            return
        record = describe(call, result, self._time_text(call.started_time))
        options: LoggingOptions = self._options_by_model.get(call.model or "", self._options)
        if options.prompts:
            is_short = len(call.body) <= options.max_prompt_bytes
            record["request"] = call.payload if is_short else {"bytes": len(call.body)}
        self._sink.write(encode(record))

    def _time_text(self, at: float) -> str:
        """ISO 8601 in UTC with milliseconds; the seconds' part is made once per second."""
        second = int(at)
        if second != self._second:
            self._second, self._second_text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return "%s.%03dZ" % (self._second_text, (at - second) * 1000)  # noqa: UP031 - half the time of an f-string here


def describe(call: Call, result: Result, time_text: str) -> dict[str, Any]:
    """What a line says. `time` is when the call began; `cost_usd` is exact, and null where no price is known."""
    outcome, source, attempt, status, usage, cost, is_estimated, error, ended_at, first_byte_at = result
    inputs, outputs, cached = usage[:3] if usage is not None else (None, None, None)
    principal, started_at, model = call.principal, call.started_at, call.model
    record: dict[str, Any] = {
        "time": time_text,
        "id": call.id,
        "endpoint": call.endpoint,
        "model": model if model is None or len(model) <= TEXT_MAX_CHARS else model[:TEXT_MAX_CHARS],
        "deployment": attempt.target.deployment.id if attempt is not None else None,
        "status": status,
        "outcome": outcome,
        "source": source,
        "stream": call.is_stream,
        "latency_ms": to_ms(ended_at - started_at),
        "ttft_ms": to_ms(first_byte_at - started_at) if first_byte_at is not None else None,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "cached_tokens": cached,
        "cost_usd": exact_usd(cost) if cost is not None else None,
        "estimated": is_estimated,
        "cache": call.slots.get(CACHE_STATUS),
        "key": principal.key_name,
        "tenant": principal.tenant,
        "user": principal.user,
        "attempts": [*map(describe_attempt, call.attempts, (None, *call.attempts))],
    }
    if (skipped := call.slots.get(SKIPPED)) is not None:
        record["skipped"] = [
            {"deployment": name, "reason": why[:TEXT_MAX_CHARS]} for name, why in skipped[:SKIPPED_MAX]
        ]
    if (end_user := call.slots.get(END_USER)) is not None:
        record["end_user"] = end_user
    if principal.tags:
        record["tags"] = principal.tags
    if principal.key_id != principal.key_name:  # a virtual key: others may have its name
        record["key_id"] = principal.key_id
    if call.endpoint == "relay":
        record["method"], record["path"] = call.method, call.path[:TEXT_MAX_CHARS]
    if error is not None:
        record["error"] = {"type": error.type, "code": error.error_code, "message": error.message[:TEXT_MAX_CHARS]}
    return record


def to_ms(seconds: float) -> float:
    """Milliseconds to the microsecond; `round()` takes twice as long."""
    return int(seconds * 1e6 + 0.5) / 1e3


def exact_usd(nanousd: int) -> orjson.Fragment:
    """Nano-dollars as a JSON number in USD, every digit kept."""
    return orjson.Fragment(b"%d.%09d" % divmod(nanousd, NANO_PER_USD))


def describe_attempt(attempt: Attempt, before: Attempt | None = None) -> dict[str, Any]:
    """One try: where, how it ended, and why it was made or why it failed. `before`: the one that was made before it."""
    record: dict[str, Any] = {
        "deployment": attempt.target.deployment.id,
        "status": attempt.status,
        "ms": to_ms(attempt.ended_at - attempt.started_at) if attempt.ended_at is not None else None,
    }
    if attempt.error is not None:
        record["error"] = attempt.error.error_code
        record["message"] = attempt.error.message[:TEXT_MAX_CHARS]
    if reason := attempt.target.reason if before is None else why_again(attempt, before):
        record["reason"] = reason
    if attempt.is_hedge or attempt.is_loser:
        record["hedge"] = hedge_ended(attempt)
    return record


def hedge_ended(attempt: Attempt) -> str:
    """Neither side has won where the client left before a first byte."""
    if attempt.error is not None and not attempt.is_loser:
        return "failed"
    return "lost" if attempt.is_loser or attempt.first_byte_at is None else "won"


def why_again(attempt: Attempt, before: Attempt) -> str:
    """Why there was another try."""
    name = before.deployment.id
    if attempt.is_hedge:
        return f"{name} was late"
    why = f"{name}: {before.error.error_code}" if before.error is not None else name
    if attempt.target is before.target or not attempt.target.reason:
        return f"after {why}"
    return f"after {why}; {attempt.target.reason}"


def encode(record: dict[str, Any]) -> bytes:
    """One line. Text that is no valid Unicode (bytes of a raw header or path) is escaped, never a reason to lose the line."""
    try:
        return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:
        if "request" in record:  # deeper than orjson writes
            record = {**record, "request": json.dumps(record["request"])}
        return orjson.dumps(_escaped(record), option=orjson.OPT_APPEND_NEWLINE, default=str)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(k): _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return value


def open_destination(to: str) -> int:
    """A file descriptor of our own for `to`. Raises StartupError."""
    try:
        if to in STANDARD_STREAMS:
            return os.dup(STANDARD_STREAMS[to])
        return os.open(Path(to).expanduser(), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise StartupError([f'[plugins.logging] to = "{to}" can\'t be written: {error.strerror}']) from error


class LineSink:
    """Bytes lines into a file descriptor, which it owns; see the module's rules. `write` is for the event loop's thread."""

    def __init__(self, fd: int, max_buffer_bytes: int, on_drop: Callable[[float], None]) -> None:
        self._fd = fd
        self._max_buffer_bytes = max_buffer_bytes
        self._on_drop = on_drop
        self._write_bytes = select.PIPE_BUF if stat.S_ISFIFO(os.fstat(fd).st_mode) else FILE_WRITE_BYTES
        self._lines: list[bytes] = []
        self._lines_bytes = 0
        # Each counter has one writer: the first two the loop, the other two the thread.
        self._queued_bytes = 0
        self._counted_failed_lines = 0
        self._done_bytes = 0
        self._failed_lines = 0
        self._lost_lines = 0
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.SimpleQueue[Sequence[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="hookline-call-log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line (with its newline), or drop it."""
        if self._lines_bytes + self._queued_bytes - self._done_bytes + len(line) > self._max_buffer_bytes:
            self._lost_lines += 1
            self._on_drop(1)
            return
        if self._lost_lines:
            lost, self._lost_lines = self._lost_lines, 0
            self.write(encode({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "dropped_lines": lost}))
        self._lines.append(line)
        self._lines_bytes += len(line)
        if self._lines_bytes >= FLUSH_BYTES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Hand what waits to the thread."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.count_failed()
        if self._lines:
            self._queued_bytes += self._lines_bytes
            self._batches.put(self._lines)
            self._lines, self._lines_bytes = [], 0

    @property
    def waiting_bytes(self) -> int:
        """What is queued and not yet written."""
        return self._lines_bytes + self._queued_bytes - self._done_bytes

    def count_failed(self) -> None:
        """Count what the thread could not write; counters are the loop's."""
        failed = self._failed_lines - self._counted_failed_lines
        if failed:
            self._counted_failed_lines += failed
            self._on_drop(failed)

    def close(self) -> None:
        """Flush, and let the thread end when it has written everything."""
        self.flush()
        self._batches.put(None)

    def join(self) -> None:
        """Wait for the thread, but not for a reader that does not read. Blocks: for any thread but the loop's."""
        self._thread.join(STOP_WAIT_S)

    def _run(self) -> None:
        while (lines := self._batches.get()) is not None:
            for piece in pieces(lines, self._write_bytes):
                self._write_all(piece)
            self._done_bytes += sum(map(len, lines))
        os.close(self._fd)

    def _write_all(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # somebody who shares this pipe made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:  # the reader is gone, the disk is full: these lines are lost, and counted
                self._failed_lines += piece.count(b"\n")
                return


def pieces(lines: Sequence[bytes], max_bytes: int) -> list[bytes]:
    """Join whole lines into writes of at most `max_bytes`; a line that is longer goes alone."""
    joined: list[bytes] = []
    piece: list[bytes] = []
    piece_bytes = 0
    for line in lines:
        if piece and piece_bytes + len(line) > max_bytes:
            joined.append(b"".join(piece))
            piece, piece_bytes = [], 0
        piece.append(line)
        piece_bytes += len(line)
    if piece:
        joined.append(b"".join(piece))
    return joined
