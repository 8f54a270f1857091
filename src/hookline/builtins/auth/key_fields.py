"""A virtual key's fields: as they are sent, and as they are shown.

Lives here: the models behind `/admin/keys` and `hookline keys`, a key as JSON, what is wrong with fields. Elsewhere: keys of proxy.toml (options.py), what is done
with the fields (key_desk.py).
Idea: an update holds the fields that change and nothing else; null takes a limit away. Every wrong field is named, at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from hookline import BadRequest, StoredKey
from hookline.builtins.auth.options import BudgetTable, KeyLimitTable, LimitTable, Name, Table

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


class KeyFields(KeyLimitTable):
    """What may be set when a key is made, and later."""

    tenant: Name = "default"
    user: Name | None = None
    models: list[Glob] = Field(["*"], min_length=1, max_length=500)
    budget: BudgetTable | None = None
    tags: list[Name] = Field([], max_length=50)
    metadata: dict[MetadataKey, MetadataText] = Field({}, max_length=50)
    expires_at: Moment | None = None
    expires_in_s: float | None = Field(None, gt=0, le=DURATION_MAX_S)
    disabled: bool = False

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

    name: Name


class KeyUpdate(KeyFields):
    """`PATCH /admin/keys/{id}`: only what is sent is changed."""

    name: Name = ""


class Rotation(Table):
    """`POST /admin/keys/{id}/rotate`."""

    overlap_s: float = Field(0.0, ge=0, le=OVERLAP_MAX_S)


class Listing(Table):
    """The query of `GET /admin/keys`."""

    limit: int = Field(20, ge=1, le=100, strict=False)
    after: Name = ""
    name: Name | None = None
    tenant: Name | None = None
    user: Name | None = None
    revoked: Literal["true", "false"] | None = None


LIMITS = tuple(KeyLimitTable.model_fields)


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


def check(model: type[Table], values: Mapping[str, Any]) -> Any:
    """`values` as `model`. Raises BadRequest that names every wrong field; `param` is the first."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = {problem_field(detail["loc"]): _words(model, detail) for detail in reversed(error.errors())}
        wrong = dict(reversed(found.items()))
        message = "; ".join(f'"{field}": {words}' if field else words for field, words in wrong.items())
        raise BadRequest(message, code="invalid_value", param=next(iter(wrong)) or None) from None


def problem_field(location: Sequence[int | str]) -> str:
    """`budget.rolling[0].usd`; branches of a union and marks of pydantic's own are left out."""
    field = ""
    for part in location:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part in ("float", "str", "[key]") or part.startswith(("function-", "constrained-")):
            continue
        else:
            field += f".{part}" if field else part
    return field[:200]


_WANTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "missing": "must be given",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


def _words(model: type[Table], detail: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _known_fields(model, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, 1, 0.5)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
        return f"unknown field; {hint}"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    return _WANTED.get(kind) or str(detail["msg"]).replace("Input should", "must").replace("should", "must")


def _known_fields(model: type[Table], location: Sequence[int | str]) -> list[str]:
    for part in location:
        if part == "budget":
            model = BudgetTable
        elif part == "limits_by_model":
            model = LimitTable
        elif part == "rolling":
            model = BudgetTable.model_fields["rolling"].annotation.__args__[0]  # type: ignore[union-attr]
    return list(model.model_fields)


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
