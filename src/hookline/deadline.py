"""The deadline of a call: what a client may ask for, and what it is told when it has come.

Lives here: `x-hookline-timeout-s`, the error. Elsewhere: who keeps the time (call_timer.py), who asks (surfaces), how long one attempt may take (deployment.py).
Idea: a client that gives up after a while should say so: then no attempt is begun, retried or waited for that nobody will read."""

from __future__ import annotations

import math

from hookline.call import Call
from hookline.call_timer import CallTimer
from hookline.errors import BadRequest, UpstreamError

TIMEOUT_HEADER = "x-hookline-timeout-s"


def read_timeout_s(said: str, *, most_s: float) -> float:
    """The seconds that a client asks for, at most `most_s`. Raises BadRequest for what is no positive number."""
    try:
        seconds = float(said if "_" not in said else "nan")  # Python's own: 1_0
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadRequest(
            f'{TIMEOUT_HEADER}: "{said[:40]}" is no number of seconds; send one above 0, as in 2.5',
            code="invalid_timeout",
        )
    return min(seconds, most_s)


def deadline_error(call: Call, timer: CallTimer) -> UpstreamError:
    """What is told of a call whose time is up. Where it was the client's own time, its SDK shall not take as long again."""
    if call.deadline is None:
        return UpstreamError(
            f"the call reached its deadline of {timer.allowed_s:g} s ([server] total_timeout_s)", kind="deadline"
        )
    error = UpstreamError(f"the call reached its deadline of {call.deadline - call.started_at:g} s", kind="deadline")
    error.may_retry = False
    return error
