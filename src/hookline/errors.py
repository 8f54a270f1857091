"""Errors: every way to fail, and what the client gets for it.

Lives here: one class per thing a caller does differently, each with status, OpenAI `type` and `code`; `Rejected` and `Skip`, by which hooks end a call or drop a target; `UPSTREAM_KINDS`, how an upstream can fail.
Elsewhere: transport failures (transport/errors.py; a provider turns them into `UpstreamError`), who tries again (builtins/fallback).
Idea: an error is data that becomes the OpenAI error object in exactly one place, `ApiError.to_object`; messages never quote what may be a secret."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple


class ApiError(Exception):
    """A failure with an answer for the client. `message` says what happened, to what, and what to do.

    `retry_after_s` becomes `retry-after`; `may_retry = False` becomes `x-should-retry: false`, which OpenAI's SDKs obey."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = None
    may_retry_by_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        may_retry: bool | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.message = message.encode("utf-8", "backslashreplace").decode()  # may quote a header that is no UTF-8
        super().__init__(self.message)
        self.error_code = code if code is not None else self.code
        self.param = param
        self.retry_after_s = retry_after_s
        self.may_retry = self.may_retry_by_default if may_retry is None else may_retry
        self.headers = headers or {}

    @property
    def reply_status(self) -> int:
        """The HTTP status the client gets."""
        return self.status

    def to_object(self) -> dict[str, Any]:
        """The OpenAI error object: `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.error_code}}

    def reply_headers(self) -> dict[str, str]:
        """Headers that belong with this error, beside its own `headers`."""
        headers = dict(self.headers)
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if not self.may_retry:
            headers["x-should-retry"] = "false"
        return headers


class BadRequest(ApiError):
    status, type = 400, "invalid_request_error"


class Unauthenticated(ApiError):
    status, type, code = 401, "invalid_request_error", "invalid_api_key"


class Forbidden(ApiError):
    status, type, code = 403, "invalid_request_error", "permission_denied"


class NotFound(ApiError):
    status, type, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(ApiError):
    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class RequestTimeout(ApiError):
    status, type, code = 408, "invalid_request_error", "request_timeout"
    may_retry_by_default = True


class Conflict(ApiError):
    status, type, code = 409, "invalid_request_error", "conflict"


class TooLarge(ApiError):
    status, type, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMedia(ApiError):
    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class Unprocessable(ApiError):
    status, type = 422, "invalid_request_error"


class HeadTooLarge(ApiError):
    status, type, code = 431, "invalid_request_error", "request_head_too_large"


class RateLimited(ApiError):
    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"
    may_retry_by_default = True


class InsufficientQuota(ApiError):
    status, type, code = 429, "insufficient_quota", "insufficient_quota"


class InternalError(ApiError):
    status, type, code = 500, "server_error", "internal_error"


class Unavailable(ApiError):
    status, type, code = 503, "server_error", "service_unavailable"
    may_retry_by_default = True


class UpstreamKind(NamedTuple):
    """One row of `UPSTREAM_KINDS`: the answer for a failure of this kind, and whether another target may be tried."""

    status: int
    code: str
    may_fall_back: bool


UPSTREAM_KINDS: dict[str, UpstreamKind] = {
    "connect": UpstreamKind(502, "upstream_connect_failed", True),
    "tls": UpstreamKind(502, "upstream_tls_failed", True),
    "reset": UpstreamKind(502, "upstream_reset", True),
    "garbage": UpstreamKind(502, "upstream_garbage", True),
    "pool_timeout": UpstreamKind(503, "upstream_busy", True),
    "connect_timeout": UpstreamKind(504, "upstream_timeout", True),
    "write_timeout": UpstreamKind(504, "upstream_timeout", True),
    "first_byte_timeout": UpstreamKind(504, "upstream_timeout", True),
    "idle_timeout": UpstreamKind(504, "upstream_timeout", True),
    "total_timeout": UpstreamKind(504, "upstream_timeout", True),
    "throughput_timeout": UpstreamKind(504, "upstream_timeout", True),
    "deadline": UpstreamKind(504, "deadline_exceeded", False),
    "status": UpstreamKind(502, "upstream_error", True),
    "stream_error": UpstreamKind(502, "upstream_stream_error", True),
    "configuration": UpstreamKind(500, "provider_misconfigured", True),
}
"""How an upstream can fail. `status` stands for an answer that came with an error status: that status and body are passed on."""

STATUSES_THAT_STAY = frozenset({400, 413, 415, 422})
"""Upstream statuses that say the request itself is wrong: the next target would say the same."""


class UpstreamError(ApiError):
    """An attempt failed. `kind` is a row of `UPSTREAM_KINDS`; `upstream_status`, `upstream_body` and `upstream_headers` are set when the upstream answered."""

    status, type, code = 502, "upstream_error", "upstream_error"
    may_retry_by_default = True

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        upstream_status: int | None = None,
        upstream_body: bytes | None = None,
        upstream_headers: Any = None,
        retry_after_s: float | None = None,
        is_written: bool = True,
    ) -> None:
        row = UPSTREAM_KINDS[kind]
        super().__init__(message, code=row.code, retry_after_s=retry_after_s)
        self.kind = kind
        self.upstream_status = upstream_status
        self.upstream_body = upstream_body
        self.upstream_headers = upstream_headers
        self.is_written = is_written

    @property
    def reply_status(self) -> int:
        """The status the client gets: the upstream's own where it answered, else that of the kind."""
        return self.upstream_status or UPSTREAM_KINDS[self.kind].status

    @property
    def may_fall_back(self) -> bool:
        """Whether another target could do better: the table that `fallback` starts from."""
        if self.upstream_status is not None:
            return self.upstream_status not in STATUSES_THAT_STAY
        return UPSTREAM_KINDS[self.kind].may_fall_back


class Rejected(Exception):
    """Raised by hooks 1-6 to end the call with `error`; nothing upstream is asked."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.message)
        self.error = error


class Skip(Exception):
    """Raised by `admit_attempt` to drop one target. `error` is what the client gets if every target was dropped for a client's fault."""

    def __init__(self, reason: str, error: ApiError | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


class ClientGone(ConnectionError):
    """The client left or stopped reading; raised by a surface while it writes."""


class StartupError(Exception):
    """The configuration can't run. `problems` are whole sentences, each with file and line where known, all of them at once."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
