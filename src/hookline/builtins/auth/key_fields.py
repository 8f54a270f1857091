"""A virtual key's fields: as they are sent, and as they are shown.

Lives here: the models behind `/admin/keys` and `hookline keys`, a key as JSON. Elsewhere: keys of proxy.toml (options.py), what is done with the fields (key_desk.py), how
they are read (the core).
Idea: an update holds the fields that change and nothing else; null takes a limit away."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from hookline import BudgetTable, ListParameters, Parameters, ScopedLimitTable, StoredKey
from hookline.builtins.auth.options import Name

EXPIRES_MAX = 253_402_300_799.0
"""The end of the year 9999 in Unix seconds."""
OVERLAP_MAX_S = 30 * 86_400.0
DURATION_MAX_S = 100 * 366 * 86_400.0


def _check_moment(value: float | str) -> float | str:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError('must be Unix seconds, or a moment like "2027-01-31T00:00:00Z"') from None
        if moment.tzinfo is None:
            raise ValueError('must say its time zone, as in "2027-01-31T00:00:00Z"')
        value = moment.timestamp()
    if not isfinite(value) or not 0 <= value <= EXPIRES_MAX:
        raise ValueError("must be a moment between 1970 and 9999")
    return float(value)


Moment = Annotated[float | str, AfterValidator(_check_moment)]
Glob = Annotated[str, Field(min_length=1, max_length=512)]
MetadataKey = Annotated[Name, Field(max_length=64)]
MetadataText = Annotated[str, Field(max_length=512)]


class KeyFields(ScopedLimitTable):
    """What may be set when a key is made, and later."""

    tenant: Name = "default"
    user: Name | None = None
    models: list[Glob] = Field(
        ["*"], min_length=1, max_length=500, description="Globs over the model names it may ask for."
    )
    budget: BudgetTable | None = Field(None, description='As in `proxy.toml`: {"daily_usd": 5}.')
    tags: list[Name] = Field([], max_length=50, description="For logs and the ledger.")
    metadata: dict[MetadataKey, MetadataText] = Field({}, max_length=50, description="Texts of yours, by name.")
    expires_at: Moment | None = Field(None, description="Unix seconds, or a moment with its time zone.")
    expires_in_s: float | None = Field(None, gt=0, le=DURATION_MAX_S, description="In its place: seconds from now.")
    disabled: bool = Field(False, description="Refused until it is enabled again.")

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, metadata: dict[str, str]) -> dict[str, str]:
        if any("\0" in text for text in metadata.values()):
            raise ValueError("must hold no NUL characters")
        return metadata

    @model_validator(mode="after")
    def _check_expiry(self) -> KeyFields:
        if self.expires_at is not None and self.expires_in_s is not None:
            raise ValueError("`expires_at` and `expires_in_s`: keep one of them")
        return self


class NewKey(KeyFields):
    """`POST /admin/keys`."""

    name: Name = Field(description="How logs, metrics and errors call it.")


class KeyUpdate(KeyFields):
    """`PATCH /admin/keys/{id}`: only what is sent is changed."""

    name: Name = ""


class Rotation(Parameters):
    """`POST /admin/keys/{id}/rotate`."""

    overlap_s: float = Field(
        0.0, ge=0, le=OVERLAP_MAX_S, description="How long the secret before goes on; 30 days at most."
    )


class KeyFilters(ListParameters):
    """The query of `GET /admin/keys`."""

    name: Name | None = None
    tenant: Name | None = None
    user: Name | None = None
    revoked: bool | None = None


LIMITS = tuple(ScopedLimitTable.model_fields)


def apply(fields: KeyFields, key: StoredKey, now: float) -> StoredKey:
    """`key` with the fields that were sent."""
    sent = fields.model_fields_set
    changes: dict[str, Any] = {name: getattr(fields, name) for name in ("name", "tenant", "user") if name in sent}
    changes |= {name: tuple(getattr(fields, name)) for name in ("models", "tags") if name in sent}
    if "metadata" in sent:
        changes["metadata"] = fields.metadata
    if "budget" in sent:
        changes["budget"] = None if fields.budget is None else fields.budget.model_dump(mode="json", exclude_unset=True)
    if any(name in sent for name in LIMITS):
        asked = fields.model_dump(mode="json", include=set(LIMITS), exclude_unset=True)
        changes["limits"] = {name: limit for name, limit in {**key.limits, **asked}.items() if limit}
    if "expires_at" in sent:
        changes["expires_at"] = fields.expires_at
    if fields.expires_in_s is not None:
        changes["expires_at"] = now + fields.expires_in_s
    if "disabled" in sent and fields.disabled != (key.disabled_at is not None):
        changes["disabled_at"] = now if fields.disabled else None
    return key._replace(**changes)


def show(key: StoredKey, now: float, secret: str | None = None) -> dict[str, Any]:
    """A key as JSON, without its secret unless that is given: when it is made, and never again."""
    shown = {
        "object": "hookline.key",
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "status": status_of(key, now),
        "tenant": key.tenant,
        "user": key.user,
        "models": list(key.models),
        **{name: key.limits.get(name) for name in LIMITS},
        "budget": key.budget,
        "tags": list(key.tags),
        "metadata": dict(key.metadata),
        "created_at": int(key.created_at),
        "expires_at": _seconds(key.expires_at),
        "rotated_at": _seconds(key.rotated_at),
        "old_secret_until": _seconds(key.old_until) if key.old_until is not None and key.old_until > now else None,
        "disabled_at": _seconds(key.disabled_at),
        "revoked_at": _seconds(key.revoked_at),
    }
    return shown if secret is None else {**shown, "key": secret}


def status_of(key: StoredKey, now: float) -> str:
    """active, disabled, expired or revoked."""
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and now >= key.expires_at:
        return "expired"
    return "active" if key.disabled_at is None else "disabled"


def moment_text(at: float | None) -> str:
    """For people."""
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%MZ")


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
