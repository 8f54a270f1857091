"""Principal: who pays for a call, with what limits and budgets.

Lives here: the answer of `authenticate`. Elsewhere: where it comes from (builtins/auth), who counts against it (builtins/rate_limit, builtins/budget).
Idea: frozen data that plugins share; nothing here counts anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hookline.money import to_nanousd


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one scope; None is no ceiling. Windows slide: a day is the last 24 hours.

    `by_model` holds (glob over model names, further ceilings of all models it matches together)."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel: int | None = None
    requests_per_second: int | None = None
    requests_per_hour: int | None = None
    requests_per_day: int | None = None
    tokens_per_hour: int | None = None
    tokens_per_day: int | None = None
    by_model: tuple[tuple[str, Limits], ...] = ()

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Limits:
        """The limits among the members of a checked table: a key, a tenant, a user, a model, a deployment, `[global]`."""
        ceilings = {name: table.get(name) for name in cls.__slots__ if name != "by_model"}
        by_model: Mapping[str, Mapping[str, Any]] = table.get("limits_by_model") or {}
        return cls(**ceilings, by_model=tuple((glob, cls.from_table(inner)) for glob, inner in by_model.items()))


@dataclass(frozen=True, slots=True)
class Budget:
    """Money of one scope, in nano-dollars per window; None is no ceiling. `rolling` holds (hours, nano-dollars)."""

    daily_nanousd: int | None = None
    monthly_nanousd: int | None = None
    total_nanousd: int | None = None
    rolling: tuple[tuple[float, int], ...] = ()
    alert_at: float = 0.8
    time_zone: str = "UTC"
    mode: Literal["hard", "soft"] = "hard"

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Budget:
        """A checked `budget = { daily_usd = 5.0, ... }`."""
        return cls(
            daily_nanousd=_nanousd(table.get("daily_usd")),
            monthly_nanousd=_nanousd(table.get("monthly_usd")),
            total_nanousd=_nanousd(table.get("total_usd")),
            rolling=tuple((window["hours"], to_nanousd(window["usd"])) for window in table.get("rolling", ())),
            alert_at=table.get("alert_at", 0.8),
            time_zone=table.get("time_zone", "UTC"),
            mode=table.get("mode", "hard"),
        )


def _nanousd(usd: float | None) -> int | None:
    return None if usd is None else to_nanousd(usd)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who pays: the answer of `authenticate`. `models` are globs over model names."""

    key_id: str = "anonymous"
    key_name: str = "anonymous"
    tenant: str = "default"
    user: str | None = None
    models: tuple[str, ...] = ("*",)
    limits: Limits = Limits()
    budget: Budget | None = None
    tags: tuple[str, ...] = ()


ANONYMOUS = Principal()
