"""Options of `[plugins.budget]`.

Lives here: their names, defaults and words. Elsewhere: budgets themselves (keys, `[users]`, `[tenants]`, `[global]`), prices (`[prices]`).
Idea: strict, like every table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hookline.builtins.alert_webhook import AlertWebhook


class BudgetOptions(BaseModel):
    """`[plugins.budget]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        4_096, description="Cap of an answer on a hard budget where the request sets no limit of its own."
    )
    clamp: bool = Field(
        False, description="Lower a request's own completion limit to what is left, instead of refusing it."
    )
    when_store_is_away: Literal["refuse", "serve"] = Field(
        "refuse",
        description="What becomes of calls on a budget while the shared store can't be asked; `serve`: no budget holds them, the ledger books them.",
    )
    alert_webhook: AlertWebhook | None = Field(
        None, description="Who is told of windows that reach their alert line; needs the extra `webhooks`."
    )
