"""`[plugins.rate_limit]`: what may stand in it.

Lives here: the defaults of each scope, what is assumed, how long calls may wait. Elsewhere: limits that one key, user, tenant, model or deployment has of its own
(their tables), what they come to (plans.py).
Idea: one table of ceilings, the same for every scope."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from hookline import LimitTable

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


class RateLimitOptions(BaseModel):
    """`[plugins.rate_limit]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    per_key: LimitTable = Field(default=LimitTable(), description="Of each key that has no such limit of its own.")
    per_user: LimitTable = Field(default=LimitTable(), description="Of each user that has no such limit of its own.")
    per_tenant: LimitTable = Field(
        default=LimitTable(), description="Of each tenant that has no such limit of its own."
    )
    per_model: LimitTable = Field(default=LimitTable(), description="Of each model that has no such limit of its own.")
    per_deployment: LimitTable = Field(
        default=LimitTable(), description="Of each deployment that has no such limit of its own."
    )
    everyone: LimitTable = Field(default=LimitTable(), alias="global", description="All calls together.")
    assumed_output_tokens: Count = Field(
        default=4_096, description="Reserved for the output of a request that sets no limit of its own."
    )
    assumed_input_tokens: Count = Field(
        default=4_096,
        description="Reserved beside its bytes for a request that refers to something outside: a URL, a file.",
    )
    cap_output: bool = Field(
        default=False,
        description="Send `assumed_output_tokens` as the limit of a request that sets none, so that no token limit can be overrun.",
    )
    max_wait_s: float = Field(
        default=0.0,
        ge=0,
        le=3_600,
        description="How long a call may wait for its turn in place of a 429; 0 is not at all.",
    )
    max_queue: Count = Field(
        default=100,
        le=10_000,
        description="Calls that may wait at one limit, in each process; the next gets a 429 at once.",
    )
