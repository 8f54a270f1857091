"""Masking: what is personal in a prompt stays inside the gateway, and is back in the reply.

Lives here: the hooks. Elsewhere: finding and restoring (vault.py), streams (stream.py).
Idea: a call has a vault of what was masked; without one, no event of its stream is touched."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hookline import Call, Event, Reply, Slot, hookimpl
from hookline_mask.stream import StreamRestorer
from hookline_mask.vault import Vault

__all__ = ["MaskOptions", "Plugin"]

MASKED_MEMBERS = ("messages", "input", "prompt", "instructions", "tools")
"""Members of a payload that hold text for a model."""

VAULT: Slot[Vault] = Slot("mask vault")
RESTORER: Slot[StreamRestorer] = Slot("mask restorer")


class MaskOptions(BaseModel):
    """`[plugins.mask]`."""

    model_config = ConfigDict(extra="forbid")

    kinds: list[Literal["email", "card"]] = ["email", "card"]
    restore: bool = True


class Plugin:
    """Masks in `prepare`, restores in `edit_reply` and `edit_event`."""

    Options = MaskOptions
    supports_dry_run = True

    def __init__(self, options: MaskOptions, host: Any) -> None:
        self._kinds = tuple(options.kinds)
        self._restores = options.restore

    @hookimpl
    def prepare(self, call: Call) -> None:
        if call.payload is None:
            return
        vault = Vault(self._kinds, taken=call.body.decode("utf-8", "replace"))
        masked = {m: vault.mask(call.payload[m]) for m in MASKED_MEMBERS if m in call.payload}
        if vault.is_empty:
            return
        call.edit_payload().update(masked)
        if self._restores:
            call[VAULT] = vault

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        vault = call.find(VAULT)
        if vault is not None and isinstance(reply.body, bytes) and vault.may_be_in(reply.body):
            value = reply.json()
            if value is not None:
                reply.replace_json(vault.restore(value))
        return reply

    @hookimpl
    def edit_event(self, call: Call, event: Event) -> Event | list[Event] | None:
        vault = call.find(VAULT)
        if vault is None:
            return event
        restorer = call.find(RESTORER)
        if restorer is None:
            restorer = call[RESTORER] = StreamRestorer(vault)
        return restorer.edit(event)
