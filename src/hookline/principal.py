"""Principal: who pays for a call, with what limits and budgets.

Lives here: the answer of `authenticate`. Elsewhere: where it comes from (builtins/auth.py), who counts against it (builtins/rate_limit.py, builtins/budget.py).
Idea: frozen data that plugins share; nothing here counts anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings of one scope; None is no ceiling."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_parallel: int | None = None


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
