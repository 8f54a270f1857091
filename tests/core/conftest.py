"""What the tests of the core stand on: a journal in which tickets and plugins write what happened, in order."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from hookline import Result
from hookline.testing.kit import make_plugin

COUNTED = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def chunk(content: str | None = None, *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """One chat completion chunk as an event."""
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({"id": "c1", "object": "chat.completion.chunk", "choices": [choice], **more})


def event(data: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(data)


USAGE_EVENT = event({"id": "c1", "object": "chat.completion.chunk", "choices": [], "usage": COUNTED})
DONE = b"data: [DONE]\n\n"


class Wire:
    """Events of the OpenAI wire, for transcripts."""

    chunk = staticmethod(chunk)
    event = staticmethod(event)
    usage = USAGE_EVENT
    done = DONE
    counted = COUNTED


class Journal(list[str]):
    """Lines in the order in which things happened; `results` holds what each ticket was settled with."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[str, list[Result]] = {}

    def ticket(self, name: str, settle: Callable[[], Any] | None = None) -> Any:
        """A ticket that writes `settle <name>`, then does what `settle()` does: raise, return something to await."""
        return _Ticket(self, name, settle)

    def observer(self, name: str, **more: Any) -> type:
        """A plugin that writes `attempt_ended <name> <number>` and `call_ended <name> <outcome>`."""

        def attempt_ended(call: Any, attempt: Any) -> None:
            self.append(f"attempt_ended {name} {attempt.number}")

        def call_ended(call: Any, result: Any) -> None:
            self.append(f"call_ended {name} {result.outcome}")
            self.results.setdefault(f"call_ended {name}", []).append(result)

        return make_plugin(name, **{"attempt_ended": attempt_ended, "call_ended": call_ended, **more})


class _Ticket:
    def __init__(self, journal: Journal, name: str, settle: Callable[[], Any] | None) -> None:
        self._journal, self._name, self._settle = journal, name, settle

    def settle(self, result: Result) -> Any:
        self._journal.append(f"settle {self._name}")
        self._journal.results.setdefault(self._name, []).append(result)
        return self._settle() if self._settle is not None else None


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def wire() -> type[Wire]:
    return Wire


@pytest.fixture(autouse=True)
def _nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test of the core may leave a task running or an exception that nobody took."""
    yield
    gc.collect()
    unseen = [r.getMessage() for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR]
    assert unseen == []


async def settled(tasks: int = 3) -> None:
    """Let callbacks that are due run."""
    for _ in range(tasks):
        await asyncio.sleep(0)


@pytest.fixture
def tick() -> Callable[[], Any]:
    return settled
