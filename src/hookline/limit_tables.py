"""Limits and budgets, as they are written: in proxy.toml, in `/admin/keys`, on the command line.

Lives here: the pydantic models of both. Elsewhere: what they come to (`Limits` and `Budget` of principal.py), who has them (config.py, builtins).
Idea: one definition for every scope and every door, so that what one takes the others take, with the same words for what is wrong."""

from __future__ import annotations

import zoneinfo
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hookline.principal import Budget, Limits

# 2**53: beyond, the doubles of Redis' scripts no longer count one by one.
Count = Annotated[int, Field(ge=1, le=2**53)]
BudgetUsd = Annotated[float, Field(ge=0, le=9_000_000, allow_inf_nan=False)]
"""2**53 nano-dollars are 9,007,199 USD."""


class LimitTable(BaseModel):
    """Ceilings on calls. Windows slide: an hour is the last 60 minutes, a day the last 24 hours."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    requests_per_second: Count | None = None
    requests_per_minute: Count | None = None
    requests_per_hour: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_minute: Count | None = Field(default=None, description="Input and output together.")
    tokens_per_hour: Count | None = None
    tokens_per_day: Count | None = None
    max_parallel: Count | None = Field(default=None, description="Calls at the same time.")

    def to_limits(self) -> Limits:
        """The same, as plugins count it."""
        return Limits.from_table(self.model_dump())


class ScopedLimitTable(LimitTable):
    """Ceilings of whoever calls: a key, a user, a tenant, everyone."""

    limits_by_model: dict[str, LimitTable] = Field(
        default={}, description="Further ceilings by glob: all models that one matches draw on them together."
    )


class RollingBudget(BaseModel):
    """`rolling = [{ hours = 5, usd = 1.0 }]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    hours: float = Field(gt=0, le=8_784)
    usd: BudgetUsd


class BudgetTable(BaseModel):
    """`budget = { daily_usd = 5.0 }`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    daily_usd: BudgetUsd | None = None
    monthly_usd: BudgetUsd | None = None
    total_usd: BudgetUsd | None = None
    rolling: list[RollingBudget] = []
    alert_at: float = Field(0.8, gt=0, le=1, description="The share of each window at which the log and a metric warn.")
    time_zone: str = Field("UTC", description="Whose midnight starts a day and a month.")
    mode: Literal["hard", "soft"] = "hard"

    @field_validator("rolling")
    @classmethod
    def _check_rolling(cls, windows: list[RollingBudget]) -> list[RollingBudget]:
        if len({window.hours for window in windows}) < len(windows):
            raise ValueError("two windows of the same length: keep the one that should hold")
        return windows

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError('unknown time zone; write one like "Europe/Berlin"') from error
        return name

    def to_budget(self) -> Budget:
        """The same, as plugins count it."""
        return Budget.from_table(self.model_dump())
