"""Fallback: what is tried after a failure: the next deployment, another model, the same again, the rest of a stream.

Lives here: the plugin: the order of these. Elsewhere: options (options.py), which failures may be retried, and when (retry_table.py), how many attempts there may be (retry_budget.py), lists of
other models (other_models.py), streams that died half way (continuation.py), what a failure is (hookline.failure_of), the loop itself (the core's attempts.py).
Idea: elsewhere at once, the same again last. A failure that says "this request is wrong" stays, for the next target would say the same; every other goes on, to targets that have
not been asked. Only when none is left does a call wait for one that it has tried, if the table, the budget and its deadline let it. The last error is passed on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from multidict import istr

from hookline import (
    EXPOSED_HEADERS,
    LONGER_MODELS,
    TARGETS_LEFT,
    ApiError,
    Attempt,
    Call,
    Continue,
    Deployment,
    Failure,
    Fallback,
    GiveUp,
    Host,
    Reply,
    Result,
    Skip,
    Slot,
    StartupError,
    Step,
    Target,
    Ticket,
    UpstreamError,
    failure_of,
    hookimpl,
)
from hookline.builtins.carried import carried
from hookline.builtins.fallback.continuation import ReadAlong, messages_going_on, tokens_left, why_not
from hookline.builtins.fallback.options import FallbackOptions
from hookline.builtins.fallback.other_models import check_rules, targets_of
from hookline.builtins.fallback.retry_budget import RetryBudget
from hookline.builtins.fallback.retry_table import may_retry, repeat_of, wait_s
from hookline.builtins.labels import Labels
from hookline.builtins.model_names import unknown_models

__all__ = ["FallbackOptions", "Plugin", "may_go_on"]

LISTS: dict[Failure, str] = {
    "context_window": "context_window",
    "content_policy": "content_policy",
    "rate_limit": "rate_limit",
}
"""Failure -> the option with its list."""
INSTEAD = frozenset({"context_window", "content_policy"})
"""Failures that the model's other deployments would share: the list comes in place of them."""
OF_A_KEY = frozenset({"rate_limit", "quota", "refused", "missing"})
"""Failures that another key of the same provider may not share."""

RETRY_COUNT = istr("x-stainless-retry-count")
"""OpenAI's and Anthropic's SDKs send it with each request, from 0 on."""

READ_ALONG: Slot[ReadAlong] = Slot("fallback read along")
"""What the client has got of a stream that may be continued."""


class Plugin:
    """Owns `after_failure`."""

    Options = FallbackOptions
    supports_dry_run = True

    def __init__(self, options: FallbackOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model
        self._host = host
        self._clock = host.clock
        self._draw = random.Random().random
        server = host.settings.get("server", {})
        self._total_timeout_s = float(server.get("total_timeout_s", 600.0))
        workers = int(server.get("workers", 1))
        if problems := list(unknown_models(options, host, models_in)):
            raise StartupError(problems)
        self._rates = options.retry_budget, options.retry_budget_per_s / workers
        self._budget = carried(host, "retry budget", lambda: RetryBudget(*self._rates, host.clock.monotonic()))
        every = [options, *host.options_by_model.values()]
        self._has_models = any(one.models or one.rate_limit for one in every)
        self._sees_filters = any(one.content_policy for one in every)
        if not any(one.mid_stream == "continue" for one in every):
            self.edit_reply = None  # type: ignore[assignment,method-assign]  # nobody reads along: no hook for it
        self._label = Labels()
        self._more = host.metrics.counter(
            "hookline_extra_attempts_total",
            "Attempts beyond a call's first: retry, fallback, hedge, continuation.",
            ("deployment", "kind"),
        )
        self._refused = host.metrics.counter(
            "hookline_retry_budget_spent_total",
            "Attempts that were not made because the retry budget was spent.",
            ("deployment",),
        )

        if any(one.context_window for one in every):
            host.offers[LONGER_MODELS] = self._longer_models

    def start(self) -> None:
        """From now on these options hold."""
        self._budget.retune(*self._rates)

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        if not call.is_dry_run:
            budget = self._budget
            known = budget.by_deployment
            is_call = not client_retries(call)
            budget.all.calls += is_call
            for target in targets:
                name = target.deployment.id
                bucket = known.get(name) or budget.add(name, self._clock.monotonic())
                bucket.calls += is_call
        if self._has_models and targets:
            options = self._options_of(call)
            # A forced one will say itself whether its limit is used up.
            for_limits = () if any(target.is_forced for target in targets) else options.rate_limit
            if names := (*for_limits, *options.models):
                return with_other_models(targets, targets_of(names, targets, call, self._host))
        return targets

    @hookimpl
    def admit_attempt(self, call: Call, target: Target, attempt: Attempt) -> Ticket | None:
        if self._sees_filters and (names := self._options_of(call).content_policy):
            tried = [target, *(other.target for other in call.attempts)]
            attempt.is_failed_by_filter = bool(targets_of(names, tried, call, self._host))
        if attempt.number == 1 and target.model is None:
            return None
        if target.model is not None:
            if attempt.is_hedge:
                raise Skip("another model is for failures, not for hedges")
            check_rules(call, target, self._host)
        if attempt.number == 1 or call.is_dry_run:
            return None
        name = target.deployment.id
        is_retry = any(other.target is target for other in call.attempts)
        if not self._budget.take(name, self._clock.monotonic(), is_retry=is_retry):
            self._refused(self._label(name)).inc()
            raise Skip("its retry budget is spent")
        self._more(self._label(name), kind_of(call, attempt)).inc()
        return Token(self._budget, name)

    @hookimpl
    def after_failure(self, call: Call, attempt: Attempt) -> Step | None:
        error = attempt.error
        if error is None:
            return None
        options = self._options_of(call)
        read_along = call.slots.get(READ_ALONG)
        if read_along is not None:
            return self._go_on(call, attempt, options, read_along)
        failure = failure_of(error)
        left = call.slots.get(TARGETS_LEFT, ())
        instead = self._targets_for(failure, call, attempt, options, left)
        if instead is None and not may_go_on(error, options):
            if asks_again(error, options) and (pause_s := self._pause_s(call, attempt, options)) is not None:
                return Fallback([], pause_s)
            call.note("fallback", "stays", f"{attempt.deployment.id}: the next target would say the same")
            return None
        if instead is None and options.rate_limit and not met_limit(call):
            instead = [target for target in left if not is_for_limits(target, options)]
        if attempt.deployment.key_number is not None and failure not in OF_A_KEY:
            instead = other_keys_last(left if instead is None else instead, attempt.deployment)
        pause_s = self._pause_s(call, attempt, options)
        targets = left if instead is None else instead
        if pause_s is None and not targets:
            call.note("fallback", "gives up", f"{attempt.deployment.id}: {error.error_code}; nothing is left to try")
            return None
        again = "" if pause_s is None else f"; again in {pause_s:.2f} s"
        call.note("fallback", "goes on", f"{attempt.deployment.id}: {failure}; {len(targets)} targets left{again}")
        return Fallback(instead, pause_s)

    @hookimpl
    def edit_reply(self, call: Call, reply: Reply) -> Reply:
        if call.is_stream and reply.source == "upstream" and reply.is_event_stream:
            is_asked = self._options_of(call).mid_stream == "continue"
            if is_asked and why_not(call) is None:
                call[READ_ALONG] = read_along = ReadAlong()
                reply.tap(read_along)
        return reply

    @hookimpl
    def rescue(self, call: Call, error: ApiError) -> Reply | None:
        """Nothing is rescued here: this is where it is known that no target is left, whether they failed or were skipped."""
        options = self._options_of(call)
        if call.attempts and (may_go_on(error, options) or retries_of(call)):
            self._tell_client(call, options)
        return None

    def _options_of(self, call: Call) -> FallbackOptions:
        options: FallbackOptions = self._options_by_model.get(call.model or "", self._options)
        return options

    def _targets_for(
        self, failure: Failure | None, call: Call, attempt: Attempt, options: FallbackOptions, left: Sequence[Target]
    ) -> list[Target] | None:
        """What comes in place of the targets that are left; None: they stay."""
        names: list[str] = getattr(options, LISTS[failure]) if failure in LISTS else []
        if not names:
            return None
        tried = [other.target for other in call.attempts]
        if failure in INSTEAD:
            return targets_of(names, tried, call, self._host)
        own = [target for target in left if target.model is None]
        rest = [target for target in left if target.model is not None]
        listed = targets_of(names, [*tried, *own], call, self._host)
        ids = {target.deployment.id for target in listed}
        return [*own, *listed, *(target for target in rest if target.deployment.id not in ids)]

    def _pause_s(self, call: Call, attempt: Attempt, options: FallbackOptions) -> float | None:
        """Seconds until the same deployment may be asked again; None: never."""
        error = attempt.error
        if not options.max_retries or not isinstance(error, UpstreamError):
            return None
        retries = retries_of(call)
        if retries >= options.max_retries - client_retries(call):
            return None
        failure = failure_of(error)
        assert failure is not None
        if attempt.target.is_forced and (failure != "rate_limit" or error.retry_after_s is None):
            return None  # every circuit is open: it was asked all the same, once
        said = says_retry(error)
        if said == "false" or (said != "true" and not table_says(call, error, failure, options)):
            return None
        pause_s = wait_s(error, retries, options, self._draw())
        now = self._clock.monotonic()
        deadline = call.deadline if call.deadline is not None else call.started_at + self._total_timeout_s
        if pause_s is None or now + pause_s >= deadline:
            return None
        return pause_s if self._budget.has_token(attempt.deployment.id, now, is_retry=True) else None

    def _tell_client(self, call: Call, options: FallbackOptions) -> None:
        """What is known here about coming again: the earliest of several waits; not to multiply our retries by the client's, which is no less a storm for having waited."""
        waits = [
            a.error.retry_after_s for a in call.attempts if a.error is not None and a.error.retry_after_s is not None
        ]
        headers: dict[str, str] = {}
        if len(waits) > 1:
            headers["retry-after"] = str(max(1, -int(-min(waits) // 1)))
        now = self._clock.monotonic()
        is_spent = any(not self._budget.has_token(a.deployment.id, now, is_retry=True) for a in call.attempts)
        if retries_of(call) or is_spent or not self._may_come_again(call, now):
            headers["x-should-retry"] = "false"
        if headers:
            exposed: dict[str, str] = call.slots.get(EXPOSED_HEADERS, {})
            call[EXPOSED_HEADERS] = exposed | headers

    def _may_come_again(self, call: Call, now: float) -> bool:
        """An SDK that says how often it has tried tries again unless it is told not to: that is paid beforehand, by the deployment that failed last, and by no other."""
        return RETRY_COUNT not in call.headers or self._budget.take_alone(call.attempts[-1].deployment.id, now)

    def _go_on(self, call: Call, attempt: Attempt, options: FallbackOptions, read_along: ReadAlong) -> Step | None:
        """After bytes have left."""
        so_far = read_along.read()
        if so_far is None:
            call.note("fallback", "ends", f"{attempt.deployment.id}: what has left can't be continued")
            return GiveUp()
        left = call.slots.get(TARGETS_LEFT, ())
        by_prefix = {
            target.deployment.id: messages_going_on(call, so_far.text, is_prefix=True)
            for target in left
            if any(fnmatchcase(target.deployment.id, glob) for glob in options.continues_prefix)
        }
        return Continue(
            messages_going_on(call, so_far.text, is_prefix=False),
            by_prefix,
            members=so_far.members,
            output_cap=tokens_left(call, so_far),
        )

    def _longer_models(self, call: Call, targets: Sequence[Target]) -> list[Target]:
        """For a request of which is known beforehand that it is too long for all of these."""
        names = self._options_of(call).context_window
        return targets_of(names, targets, call, self._host) if names else []


def models_in(options: FallbackOptions) -> Iterator[tuple[str, str]]:
    """The models that are named, each with the option that names it."""
    for key in ("models", *LISTS.values()):
        for name in getattr(options, key):
            yield key, name


class Token:
    """Of the retry budget. One that another plugin kept from being used goes back."""

    __slots__ = ("_budget", "_deployment")

    def __init__(self, budget: RetryBudget, deployment: str) -> None:
        self._budget = budget
        self._deployment = deployment

    def settle(self, result: Result) -> None:
        if result.outcome == "rejected":
            self._budget.give_back(self._deployment)


def may_go_on(error: ApiError, options: FallbackOptions) -> bool:
    """Whether the next target could do better after `error`."""
    if not isinstance(error, UpstreamError):
        return error.reply_status >= 500
    status = error.upstream_status
    if status is not None and status in options.go_on_statuses:
        return True
    if status is not None and status in options.stay_statuses:
        return False
    return error.may_fall_back or failure_of(error) == "quota"  # some say by a 400 that the account is empty


def says_retry(error: ApiError) -> str | None:
    """What the provider says of this one answer, whatever the tables say."""
    return (error.upstream_headers or {}).get("x-should-retry") if isinstance(error, UpstreamError) else None


def asks_again(error: ApiError, options: FallbackOptions) -> bool:
    """Whether an error that no other target would answer better is to be sent again, as the provider says."""
    is_stayed = isinstance(error, UpstreamError) and error.upstream_status in options.stay_statuses
    return says_retry(error) == "true" and not is_stayed


def is_for_limits(target: Target, options: FallbackOptions) -> bool:
    """Whether this other model is for rate limits alone: that a provider has told, or that are known before it has to."""
    return target.model in options.rate_limit and target.model not in options.models


def met_limit(call: Call) -> bool:
    """Whether an attempt has failed by a rate limit."""
    return any(attempt.error is not None and failure_of(attempt.error) == "rate_limit" for attempt in call.attempts)


def other_keys_last(targets: Sequence[Target], failed: Deployment) -> list[Target]:
    """The same deployment by another key after the model's other ones: it would most likely fail the same way."""
    return sorted(targets, key=lambda t: (t.model is not None, t.deployment.listed_id == failed.listed_id))


def with_other_models(targets: list[Target], others: list[Target]) -> list[Target]:
    """Other models after the model's own targets. One that was forced, because every circuit was open, comes after these."""
    if not others:
        return targets
    forced = [target for target in targets if target.is_forced]
    return [*(target for target in targets if not target.is_forced), *others, *forced]


def table_says(call: Call, error: UpstreamError, failure: Failure, options: FallbackOptions) -> bool:
    """Whether the retry table lets this call be sent to the same deployment again."""
    lost = options.retry_lost_calls
    return may_retry(failure, is_sent=error.is_written, repeat=repeat_of(call), retry_lost_calls=lost)


def retries_of(call: Call) -> int:
    """How often the call went back to a target."""
    return len(call.attempts) - len({id(attempt.target) for attempt in call.attempts})


def client_retries(call: Call) -> int:
    """How often the client has tried this before, as OpenAI's SDKs say; what they did need not be done again here."""
    said = call.headers.get(RETRY_COUNT, "")
    return int(said) if said.isdecimal() and len(said) < 4 else 0


def kind_of(call: Call, attempt: Attempt) -> str:
    """What an attempt beyond the first is."""
    if attempt.is_hedge:
        return "hedge"
    if READ_ALONG in call.slots:
        return "continuation"
    return "retry" if any(other.target is attempt.target for other in call.attempts) else "fallback"
