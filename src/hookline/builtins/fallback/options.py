"""Options of `[plugins.fallback]`.

Lives here: their names, defaults and words. Elsewhere: the table they refine (retry_table.py).
Idea: what costs money twice is off until somebody says so: retries, continued streams."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ErrorStatus = Annotated[int, Field(ge=400, le=599, strict=True)]
ModelName = Annotated[str, Field(min_length=1, max_length=512)]


class FallbackOptions(BaseModel):
    """`[plugins.fallback]`: what is tried after a failure. By default every deployment of the model once, nothing twice; 400, 413, 415 and 422 stay."""

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
    models: list[ModelName] = Field(
        [],
        max_length=20,
        description="Other models, tried in this order when every deployment of the model has failed or was skipped.",
    )
    context_window: list[ModelName] = Field(
        [], max_length=20, description="Models for a request that is too long for this one."
    )
    content_policy: list[ModelName] = Field(
        [],
        max_length=20,
        description="Models for a request whose content this one refuses, or whose answer its filter stopped before anything was said.",
    )
    rate_limit: list[ModelName] = Field(
        [],
        max_length=20,
        description="Models tried after a 429, or when all deployments are skipped because limits are known to be used up; before `models`.",
    )
    max_retries: int = Field(
        0,
        ge=0,
        le=10,
        description="How often a call goes back to deployments that it has tried; 0: never, clients retry by themselves.",
    )
    backoff_s: float = Field(
        0.5, gt=0, le=60, description="Wait before the first retry, doubled for each one; half of it is drawn by lot."
    )
    max_backoff_s: float = Field(
        8.0,
        gt=0,
        le=600,
        description="Longest wait that nobody asked for; where it is not set, never less than `backoff_s`.",
    )
    max_wait_s: float = Field(
        10.0,
        ge=0,
        le=3_600,
        description="Longest wait that a provider may ask for (retry-after); a longer one is passed on to the client.",
    )
    retry_lost_calls: bool = Field(
        False,
        description="Retry model calls that were sent and got no answer: the provider may have done the work, and bill it twice.",
    )
    retry_budget: float = Field(
        0.2,
        ge=0,
        le=10,
        json_schema_extra={"per_model": False},
        description="Attempts beyond the first, as a share of calls, in all and per deployment; not per model.",
    )
    retry_budget_per_s: float = Field(
        10.0,
        ge=0,
        le=100_000,
        json_schema_extra={"per_model": False},
        description="Beside the share, so many a second, over all workers; not per model.",
    )
    mid_stream: Literal["error", "continue"] = Field(
        "error",
        description='A chat stream that dies half way ends with an error, or is continued by the next deployment ("continue").',
    )
    continues_prefix: list[str] = Field(
        [],
        max_length=100,
        description="Deployments (globs) that go on from an assistant message at the end, as some of Anthropic's models do; all others get a prompt that asks for it.",
    )

    @model_validator(mode="after")
    def _check_overlap(self) -> FallbackOptions:
        both = self.go_on_statuses & self.stay_statuses
        if both:
            raise ValueError(f"{sorted(both)} in both go_on_statuses and stay_statuses: remove it from one")
        return self

    @model_validator(mode="after")
    def _check_backoff(self) -> FallbackOptions:
        if self.backoff_s > self.max_backoff_s:
            if "max_backoff_s" in self.model_fields_set:
                raise ValueError(
                    f"backoff_s {self.backoff_s:g} is above max_backoff_s {self.max_backoff_s:g}: swap them"
                )
            object.__setattr__(self, "max_backoff_s", self.backoff_s)  # frozen for everybody else
        return self
