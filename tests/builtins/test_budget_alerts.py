"""Alerts, with a real receiver that checks signatures as the standard's own library does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks import Webhook

from hookline import Budget, Principal, StartupError
from hookline.builtins import alert_webhook
from hookline.builtins.budget import Plugin
from hookline.stores.memory import MemoryLimits
from hookline.testing.clock import FakeClock
from hookline.testing.kit import CHAT, PipelineKit

MakeKit = Callable[..., PipelineKit]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ASKED = {**CHAT, "max_tokens": 1}
OVER = Principal(key_id="ci", key_name="ci", budget=Budget(daily_nanousd=30_000, mode="soft"))
"""Its second call is beyond its alert line, and its first one is not: 24,000 and 20,000."""


class Receiver:
    """Takes alerts; answers the statuses it is given, then 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[tuple[dict[str, str], str]] = []
        self.has_come = asyncio.Event()

    async def take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.got.append((headers, await request.text()))
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.has_come.set()
        return web.Response(status=status)


class RealTime(FakeClock):
    """The library refuses signatures that are not of now."""

    def time(self) -> float:
        import time

        return time.time()


@pytest.fixture
async def start_receiver() -> AsyncIterator[Callable[..., Any]]:
    runners: list[web.AppRunner] = []

    async def start(receiver: Receiver) -> str:
        app = web.Application()
        app.router.add_post("/alerts", receiver.take)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/alerts"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def started(make_kit: MakeKit, session: aiohttp.ClientSession, url: str, **more: Any) -> PipelineKit:
    kit = make_kit(options={"alert_webhook": {"url": url, "secret": SECRET}}, **more)
    kit.workshop.find_http = lambda: session
    kit.plugin(Plugin).start()
    return kit


async def test_an_alert_is_signed_says_where_the_window_stands_and_comes_once(
    make_kit, session, start_receiver, monkeypatch
) -> None:
    receiver = Receiver()
    kit = started(make_kit, session, await start_receiver(receiver), clock=RealTime())

    for _ in range(4):
        await kit.call(ASKED, principal=OVER)
    await receiver.has_come.wait()
    await kit.plugin(Plugin).stop()
    await kit.workshop.cancel_tasks()

    ((headers, body),) = receiver.got
    told = Webhook(SECRET).verify(body, headers)
    assert told == json.loads(body)
    assert (told["type"], told["data"]["budget"]) == ("budget.alert", '"ci" (key, daily)')
    assert (told["data"]["spent_usd"], told["data"]["limit_usd"]) == ("0.00004", "0.00003")
    assert kit.metric("hookline_budget_webhooks_total", outcome="sent") == 1
    assert SECRET not in body


async def test_a_receiver_that_fails_is_asked_again_with_the_same_id(
    make_kit, session, start_receiver, monkeypatch
) -> None:
    monkeypatch.setattr(alert_webhook, "FIRST_PAUSE_S", 0.001)
    receiver = Receiver(500, 302, 429)
    kit = started(make_kit, session, await start_receiver(receiver), clock=RealTime())

    for _ in range(2):
        await kit.call(ASKED, principal=OVER)
    await receiver.has_come.wait()
    await kit.workshop.cancel_tasks()

    assert len(receiver.got) == 4
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1


async def test_nobody_there_costs_an_alert_and_no_call(make_kit, session, monkeypatch, caplog) -> None:
    monkeypatch.setattr(alert_webhook, "FIRST_PAUSE_S", 0.001)
    kit = started(make_kit, session, "http://127.0.0.1:1/alerts?token=canary")

    statuses = [(await kit.call(ASKED, principal=OVER)).status for _ in range(3)]
    await kit.plugin(Plugin).alerts._sender._queue.join()
    await kit.workshop.cancel_tasks()

    assert statuses == [200] * 3
    assert "was not taken by the webhook in 5 tries" in caplog.text
    assert "canary" not in caplog.text


async def test_what_waits_is_bounded(make_kit, session, caplog) -> None:
    kit = make_kit(
        options={"alert_webhook": {"url": "http://127.0.0.1:1/", "secret": SECRET}}
    )  # not started: nobody sends

    for number in range(alert_webhook.QUEUE_MAX + 3):
        payer = Principal(key_id=f"k{number}", budget=Budget(total_nanousd=1, mode="soft"))
        await kit.call(ASKED, principal=payer)

    assert kit.metric("hookline_budget_webhooks_total", outcome="lost") == 3


async def test_an_alert_is_not_told_again_after_a_restart(make_kit, caplog) -> None:
    clock = FakeClock()
    first = make_kit(clock=clock)
    for _ in range(2):
        await first.call(ASKED, principal=OVER)
    await first.workshop.stores.records.flush()

    second = make_kit(clock=clock, limits=MemoryLimits(clock))
    await second.call(ASKED, principal=OVER)

    assert caplog.text.count("has reached its alert line") == 1


@pytest.mark.parametrize("secret", ["not base64!", "", "whsec_", "abc!", "whsec_MfKQ9r8G-YqrTwjUPD8ILPZIo2LaLaSw"])
def test_a_secret_that_signs_nothing_is_refused_at_start(make_kit, secret: str) -> None:
    with pytest.raises((StartupError, ValueError), match=r"whsec_|secret"):
        make_kit(options={"alert_webhook": {"url": "http://127.0.0.1:1/", "secret": secret}})


async def test_an_alert_of_the_last_moment_is_sent_before_its_configuration_ends(
    make_kit, start_receiver, session
) -> None:
    """A reload ends what was spawned, then stops the plugins."""
    receiver = Receiver()
    kit = started(make_kit, session, await start_receiver(receiver), clock=RealTime())

    for _ in range(2):
        await kit.call(ASKED, principal=OVER)
    await kit.workshop.cancel_tasks()
    await kit.plugin(Plugin).stop()

    assert len(receiver.got) == 1
