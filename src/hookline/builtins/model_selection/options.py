"""Options of `[plugins.model_selection]`.

Lives here: their names, defaults and words. Elsewhere: what they are made into (policies.py), deployments and their facts (`[models]`).
Idea: strict, like every table; who a rule is for is written the same way everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hookline import Principal
from hookline.builtins.model_selection.complexity import Complexity

Strategy = Literal[
    "auto", "listed", "weighted", "round_robin", "least_in_flight", "lowest_latency", "cheapest", "sticky"
]
StickyBy = Literal["conversation", "user", "key", "tenant"]
Usd = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]


class Who(BaseModel):
    """For whom a rule is; what is not named is not asked. All that is named must hold."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    tenant: str | None = None
    user: str | None = None
    key: str | None = Field(None, description="The name or id of a virtual key.")
    tag: str | None = Field(None, description="A tag of the key or token, or one that a plugin gave the call.")

    def includes(self, principal: Principal, tags: Sequence[str]) -> bool:
        """Whether a call of this principal with these tags is meant."""
        return (
            (self.tenant is None or self.tenant == principal.tenant)
            and (self.user is None or self.user == principal.user)
            and (self.key is None or self.key in (principal.key_name, principal.key_id))
            and (self.tag is None or self.tag in principal.tags or self.tag in tags)
        )

    @property
    def is_everyone(self) -> bool:
        return self.tenant is None and self.user is None and self.key is None and self.tag is None


class Mapping(Who):
    """`[[plugins.model_selection.mappings]]`: what a model's name means for some."""

    model: str = Field(description="The name that is asked for (a glob), or one of its aliases.")
    to: str = Field(description="The model they get. Its name is what `models` globs, limits and prices go by.")

    @model_validator(mode="after")
    def _check_who(self) -> Mapping:
        if self.is_everyone:
            raise ValueError("for everyone is an alias: write it under `aliases`, or name a tenant, user, key or tag")
        return self


class Place(Who):
    """`[[plugins.model_selection.places]]`: where calls may go. Every one that includes a call holds for it."""

    regions: list[str] = Field([], description="The deployment's region must be one of these.")
    tags: list[str] = Field([], description="The deployment must have all of these tags.")

    @model_validator(mode="after")
    def _check_demand(self) -> Place:
        if not self.regions and not self.tags:
            raise ValueError("it demands nothing: name regions or tags")
        return self


class SelectionOptions(BaseModel):
    """`[plugins.model_selection]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    strategy: Strategy = Field(
        "auto",
        description='Who goes first of those that may serve. "listed": as in the file; "weighted": by chance, in proportion to `weight`; "round_robin": in turn; '
        '"least_in_flight": who has the fewest calls under way; "lowest_latency": peak-EWMA, power of two choices; "cheapest": by what this call would cost; "sticky": the '
        'same for the same `sticky_by`; "auto": cheapest where `complexity` is set, weighted where weights differ, else listed.',
    )
    sticky_by: StickyBy = Field(
        "conversation",
        description='What "sticky" goes by. "conversation": the header x-hookline-conversation, else `prompt_cache_key`, `conversation`, else the first messages.',
    )
    latency_decay_s: Annotated[float, Field(gt=0, le=3_600)] = Field(
        10.0, description="How long a latency is remembered: after so many seconds it counts a third."
    )
    complexity: dict[Complexity, list[str]] = Field(
        {},
        description="Class of request -> ids of the deployments that serve it (globs). A deployment in none of the lists serves every class. "
        "Where nobody is left for a class, those of a higher one serve it.",
    )
    prefer_provider: str | None = Field(None, description="Its deployments go first.")
    max_cost_per_1k_usd: Usd | None = Field(
        None,
        description="What 1,000 tokens may cost, input and output each. Deployments without a known price are left out.",
    )
    max_cost_usd: Usd | None = Field(
        None,
        description="What a call may cost at worst. An answer without a limit in the request is counted, and capped, at `assumed_output_tokens`.",
    )
    assumed_output_tokens: Annotated[int, Field(ge=1, le=1_000_000_000)] = Field(
        4_096, description="The length of an answer whose request sets no limit, where a cost may not be exceeded."
    )
    cheapest_below: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="The share of a budget: where less is left of one that pays for the call, the cheapest deployment that is able to serve it goes first, whatever its class. 0 is never.",
    )
    client_wishes: bool = Field(
        True,
        description="Follow what requests say in `complexity`, `prefer_provider`, `max_cost` and x-hookline-* headers. False: these are taken out and ignored.",
    )
    places: list[Place] = Field(
        [], description="Where calls may go, by region and tag of the deployment. A model's own are added to these."
    )
    aliases: dict[str, str] = Field(
        {},
        json_schema_extra={"per_model": False},
        description="Other names for models: what the client asks for = the model it gets (limits and permissions too); not per model.",
    )
    mappings: list[Mapping] = Field(
        [],
        json_schema_extra={"per_model": False},
        description="What a model's name means for a tenant, user, key or tag; the first that fits counts; not per model.",
    )

    @model_validator(mode="after")
    def _check_aliases(self) -> SelectionOptions:
        for name, target in self.aliases.items():
            if target in self.aliases:
                raise ValueError(f'alias "{name}" means "{target}", which is an alias too: name the model itself')
        return self
