"""The retry budget: how many attempts there may be beyond one per call.

Lives here: the token bucket, one per deployment and one for all. Elsewhere: who takes from it (the package's __init__, before each attempt but a call's first).
Idea: a dead upstream is asked once per call and not three times. Calls pay in a share of an attempt; retries, fallbacks, hedges and continuations take one each. So

    attempts <= calls + share * calls + per_s * seconds        (in all, and for each deployment by the calls that could go there)

holds whatever fails (Finagle's RetryBudget has the same numbers), for retries of the same deployment from the first second on. Going elsewhere may use beforehand what `per_s` gives
in the first KEEP_S, for it seldom meets the same outage, and a handful of calls must be saved whatever their share: there the bound holds after KEEP_S. What is not used is kept for as
long, so a stretch after a quiet time may have that much more, once. Counting a call is one addition; the rest is reckoned when somebody takes."""

from __future__ import annotations

KEEP_S = 30.0
"""Unused tokens are kept for as long: a burst of failures after a quiet minute is what they are for. The first ones are an advance on these seconds."""
DEPLOYMENTS_MAX = 10_000


class Bucket:
    """Tokens of one deployment, or of all. Time comes in as a number."""

    __slots__ = ("_at", "_rate", "_rated", "_rated_at", "_seen", "_tokens", "calls", "per_s", "share")

    def __init__(self, share: float, per_s: float, now: float) -> None:
        self.share = share
        self.per_s = per_s
        self._at = now + KEEP_S
        self._tokens = KEEP_S * per_s
        self._seen = 0
        self._rate = 0.0
        self._rated, self._rated_at = 0, now
        self.calls = 0
        """Calls so far; who counts adds to it."""

    def has_token(self, now: float, *, is_retry: bool = False) -> bool:
        """A retry leaves the advance alone, but for its first second."""
        self._reckon(now)
        ahead_s = max(self._at - now - 1.0, 0.0) if is_retry else 0.0
        return self._tokens - self.per_s * ahead_s >= 1.0

    def take(self, now: float, *, is_retry: bool = False) -> bool:
        """Take one, if there is one."""
        if not self.has_token(now, is_retry=is_retry):
            return False
        self._tokens -= 1.0
        return True

    def give_back(self) -> None:
        """One that was taken for an attempt that was not made."""
        self._tokens += 1.0

    def _reckon(self, now: float) -> None:
        new, seconds = self.calls - self._seen, max(now - self._at, 0.0)
        self._seen, self._at = self.calls, max(now, self._at)
        rated, over_s = self.calls - self._rated, now - self._rated_at
        if over_s >= 1.0:
            self._rate, self._rated, self._rated_at = rated / over_s, self.calls, now
        else:
            self._rate = max(self._rate, rated)
        kept = KEEP_S * (self.per_s + self.share * self._rate) + 1.0
        self._tokens = min(self._tokens + self.share * new + self.per_s * seconds, kept)


class RetryBudget:
    """Every bucket."""

    def __init__(self, share: float, per_s: float, now: float) -> None:
        self._share = share
        self._per_s = per_s
        self.all = Bucket(share, per_s, now)
        self.by_deployment: dict[str, Bucket] = {}

    def retune(self, share: float, per_s: float) -> None:
        """What comes from now on; what is there stays, as far as may be kept."""
        self._share, self._per_s = share, per_s
        for bucket in (self.all, *self.by_deployment.values()):
            bucket.share, bucket.per_s = share, per_s

    def add(self, deployment: str, now: float) -> Bucket:
        """The bucket of a deployment that had none. Names may come from clients: beyond the bound all begin anew."""
        if len(self.by_deployment) >= DEPLOYMENTS_MAX:
            self.by_deployment.clear()
        bucket = self.by_deployment[deployment] = Bucket(self._share, self._per_s, now)
        return bucket

    def has_token(self, deployment: str, now: float, *, is_retry: bool) -> bool:
        """Whether one more attempt may go to this deployment. `is_retry`: it was asked by the same call before."""
        bucket = self.by_deployment.get(deployment) or self.add(deployment, now)
        return self.all.has_token(now, is_retry=is_retry) and bucket.has_token(now, is_retry=is_retry)

    def take(self, deployment: str, now: float, *, is_retry: bool) -> bool:
        """Take for one more attempt to this deployment."""
        if not self.has_token(deployment, now, is_retry=is_retry):
            return False
        return self.all.take(now, is_retry=is_retry) and self.by_deployment[deployment].take(now, is_retry=is_retry)

    def take_alone(self, deployment: str, now: float) -> bool:
        """Take a retry of the client's from this deployment's bucket: an outage of one must not cost the others their fallbacks."""
        bucket = self.by_deployment.get(deployment) or self.add(deployment, now)
        return bucket.take(now, is_retry=True)

    def give_back(self, deployment: str) -> None:
        self.all.give_back()
        if (bucket := self.by_deployment.get(deployment)) is not None:
            bucket.give_back()
