"""Alerts: telling people that a window has reached its alert line.

Lives here: the log line, the counter, the signed webhook with its queue and retries. Elsewhere: when the line is reached, once per window (the limits store).
Idea: telling never waits and never fails a call. The queue is bounded; an alert that finds it full, or that nobody takes after all tries, is logged and counted as lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from hookline import Host, SpendAlert, StartupError, format_usd
from hookline.builtins.budget.options import AlertWebhook
from hookline.builtins.budget.windows import NEVER, Plan, payer_of, utc

QUEUE_MAX = 100
TRIES = 5
FIRST_PAUSE_S = 1.0
TIMEOUT_S = 10.0
LAST_WAIT_S = 2.0
"""At the end, for what is still queued."""


class Alert(NamedTuple):
    """One message on its way; the id is the same in every try."""

    id: str
    text: str


class Alerts:
    """Logs, counts and sends. `start()` and `stop()` are called by the plugin."""

    def __init__(self, host: Host, webhook: AlertWebhook | None) -> None:
        self._host = host
        self._webhook = webhook
        self._signer: Any = None if webhook is None else _make_signer(webhook)
        self._queue: asyncio.Queue[Alert] = asyncio.Queue(QUEUE_MAX)
        self._sending: asyncio.Task[None] | None = None
        self._unsent = 0
        self._told = host.metrics.counter(
            "hookline_budget_alerts_total", "Budget windows that reached their alert line.", ("scope",)
        )
        self._sent = host.metrics.counter(
            "hookline_budget_webhooks_total", "Alerts handed to the webhook, or lost.", ("outcome",)
        )

    def start(self) -> None:
        """Begin to send. A task of its own: what a host spawned ends before `stop` is called."""
        if self._webhook is not None:
            self._sending = asyncio.get_running_loop().create_task(self._send_all(), name="budget: alerts")

    async def stop(self) -> None:
        """Wait a little for what is queued."""
        if self._sending is None:
            return
        try:
            async with asyncio.timeout(LAST_WAIT_S):
                await self._queue.join()
        except TimeoutError:
            self._host.log.warning("budget alerts were not sent before the end: %d", self._unsent)
            self._sent("lost").inc(self._unsent)
        finally:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    def tell(self, alerts: Sequence[SpendAlert], plan: Plan) -> None:
        """Say it once for each window."""
        for alert in alerts:
            name, spend = plan.name_of(alert.spend), alert.spend
            self._told(spend.window.split(":", 1)[0].split("/", 1)[0]).inc()
            spent, limit = format_usd(alert.spent_nanousd), format_usd(spend.limit_nanousd)
            self._host.log.warning("budget %s has reached its alert line: %s of %s USD spent", name, spent, limit)
            if self._webhook is None:
                continue
            message = Alert(f"msg_{uuid4().hex}", json.dumps(describe(alert, name, self._host.clock.time())))
            try:
                self._queue.put_nowait(message)
                self._unsent += 1
            except asyncio.QueueFull:
                self._sent("lost").inc()
                self._host.log.error("budget alert for %s was not sent: %d wait already", name, QUEUE_MAX)

    async def _send_all(self) -> None:
        while True:
            alert = await self._queue.get()
            try:
                await self._send(alert)
            finally:
                self._unsent -= 1
                self._queue.task_done()

    async def _send(self, alert: Alert) -> None:
        pause_s, said = FIRST_PAUSE_S, ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s *= 2
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status = await self._post(alert)
            except Exception as error:
                said = type(error).__name__  # its text may hold the URL, and that a secret
                continue
            if 200 <= status < 300:
                self._sent("sent").inc()
                return
            said = f"it answered {status}"
        self._sent("lost").inc()
        self._host.log.error("budget alert %s was not taken by the webhook in %d tries: %s", alert.id, TRIES, said)

    async def _post(self, alert: Alert) -> int:
        assert self._webhook is not None
        now = datetime.fromtimestamp(int(self._host.clock.time()), UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": alert.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(alert.id, now, alert.text),
        }
        posting = self._host.http.post(self._webhook.url, data=alert.text, headers=headers, allow_redirects=False)
        async with posting as response:
            status: int = response.status
            return status


def describe(alert: SpendAlert, name: str, now: float) -> dict[str, Any]:
    """The webhook's payload: names and amounts, nothing of any call."""
    spend = alert.spend
    return {
        "type": "budget.alert",
        "timestamp": datetime.fromtimestamp(now, UTC).isoformat(),
        "data": {
            "budget": name,
            "scope": payer_of(spend.window),
            "window": spend.window,
            "spent_usd": format_usd(alert.spent_nanousd),
            "limit_usd": format_usd(spend.limit_nanousd),
            "alert_at_usd": format_usd(spend.alert_nanousd or 0),
            "resets_at": None if spend.resets_at == NEVER else utc(spend.resets_at),
            "is_hard": spend.is_hard,
        },
    }


def _make_signer(webhook: AlertWebhook) -> Any:
    try:
        from standardwebhooks import Webhook
    except ImportError as error:
        raise StartupError(
            ["[plugins.budget] alert_webhook needs the package standardwebhooks: pip install 'hookline[webhooks]'"]
        ) from error
    try:
        return Webhook(webhook.secret.get_secret_value())
    except Exception as error:
        raise StartupError(
            ['[plugins.budget] alert_webhook secret: must be base64, as in "whsec_MfKQ9r8G..."']
        ) from error
