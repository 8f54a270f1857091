"""Hedging: a second attempt elsewhere when the first byte is late.

Lives here: after which time a call is hedged, which calls may be, how many hedges there may be. Elsewhere: the race itself (race.py: a hedge is an ordinary attempt with
its own admission, money and tickets; first byte wins, the loser is cancelled and settles at once), who is tried (model_selection), votes (circuit_breaker: a loser is slow, or has none).
Idea: the slowest calls of a deployment are slow by chance, and another deployment rarely is at the same time (Dean and Barroso, "The Tail at Scale", 2013). A hedge
is paid twice, so a token bucket bounds them to a share of the calls: when everything is slow, hedging stops by itself instead of doubling the load.

Rules
- Only what leaves nothing behind may be sent twice: chat, completions, embeddings, moderations; not what is stored, runs in the background, or lets the provider call tools that act.
- A percentile is that of the deployment's own last WINDOW first bytes, streams apart from whole replies. A hedge that won cut the first attempt short: what that one had waited
  counts, else the estimate would forget the slow ones and hedge ever earlier.
- A hedge that may not be made (budget spent, circuit open) leaves its target for a fallback."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hookline import IN_BACKGROUND, Attempt, Call, Host, Result, Skip, Target, Ticket, hookimpl
from hookline.builtins.carried import carried
from hookline.builtins.lasting import hosted_tool_of, tie_of

WINDOW = 200
"""First bytes remembered per deployment and kind: the 95th percentile then stands on ten of them. 6 KiB each."""
WINDOWS_MAX = 1_000
TOKENS_MAX = 10.0
"""So many hedges may follow each other at once."""
ENDPOINTS = frozenset({"chat", "completions", "embeddings", "moderations", "responses"})


class HedgingOptions(BaseModel):
    """`[plugins.hedging]`: when a second deployment is asked, too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    percentile: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Hedge calls slower than this share of the deployment's own, above 0.5; 0: only after_s.",
    )
    after_s: float | None = Field(
        None, ge=0, le=3_600, description="A fixed delay; with a percentile, the delay until there are min_samples."
    )
    min_after_s: float = Field(0.05, ge=0, le=3_600, description="A percentile hedges no earlier than this.")
    min_samples: int = Field(50, ge=10, le=WINDOW, description="First bytes seen before a percentile is believed.")
    budget: float = Field(
        0.05,
        ge=0,
        le=1,
        json_schema_extra={"per_model": False},
        description="Hedges at most, as a share of calls; not per model.",
    )
    max_per_call: int = Field(1, ge=0, le=5, description="Hedges of one call; 0 turns hedging off for a model.")

    @model_validator(mode="after")
    def _check_delay(self) -> HedgingOptions:
        if 0 < self.percentile <= 0.5:
            raise ValueError(
                f"percentile {self.percentile:g} would hedge half of the calls or more: above 0.5, or 0 for after_s alone"
            )
        if not self.percentile and self.after_s is None and self.max_per_call:
            raise ValueError(
                "neither percentile nor after_s: nothing says when to hedge; max_per_call = 0 turns it off"
            )
        return self


class FirstBytes:
    """The last WINDOW times to first byte, sorted, for exact percentiles of them."""

    __slots__ = ("_by_age", "_sorted")

    def __init__(self) -> None:
        self._by_age: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, seconds: float) -> None:
        if len(self._by_age) >= WINDOW:
            del self._sorted[bisect_left(self._sorted, self._by_age.popleft())]
        self._by_age.append(seconds)
        insort(self._sorted, seconds)

    def percentile(self, share: float) -> float:
        """The time that `share` of them do not exceed."""
        return self._sorted[min(int(share * len(self._sorted)), len(self._sorted) - 1)]


class Bucket:
    """The hedge budget: each call adds its share of a hedge, each hedge takes one."""

    __slots__ = ("_share", "tokens")

    def __init__(self, share: float) -> None:
        self._share = share
        self.tokens = min(1.0, share * TOKENS_MAX)

    def retune(self, share: float) -> None:
        """What calls add from now on."""
        self._share, self.tokens = share, min(self.tokens, share * TOKENS_MAX)

    def add_call(self) -> None:
        self.tokens = min(self.tokens + self._share, TOKENS_MAX)

    def take(self) -> bool:
        if self.tokens < 1.0 - 1e-9:  # twenty times 0.05 is a little less than 1
            return False
        self.tokens -= 1.0
        return True

    def settle(self, result: Result) -> None:
        """Of a hedge: one that another plugin kept from being sent gives its token back."""
        if result.outcome == "rejected":
            self.tokens = min(self.tokens + 1.0, TOKENS_MAX)


class Plugin:
    """Sets `hedge_after_s`, and refuses hedges beyond the budget."""

    Options = HedgingOptions
    supports_dry_run = True

    def __init__(self, options: HedgingOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self._bucket = carried(host, "budget", lambda: Bucket(options.budget))
        self._seen: dict[tuple[str, str, bool], FirstBytes] = carried(host, "first bytes", dict)
        hedges = host.metrics.counter(
            "hookline_hedges_total",
            "Hedges by what came of them: won, lost, failed (both sides count as one call), unaffordable.",
            ("outcome",),
        )
        self._count = {name: hedges(name) for name in ("won", "lost", "failed", "unaffordable")}

    def start(self) -> None:
        """From now on these options hold."""
        self._bucket.retune(self._options.budget)

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        if not call.is_dry_run:
            self._bucket.add_call()
        options: HedgingOptions = self._options_by_model.get(call.model or "", self._options)
        if len(targets) < 2 or not options.max_per_call or (problem := why_not_twice(call)) is not None:
            if len(targets) > 1 and options.max_per_call:
                call.note("hedging", "never", problem or "")
            return targets
        for target in targets:
            after_s = self._delay_of(call, target, options)
            if after_s is not None:
                target.hedge_after_s = after_s
                call.note("hedging", "hedges", f"{target.deployment.id}: after {after_s:.3f} s without a first byte")
        return targets

    @hookimpl
    def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Ticket | None:
        if not attempt.is_hedge:
            return None
        options: HedgingOptions = self._options_by_model.get(call.model or "", self._options)
        if sum(other.is_hedge for other in call.attempts) >= options.max_per_call:
            raise Skip(f"has {options.max_per_call} hedges already")
        if not target.deployment.weight:
            raise Skip("its weight is 0: it is only for when others fail")
        if any(other.deployment.listed_id == target.deployment.listed_id for other in call.attempts):
            raise Skip("is the deployment that is late, with another key")
        if not self._bucket.take():
            self._count["unaffordable"].inc()
            raise Skip(f"the hedge budget of {self._options.budget:.0%} of calls is spent")
        return self._bucket

    @hookimpl
    def attempt_ended(self, call: Call, attempt: Attempt) -> None:
        if attempt.is_hedge:
            is_lost = attempt.is_loser or (attempt.error is None and attempt.first_byte_at is None)
            self._count["lost" if is_lost else "won" if attempt.error is None else "failed"].inc()
        ended_at = attempt.ended_at if attempt.is_loser else attempt.first_byte_at
        if ended_at is None or (attempt.error is not None and not attempt.is_loser) or call.endpoint not in ENDPOINTS:
            return
        key = (attempt.deployment.listed_id, call.endpoint, call.is_stream)
        seen = self._seen.get(key)
        if seen is None:
            if len(self._seen) >= WINDOWS_MAX:
                del self._seen[next(iter(self._seen))]
            seen = self._seen[key] = FirstBytes()
        seen.add(ended_at - attempt.started_at)

    def _delay_of(self, call: Call, target: Target, options: HedgingOptions) -> float | None:
        if options.percentile:
            seen = self._seen.get((target.deployment.listed_id, call.endpoint, call.is_stream))
            if seen is not None and len(seen) >= options.min_samples:
                return max(seen.percentile(options.percentile), options.min_after_s)
        return options.after_s


def why_not_twice(call: Call) -> str | None:
    """Why a call must not be sent twice; None if it may."""
    if call.endpoint not in ENDPOINTS:
        return f"{call.method} {call.path} may leave something behind"
    if IN_BACKGROUND in call.slots:
        return "nobody waits for it"
    payload = call.payload or {}
    if call.upload is not None:
        return "an upload is sent once"
    is_stored = payload.get("store", call.endpoint == "responses")
    if is_stored:
        return "the answer is stored at the provider"
    if (name := tie_of(payload)) is not None:
        return f'"{name}" ties it to one provider'
    if (kind := hosted_tool_of(payload)) is not None:
        return f'the provider runs tools of type "{kind[:40]}"'
    return None
