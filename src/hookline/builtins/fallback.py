"""Fallback: after a failure before the first byte, the next target, each once.

Lives here: which failures go on to the next target and which stay. Elsewhere: the table that this starts from (errors.py, `UpstreamError.may_fall_back`), the order of targets (model_selection.py), the loop itself (pipeline.py).
Idea: a failure that says "this request is wrong" stays, for the next target would say the same; every other failure goes on. The last error is passed on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hookline import ApiError, Attempt, Call, Fallback, Host, Step, UpstreamError, hookimpl

ErrorStatus = Annotated[int, Field(ge=400, le=599, strict=True)]


class FallbackOptions(BaseModel):
    """`[plugins.fallback]`: exceptions to the table. By default 400, 413, 415 and 422 stay, everything else goes on."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    go_on_statuses: frozenset[ErrorStatus] = Field(
        frozenset(),
        strict=False,
        description="Upstream statuses after which the next target is tried although the table says stay.",
    )
    stay_statuses: frozenset[ErrorStatus] = Field(
        frozenset(),
        strict=False,
        description="Upstream statuses that are passed on at once although the table says go on.",
    )

    @model_validator(mode="after")
    def _check_overlap(self) -> FallbackOptions:
        both = self.go_on_statuses & self.stay_statuses
        if both:
            raise ValueError(f"{sorted(both)} in both go_on_statuses and stay_statuses: remove it from one")
        return self


class Plugin:
    """Answers `Fallback()` or has no opinion: another plugin may still know better."""

    Options = FallbackOptions
    supports_dry_run = True

    def __init__(self, options: FallbackOptions, host: Host) -> None:
        self._options = options
        self._options_by_model = host.options_by_model

    @hookimpl
    def after_failure(self, call: Call, attempt: Attempt) -> Step | None:
        error = attempt.error
        if error is None:
            return None
        options: FallbackOptions = self._options_by_model.get(call.model or "", self._options)
        if not may_go_on(error, options):
            call.note("fallback", "stays", f"{attempt.deployment.id}: the next target would say the same")
            return None
        call.note("fallback", "goes on", f"{attempt.deployment.id}: {error.error_code}")
        return Fallback()


def may_go_on(error: ApiError, options: FallbackOptions) -> bool:
    """Whether the next target could do better after `error`."""
    if not isinstance(error, UpstreamError):
        return error.reply_status >= 500
    status = error.upstream_status
    if status is not None and status in options.go_on_statuses:
        return True
    if status is not None and status in options.stay_statuses:
        return False
    return error.may_fall_back
