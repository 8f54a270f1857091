"""Alert webhooks: telling somebody outside, signed, with tries.

Lives here: the table `alert_webhook`, the queue, the signature, the tries. Elsewhere: what is told, and when (budget, circuit_breaker).
Idea: telling never waits and never fails a call. The queue is bounded; a message that finds it full, or that nobody takes after all tries, is logged and counted as lost."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from hookline import Host, StartupError

QUEUE_MAX = 100
TRIES = 5
FIRST_PAUSE_S = 1.0
TIMEOUT_S = 10.0
LAST_WAIT_S = 2.0
"""At the end, for what is still queued."""


class AlertWebhook(BaseModel):
    """`alert_webhook = { url, secret }`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: str = Field(
        pattern=r"^https?://[^\s]+$", description="Gets a POST per alert, signed as standardwebhooks.com says."
    )
    secret: SecretStr = Field(strict=False, description='As in "whsec_..."; what signs the alerts.')


class Message(NamedTuple):
    """One message on its way; the id is the same in every try."""

    id: str
    text: str


class WebhookSender:
    """Sends what it is given, in order. `start()` and `stop()` are called by the plugin. Raises StartupError for a secret that can't sign."""

    def __init__(self, host: Host, webhook: AlertWebhook, *, what: str, sent: Callable[..., Any]) -> None:
        self._host = host
        self._webhook = webhook
        self._what = what
        self._sent = sent
        self._signer = _make_signer(host.plugin, webhook)
        self._queue: asyncio.Queue[Message] = asyncio.Queue(QUEUE_MAX)
        self._sending: asyncio.Task[None] | None = None
        self._unsent = 0

    def start(self) -> None:
        """Begin to send. A task of its own: what a host spawned ends before `stop` is called."""
        self._sending = asyncio.get_running_loop().create_task(self._send_all(), name=f"{self._what}s")

    async def stop(self) -> None:
        """Wait a little for what is queued."""
        if self._sending is None:
            return
        try:
            async with asyncio.timeout(LAST_WAIT_S):
                await self._queue.join()
        except TimeoutError:
            self._host.log.warning("%ss were not sent before the end: %d", self._what, self._unsent)
            self._sent("lost").inc(self._unsent)
        finally:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    def send(self, payload: Mapping[str, Any], *, about: str) -> None:
        """Queue one message."""
        try:
            self._queue.put_nowait(Message(f"msg_{uuid4().hex}", json.dumps(payload)))
            self._unsent += 1
        except asyncio.QueueFull:
            self._sent("lost").inc()
            self._host.log.error("%s for %s was not sent: %d wait already", self._what, about, QUEUE_MAX)

    async def _send_all(self) -> None:
        while True:
            message = await self._queue.get()
            try:
                await self._send(message)
            finally:
                self._unsent -= 1
                self._queue.task_done()

    async def _send(self, message: Message) -> None:
        pause_s, said = FIRST_PAUSE_S, ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
                pause_s *= 2
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status = await self._post(message)
            except Exception as error:
                said = type(error).__name__  # its text may hold the URL, and that a secret
                continue
            if 200 <= status < 300:
                self._sent("sent").inc()
                return
            said = f"it answered {status}"
        self._sent("lost").inc()
        told = "%s %s was not taken by the webhook in %d tries: %s"
        self._host.log.error(told, self._what, message.id, TRIES, said)

    async def _post(self, message: Message) -> int:
        now = datetime.fromtimestamp(int(self._host.clock.time()), UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(message.id, now, message.text),
        }
        posting = self._host.http.post(self._webhook.url, data=message.text, headers=headers, allow_redirects=False)
        async with posting as response:
            status: int = response.status
            return status


def _make_signer(plugin: str, webhook: AlertWebhook) -> Any:
    where = f"[plugins.{plugin}] alert_webhook"
    try:
        from standardwebhooks import Webhook
    except ImportError as error:
        raise StartupError([f"{where} needs the package standardwebhooks: pip install 'hookline[webhooks]'"]) from error
    try:
        secret = webhook.secret.get_secret_value()
        # The package itself leaves out what is no base64, and would sign with what remains.
        if not base64.b64decode(secret.removeprefix("whsec_"), validate=True):
            raise ValueError("empty")
        return Webhook(secret)
    except Exception as error:
        raise StartupError([f'{where} secret: must be base64, as in "whsec_MfKQ9r8G..."']) from error
