"""Alerts: telling people that a window has reached its alert line.

Lives here: the log line, the counter, what the webhook is told. Elsewhere: the webhook itself (builtins/alert_webhook.py), when the line is reached, once per
window (the limits store).
Idea: telling never waits and never fails a call."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hookline import Host, SpendAlert, format_usd
from hookline.builtins.alert_webhook import AlertWebhook, WebhookSender
from hookline.builtins.budget.windows import NEVER, Plan, payer_of, utc


class Alerts:
    """Logs, counts and sends. `start()` and `stop()` are called by the plugin."""

    def __init__(self, host: Host, webhook: AlertWebhook | None) -> None:
        self._host = host
        self._told = host.metrics.counter(
            "hookline_budget_alerts_total", "Budget windows that reached their alert line.", ("scope",)
        )
        sent = host.metrics.counter(
            "hookline_budget_webhooks_total", "Alerts handed to the webhook, or lost.", ("outcome",)
        )
        self._sender = None if webhook is None else WebhookSender(host, webhook, what="budget alert", sent=sent)

    def start(self) -> None:
        """Begin to send."""
        if self._sender is not None:
            self._sender.start()

    async def stop(self) -> None:
        """Wait a little for what is queued."""
        if self._sender is not None:
            await self._sender.stop()

    def tell(self, alerts: Sequence[SpendAlert], plan: Plan) -> None:
        """Say it once for each window."""
        for alert in alerts:
            name, spend = plan.name_of(alert.spend), alert.spend
            self._told(spend.window.split(":", 1)[0].split("/", 1)[0]).inc()
            spent, limit = format_usd(alert.spent_nanousd), format_usd(spend.limit_nanousd)
            self._host.log.warning("budget %s has reached its alert line: %s of %s USD spent", name, spent, limit)
            if self._sender is not None:
                self._sender.send(describe(alert, name, self._host.clock.time()), about=name)


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
