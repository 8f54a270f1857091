"""Options of `[plugins.circuit_breaker]`.

Lives here: their names, defaults and words. Elsewhere: what they decide (circuit.py, votes.py).
Idea: the defaults suit deployments that answer some calls a minute as well as hundreds a second."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hookline.builtins.alert_webhook import AlertWebhook


class BreakerOptions(BaseModel):
    """`[plugins.circuit_breaker]`: when a deployment's circuit opens, and for how long."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    consecutive_failures: int = Field(5, ge=1, le=1_000_000, description="Opens after this many failures in a row.")
    failure_rate: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Opens at this share of failures over the window: a little more than the retry budget can save ...",
    )
    min_votes: int = Field(20, ge=1, le=1_000_000, description="... once it holds this many votes.")
    slow_call_s: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="A call is slow whose first byte (stream) or answer takes longer; none: no call is.",
    )
    slow_call_rate: float = Field(0.5, gt=0, le=1, description="Opens at this share of slow calls over the window.")
    window_s: float = Field(
        30.0,
        gt=0,
        le=86_400,
        json_schema_extra={"per_model": False},
        description="Length of the window; not per model, deployments have one each.",
    )
    open_s: float = Field(5.0, gt=0, le=86_400, description="First time open; doubled each time a probe fails.")
    max_open_s: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="Longest time open after failures; where it is not set, never less than `open_s`.",
    )
    jitter: float = Field(0.2, ge=0, lt=1, description="Up to this share of the time open is left out, by lot.")
    cooldown_s: float = Field(5.0, gt=0, le=86_400, description="Time open after a 429 without retry-after.")
    max_cooldown_s: float = Field(
        3_600.0, gt=0, le=30 * 86_400, description="Longest time open that a retry-after can ask for."
    )
    share_s: float = Field(
        0.25,
        ge=0.05,
        le=60,
        json_schema_extra={"per_model": False},
        description="How often processes with a shared store tell each other; not per model.",
    )
    alert_webhook: AlertWebhook | None = Field(
        None,
        json_schema_extra={"per_model": False},
        description="Who is told of deployments that refuse the gateway (401, 403, no money); needs the extra `webhooks`; not per model.",
    )

    @property
    def patience_s(self) -> float:
        """How long a probe may go without an answer, whoever ends it then."""
        return self.slow_call_s if self.slow_call_s is not None else max(self.open_s, 1.0)

    @model_validator(mode="after")
    def _check_open_times(self) -> BreakerOptions:
        if self.open_s > self.max_open_s:
            if "max_open_s" in self.model_fields_set:
                raise ValueError(f"open_s {self.open_s:g} is above max_open_s {self.max_open_s:g}: swap them")
            object.__setattr__(self, "max_open_s", self.open_s)  # frozen for everybody else
        return self
