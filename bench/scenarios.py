"""What is asked of every contender: the table of scenarios.

Lives here: shapes of load. Elsewhere: how each kind is run (measure.py), how often (run.py).
Idea: every scenario is a row; the kind says which of three functions runs it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    LOAD = "load"
    """wrk for some seconds, in rounds."""
    OPEN = "open"
    """Many slow streams at once, each event checked; once."""
    MEMORY = "memory"
    """Many calls, memory sampled on the way; once."""


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    kind: Kind = Kind.LOAD
    connections: int = 64
    chunks: int = 0
    """Events of each stream; 0 = not a stream."""
    pause_ms: float = 0.0
    prompt_bytes: int = 0
    calls: int = 0
    """Kind MEMORY: how many."""

    @property
    def is_stream(self) -> bool:
        return self.chunks > 0


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("chat", "Chat, not streamed, every request different, 64 connections"),
        # Early: 2,000 open streams or prompts of 1 MB leave their mark on a process's memory, and that is another question.
        Scenario("memory", "Memory over 100,000 calls, 64 connections", kind=Kind.MEMORY, calls=100_000),
        # 2 ms: with 64 streams a proxy that needs 10 µs a chunk is busy for a third of its core, so it sees one chunk per read.
        Scenario("stream", "Stream of 100 chunks, one every 2 ms, 64 connections", chunks=100, pause_ms=2),
        Scenario("flood", "Stream of 100 chunks as fast as they go, 64 connections", chunks=100),
        Scenario("prompt-1mb", "Chat with a prompt of 1 MB, 16 connections", connections=16, prompt_bytes=1_000_000),
        Scenario("latency", "Chat, one connection: what the proxy adds when nobody waits", connections=1),
        Scenario("connections-16", "Chat, 16 connections", connections=16),
        Scenario("connections-256", "Chat, 256 connections", connections=256),
        Scenario("connections-1000", "Chat, 1,000 connections", connections=1000),
        Scenario(
            "open-streams",
            "2,000 open streams, one chunk every 500 ms, order checked",
            kind=Kind.OPEN,
            connections=2000,
            chunks=24,
            pause_ms=500,
        ),
    )
}
