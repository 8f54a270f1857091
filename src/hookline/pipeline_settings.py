"""Bounds that hold for every call.

Lives here: the numbers the pipeline obeys. Elsewhere: where an operator sets them (config.py, `[server]`).
Idea: plain data, so the pipeline knows no configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """Bounds of every call, in seconds; `heartbeat_s = 0`: none. `max_pumps`: calls that may go on without their client."""

    total_timeout_s: float = 600.0
    settle_timeout_s: float = 2.0
    heartbeat_s: float = 0.0
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    max_pumps: int = 100
