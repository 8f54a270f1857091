"""Auth: who calls, by the keys of proxy.toml.

Lives here: `[[plugins.auth.keys]]`, reading a key from the headers, 401. Elsewhere: what a principal may use (the core checks `models`), what it may
spend (rate_limit.py, budget.py), whether a host that others reach may go without keys (refused at start by the core).
Idea: keys become SHA-256 digests and finished Principals at start; a call costs one hash and one dict lookup. The lookup's timing tells about digests, which a
caller can't choose, and the comparison is constant in time. There is no memo from header to Principal: it would save half a microsecond and keep every
key that was ever sent in plain memory."""

from __future__ import annotations

import hmac
import zoneinfo
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from hookline import ANONYMOUS, Budget, Call, Host, Limits, Principal, Rejected, Unauthenticated, hookimpl

KEY_HEADERS = ("api-key", "x-api-key")
"""Where other SDKs put their key (Azure, Anthropic); asked when there is no `authorization`."""

Count = Annotated[int, Field(ge=1)]
Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class RollingTable(_Table):
    """`rolling = [{ hours = 5, usd = 1.0 }]`."""

    hours: float = Field(gt=0, le=8_784)
    usd: Usd


class BudgetTable(_Table):
    """`budget = { daily_usd = 5.0 }`."""

    daily_usd: Usd | None = None
    monthly_usd: Usd | None = None
    total_usd: Usd | None = None
    rolling: list[RollingTable] = []
    alert_at: float = Field(0.8, gt=0, le=1, description="The share of each window at which the log and a metric warn.")
    time_zone: str = Field("UTC", description="Whose midnight starts a day and a month.")
    mode: Literal["hard", "soft"] = "hard"

    @field_validator("rolling")
    @classmethod
    def _check_rolling(cls, windows: list[RollingTable]) -> list[RollingTable]:
        if len({window.hours for window in windows}) < len(windows):
            raise ValueError("two windows of the same length: keep the one that should hold")
        return windows

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError('unknown time zone; write one like "Europe/Berlin"') from error
        return name


class KeyTable(_Table):
    """One `[[plugins.auth.keys]]`."""

    name: str = Field(
        min_length=1, max_length=200, description="How logs, metrics and errors call it; the key itself is never shown."
    )
    key: SecretStr = Field(strict=False)
    tenant: str = Field("default", min_length=1, max_length=200)
    user: str | None = Field(None, min_length=1, max_length=200)
    models: list[str] = Field(["*"], description="Globs over the model names it may ask for.")
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_parallel: Count | None = None
    budget: BudgetTable | None = None

    @field_validator("key")
    @classmethod
    def _check_key(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if not text or not all("!" <= character <= "~" for character in text):
            raise ValueError("must be visible ASCII without spaces, or no header can carry it")
        return key

    def to_principal(self) -> Principal:
        return Principal(
            key_id=self.name,
            key_name=self.name,
            tenant=self.tenant,
            user=self.user,
            models=tuple(self.models),
            limits=Limits.from_table(self.model_dump(exclude={"key"})),
            budget=None if self.budget is None else Budget.from_table(self.budget.model_dump()),
        )


class AuthOptions(_Table):
    """`[plugins.auth]`."""

    keys: list[KeyTable] = Field(
        [], description="Who may call. The first key closes the door for everyone without one."
    )
    open: bool = Field(False, description="Let callers without a known key in as anonymous, although there are keys.")

    @model_validator(mode="after")
    def _check_duplicates(self) -> AuthOptions:
        names: set[str] = set()
        name_by_secret: dict[str, str] = {}
        for table in self.keys:
            if table.name in names:
                raise ValueError(f'two keys are named "{table.name}": give each a name of its own')
            names.add(table.name)
            other = name_by_secret.setdefault(table.key.get_secret_value(), table.name)
            if other != table.name:
                raise ValueError(f'"{other}" and "{table.name}" have the same key: remove one')
        return self


class _Known(NamedTuple):
    digest: bytes
    principal: Principal


class Plugin:
    """Vouches for callers whose key is known; without any key in proxy.toml everyone is anonymous."""

    Options = AuthOptions
    has_model_options = False
    supports_dry_run = True

    def __init__(self, options: AuthOptions, host: Host) -> None:
        self._known: dict[bytes, _Known] = {}
        for table in options.keys:
            digest = sha256(table.key.get_secret_value().encode()).digest()
            self._known[digest] = _Known(digest, table.to_principal())
        self.is_open = options.open or not options.keys

    def find_principal(self, key: str) -> Principal | None:
        """Who calls with the key of this name: see `Host.find_principal`."""
        return next((known.principal for known in self._known.values() if known.principal.key_name == key), None)

    @hookimpl
    def authenticate(self, call: Call) -> Principal | None:
        key = find_key(call.headers)
        if key is not None:
            digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
            known = self._known.get(digest)
            if known is not None and hmac.compare_digest(known.digest, digest):
                return known.principal
        if self.is_open:
            return ANONYMOUS
        raise Rejected(_refusal(call.headers, key))


def find_key(headers: Mapping[str, str]) -> str | None:
    """The key a client shows: `Authorization: Bearer ...`, else `api-key`, else `x-api-key`. None if there is none."""
    authorization = headers.get("authorization")
    if authorization is not None:
        if authorization.startswith("Bearer "):
            return authorization[7:].strip() or None
        scheme, _, key = authorization.strip().partition(" ")
        return key.strip() or None if scheme.lower() == "bearer" else None
    for name in KEY_HEADERS:
        key = headers.get(name, "").strip()
        if key:
            return key
    return None


def _refusal(headers: Mapping[str, str], key: str | None) -> Unauthenticated:
    if key is not None:
        message = "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."
    elif "authorization" in headers:
        message = "The Authorization header holds no key. It must read `Authorization: Bearer YOUR_KEY`."
    else:
        message = "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`."
    return Unauthenticated(message, headers={"www-authenticate": "Bearer"})
