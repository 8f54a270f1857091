"""A load whose money can be checked to the last nano-dollar.

Lives here: an upstream that writes down what it would bill, clients that write down what they got, the comparison with a ledger. Elsewhere: what happens
meanwhile (the tests: killed workers, stopped servers).
Idea: every call has an id, which travels as `x-request-id` into the ledger and as `user` to the upstream. So three books are kept of each call, and only the
ledger's is the gateway's."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from hookline.testing.upstream import RecordedRequest, ScriptedUpstream, Step, json_reply, sse_reply

NANO_PER_TOKEN = 1_000
"""At 1 USD per million tokens, in and out: what PRICES say."""
PRICES = '[prices."m"]\ninput = 1.0\noutput = 1.0\n'
MAX_TOKENS = 50


@dataclass
class Books:
    """What the upstream and the clients wrote down, by call id."""

    billed: dict[str, int] = field(default_factory=dict)
    """Nano-dollars, from the moment the upstream has begun to answer: it charges for answers nobody waited for."""
    complete: set[str] = field(default_factory=set)
    """Calls whose client has the whole answer."""
    lost: set[str] = field(default_factory=set)
    """Calls whose connection broke: they ran on a worker that was killed."""
    refused: dict[str, tuple[int, Any]] = field(default_factory=dict)
    """Status and error object of the others."""

    @property
    def asked(self) -> int:
        return len(self.complete) + len(self.lost) + len(self.refused)

    def statuses(self) -> Counter[int]:
        return Counter(status for status, _ in self.refused.values())

    def compare(self, ledger: Mapping[str, int]) -> list[str]:
        """What is wrong with `ledger` (nano-dollars by call id), in sentences: exact for complete calls, never below the bill for the others."""
        wrong = []
        for call_id in sorted(self.complete):
            if ledger.get(call_id) != self.billed[call_id]:
                wrong.append(f"{call_id} is complete: billed {self.billed[call_id]}, booked {ledger.get(call_id)}")
        for call_id, billed in sorted(self.billed.items()):
            if call_id not in self.complete and ledger.get(call_id, 0) < billed:
                wrong.append(f"{call_id} was not received: billed {billed}, booked {ledger.get(call_id)}")
        wrong += [
            f"{call_id} was refused and is booked"
            for call_id in self.refused
            if ledger.get(call_id, 0) and call_id not in self.billed
        ]
        return wrong


def bill(upstream: ScriptedUpstream, books: Books, chance: random.Random, *, thinks_s: float = 0.05) -> None:
    """Have the upstream answer every chat, streams and not, after `thinks_s` at most, and write down what it charges."""

    def think() -> asyncio.Event:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(chance.uniform(0, thinks_s), event.set)
        return event

    def answer(request: RecordedRequest) -> list[Step]:
        asked = request.json()
        # A prompt has at most as many tokens as bytes; what the gateway adds to the body is no prompt.
        inputs, outputs = chance.randint(1, len(orjson.dumps(asked["messages"]))), chance.randint(1, MAX_TOKENS)
        books.billed[asked["user"]] = books.billed.get(asked["user"], 0) + (inputs + outputs) * NANO_PER_TOKEN
        usage = {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs}
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
            return [think(), *json_reply({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})]
        events: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"content": f"w{n} "}, "finish_reason": None}]} for n in range(10)
        ]
        events += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage}]
        told = [orjson.dumps({"id": "c", **event}).decode() for event in events]
        return sse_reply(*told[:5], think(), *told[5:], "[DONE]")

    upstream.always(answer)


@asynccontextmanager
async def clients(
    urls: list[str], books: Books, *, key: str, number: int, prefix: str = "call"
) -> AsyncIterator[Callable[[], None]]:
    """`number` clients that call without pause until the block is left; each ends its last call. Yields nothing to do."""
    stopped = asyncio.Event()
    counter = iter(range(1 << 30))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(60)
    ) as session:

        async def run() -> None:
            while not stopped.is_set():
                n = next(counter)
                await ask(session, urls[n % len(urls)], books, f"{prefix}-{n}", key=key, is_stream=n % 2 == 1)

        tasks = [asyncio.ensure_future(run()) for _ in range(number)]
        try:
            yield stopped.set
        finally:
            stopped.set()
            await asyncio.gather(*tasks)


async def ask(
    session: aiohttp.ClientSession, url: str, books: Books, call_id: str, *, key: str, is_stream: bool
) -> None:
    """One call, written down."""
    body = {
        "model": "m", "user": call_id, "max_tokens": MAX_TOKENS, "stream": is_stream, "messages": [{"role": "user", "content": call_id}],
    }  # fmt: skip
    headers = {"authorization": f"Bearer {key}", "x-request-id": call_id}
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            told = await response.read()
    except (aiohttp.ClientError, ConnectionError):
        books.lost.add(call_id)
        return
    if response.status != 200:
        books.refused[call_id] = (response.status, orjson.loads(told).get("error"))
    elif is_stream and not told.endswith(b"data: [DONE]\n\n"):
        books.refused[call_id] = (response.status, told[-500:])
    else:
        books.complete.add(call_id)


async def until(claim: Callable[[], bool]) -> None:
    """Wait for what another process brings about, of which it tells nobody."""
    while not claim():  # noqa: ASYNC110 - nobody sets an event
        await asyncio.sleep(0.01)
