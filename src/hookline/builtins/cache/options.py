"""The cache's options.

Lives here: `[plugins.cache]` and `[models."x".plugins.cache]`. Elsewhere: what they decide (wishes.py, __init__.py).
Idea: one model checks both tables."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

KEPT_MAX_S = 366 * 86_400


class CacheOptions(BaseModel):
    """`[plugins.cache]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    when: Literal["default", "always", "never"] = Field(
        "default",
        description='"default": embeddings, moderations, temperature = 0, and calls that ask by `x-hookline-cache: use`; "always"; "never", whatever the call asks.',
    )
    scope: Literal["tenant", "shared"] = Field(
        "tenant", description='Whose answers a call may get: those of its own tenant; "shared": of every tenant.'
    )
    ttl_s: float = Field(3600, gt=0, le=KEPT_MAX_S, description="How long an answer is fresh.")
    stale_s: float = Field(
        0,
        ge=0,
        le=KEPT_MAX_S,
        description="So long after that it is still served, at once, while it is asked anew in the background.",
    )
    stale_if_error_s: float = Field(
        3600,
        ge=0,
        le=KEPT_MAX_S,
        description="So long after `ttl_s` it is served, marked `stale`, when no provider answers; 0: never.",
    )
    max_entry_bytes: int = Field(1024 * 1024, gt=0, le=1 << 30, description="Longer answers are not kept.")
    headers_in_key: tuple[str, ...] = Field(
        (),
        strict=False,
        description="Request headers that change the answer, beside openai-beta, anthropic-beta and anthropic-version.",
    )
    replay: Literal["at_once", "first_pace"] = Field(
        "at_once", description='How a kept stream is replayed; "first_pace": with the pauses of the first time.'
    )
    replay_max_s: float = Field(
        10, gt=0, le=3_600, description="The pauses of one replay together are no longer than this."
    )
    coalesce: bool = Field(True, description="Equal calls in flight that may be cached make one upstream call.")
    coalesce_pay: Literal["leader", "each"] = Field(
        "leader", description='Who pays for it; "each": every follower, too, in its own budgets, before it may join.'
    )

    @cached_property
    def kept_s(self) -> float:
        """How long an entry may be of use."""
        return self.ttl_s + max(self.stale_s, self.stale_if_error_s)
