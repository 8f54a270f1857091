"""`hookline keys`: virtual keys from the command line.

Lives here: options, what is printed. Elsewhere: what is done (key_desk.py), the fields and their rules (key_fields.py), the same over HTTP (admin_keys.py).
Idea: it works on the `records` that proxy.toml names, whether or not a server runs on them; a server that does knows within a second. The fields are checked by the
models of the admin API, so both doors refuse the same with the same words."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import orjson
import typer

from hookline import BadRequest, StoredKey, parse_members
from hookline.builtins.auth.key_desk import KeyDesk
from hookline.builtins.auth.key_fields import KeyUpdate, NewKey, Rotation, moment_text, show, status_of
from hookline.builtins.printing import print_json, print_table, remark

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
PAGE = 100

Key = Annotated[str, typer.Argument(metavar="KEY", help="Its id, or its name.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as the admin API answers it.")]
Tenant = Annotated[str | None, typer.Option(help="Default: default.", show_default=False)]
User = Annotated[str | None, typer.Option(help="Whose it is.", show_default=False)]
Models = Annotated[
    list[str] | None, typer.Option("--model", help='A glob over model names, as in "gpt-4o*"; may be repeated.')
]
RequestsPerMinute = Annotated[int | None, typer.Option(show_default=False)]
TokensPerMinute = Annotated[int | None, typer.Option(show_default=False)]
MaxParallel = Annotated[int | None, typer.Option(show_default=False)]
Limits = Annotated[list[str] | None, typer.Option("--limit", help="Any limit: NAME=NUMBER; may be repeated.")]
LimitsByModel = Annotated[
    list[str] | None,
    typer.Option("--limit-by-model", help='GLOB:NAME=NUMBER, as in "gpt-4o*:tokens_per_minute=1000"; may be repeated.'),
]
DailyUsd = Annotated[float | None, typer.Option(help="Its budget of a day.", show_default=False)]
MonthlyUsd = Annotated[float | None, typer.Option(help="Its budget of a month.", show_default=False)]
TotalUsd = Annotated[float | None, typer.Option(help="Its budget for ever.", show_default=False)]
BudgetJson = Annotated[
    str | None,
    typer.Option("--budget", help='The budget whole, as JSON: {"daily_usd": 5, "mode": "soft"}.', show_default=False),
]
Expires = Annotated[
    str | None, typer.Option(help='After "12h", "30d", "8w"; or at "2027-01-31T00:00:00Z".', show_default=False)
]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="May be repeated.")]
Metadata = Annotated[list[str] | None, typer.Option("--metadata", help="NAME=TEXT; may be repeated.")]


def make_commands(desk: KeyDesk) -> typer.Typer:
    """The commands, over one desk."""
    keys = typer.Typer(
        name="keys",
        help="Virtual keys, kept in [state] records.",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    keys.command("create")(_create(desk))
    keys.command("list")(_list(desk))
    keys.command("show")(_show(desk))
    keys.command("update")(_update(desk))
    keys.command("rotate")(_rotate(desk))
    keys.command("revoke")(_revoke(desk))
    return keys


def _create(desk: KeyDesk) -> Callable[..., Awaitable[None]]:
    async def create(
        name: Annotated[str, typer.Argument(help="How logs, metrics and errors call it.", show_default=False)],
        tenant: Tenant = None,
        user: User = None,
        models: Models = None,
        requests_per_minute: RequestsPerMinute = None,
        tokens_per_minute: TokensPerMinute = None,
        max_parallel: MaxParallel = None,
        limits: Limits = None,
        limits_by_model: LimitsByModel = None,
        daily_usd: DailyUsd = None,
        monthly_usd: MonthlyUsd = None,
        total_usd: TotalUsd = None,
        budget: BudgetJson = None,
        expires: Expires = None,
        tags: Tags = None,
        metadata: Metadata = None,
        as_json: Json = False,
    ) -> None:
        """Make a key and print it. It is shown this once."""
        fields = _fields(
            {"tenant": tenant, "user": user, "models": models, "tags": tags}
            | {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
            | {"max_parallel": max_parallel, **_pairs(limits, "limit"), **_by_model(limits_by_model)},
            budget=_budget(budget, {"daily_usd": daily_usd, "monthly_usd": monthly_usd, "total_usd": total_usd}),
            expires=expires,
            metadata=metadata,
        )
        key, secret = await desk.create(parse_members(NewKey, {"name": name, **fields}))
        _print_secret(desk, key, secret, as_json)
        for warning in await desk.warnings(key):
            remark(warning)

    return create


def _list(desk: KeyDesk) -> Callable[..., Awaitable[None]]:
    async def list_(
        tenant: Annotated[str | None, typer.Option(help="Only this tenant's.", show_default=False)] = None,
        user: Annotated[str | None, typer.Option(help="Only this user's.", show_default=False)] = None,
        is_all: Annotated[bool, typer.Option("--all", help="Revoked ones, too.")] = False,
        as_json: Json = False,
    ) -> None:
        """Print the keys, one a line, oldest first."""
        after, is_first = "", True
        while keys := await desk.page(
            after=after, limit=PAGE, tenant=tenant, user=user, is_revoked=None if is_all else False
        ):
            if as_json:
                for key in keys:
                    print_json(show(key, desk.now()))
            else:
                print_table(([_HEAD] if is_first else []) + [_line(key, desk.now()) for key in keys])
            after, is_first = keys[-1].id, False
        if is_first and not as_json:
            remark("there is no key like that" if tenant or user else "there is no key" if is_all else _NO_KEY)

    return list_


def _show(desk: KeyDesk) -> Callable[..., Awaitable[None]]:
    async def show_(key: Key) -> None:
        """Print all that is known of a key, as JSON; the secret is not."""
        print_json(show(await desk.get_named(key), desk.now()))

    return show_


def _update(desk: KeyDesk) -> Callable[..., Awaitable[None]]:
    async def update(
        key: Key,
        name: Annotated[str | None, typer.Option(show_default=False)] = None,
        tenant: Tenant = None,
        user: User = None,
        models: Models = None,
        requests_per_minute: RequestsPerMinute = None,
        tokens_per_minute: TokensPerMinute = None,
        max_parallel: MaxParallel = None,
        limits: Limits = None,
        limits_by_model: LimitsByModel = None,
        daily_usd: DailyUsd = None,
        monthly_usd: MonthlyUsd = None,
        total_usd: TotalUsd = None,
        budget: BudgetJson = None,
        expires: Expires = None,
        tags: Tags = None,
        metadata: Metadata = None,
        is_disabled: Annotated[
            bool | None, typer.Option("--disable/--enable", help="Refuse it until it is enabled again.")
        ] = None,
        clear: Annotated[
            list[str] | None, typer.Option(help="A field to take away: budget, expires_at, user, ...; may be repeated.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        """Change what is given, and nothing else."""
        found = await desk.get_named(key)
        amounts = {"daily_usd": daily_usd, "monthly_usd": monthly_usd, "total_usd": total_usd}
        fields = _fields(
            {"name": name, "tenant": tenant, "user": user, "models": models, "tags": tags, "disabled": is_disabled}
            | {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
            | {"max_parallel": max_parallel, **_pairs(limits, "limit")}
            | _by_model(limits_by_model, before=found.limits.get("limits_by_model")),
            budget=_budget(budget, amounts, before=found.budget),
            expires=expires,
            metadata=metadata,
        )
        empty: dict[str, Any] = {"tags": [], "metadata": {}}
        cleared = {field.replace("-", "_"): empty.get(field) for field in clear or ()}
        if both := cleared.keys() & fields.keys():
            raise BadRequest(f"{', '.join(sorted(both))}: given and cleared; keep one of them")
        changed = await desk.update(found.id, parse_members(KeyUpdate, {**fields, **cleared}))
        _print_key(changed, desk.now(), as_json)
        for warning in await desk.warnings(changed) if name is not None else ():
            remark(warning)

    return update


def _rotate(desk: KeyDesk) -> Callable[..., Awaitable[None]]:
    async def rotate(
        key: Key,
        overlap: Annotated[
            str, typer.Option(help='How long the secret before goes on: "0s", "1h", "7d", at most "30d".')
        ] = "0s",
        as_json: Json = False,
    ) -> None:
        """Give a key a new secret and print it. It is shown this once."""
        rotation = parse_members(Rotation, {"overlap_s": _duration(overlap, "overlap")})
        changed, secret = await desk.rotate((await desk.get_named(key)).id, rotation.overlap_s)
        _print_secret(desk, changed, secret, as_json)

    return rotate


def _revoke(desk: KeyDesk) -> Callable[..., Awaitable[None]]:
    async def revoke(key: Key, as_json: Json = False) -> None:
        """Refuse a key, for ever."""
        _print_key(await desk.revoke((await desk.get_named(key)).id), desk.now(), as_json)

    return revoke


def _fields(
    values: Mapping[str, Any],
    *,
    budget: Mapping[str, Any] | None,
    expires: str | None,
    metadata: Sequence[str] | None,
) -> dict[str, Any]:
    """The fields that were given."""
    fields: dict[str, Any] = {name: value for name, value in values.items() if value not in (None, [])}
    if budget is not None:
        fields["budget"] = budget
    if expires is not None:
        is_duration = re.fullmatch(r"[0-9.]+[a-z]", expires) is not None
        fields |= {"expires_in_s": _duration(expires, "expires")} if is_duration else {"expires_at": expires}
    if metadata:
        fields["metadata"] = _pairs(metadata, "metadata")
    return fields


def _pairs(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    pairs = [pair.partition("=") for pair in given or ()]
    if not all(separator for _, separator, _ in pairs):
        raise BadRequest(f"--{option} must read {'NAME=NUMBER' if option == 'limit' else 'NAME=TEXT'}")
    return {n: int(text) if option == "limit" and text.isdecimal() and len(text) < 20 else text for n, _, text in pairs}


def _by_model(given: Sequence[str] | None, before: Any = None) -> dict[str, Any]:
    """`--limit-by-model` as the field has it, over what is there `before`. A glob may hold colons, the name of a limit can't."""
    found: dict[str, dict[str, Any]] = {glob: dict(limits) for glob, limits in (before or {}).items()}
    for text in given or ():
        glob, colon, limit = text.rpartition(":")
        if not colon or not glob or "=" not in limit:
            raise BadRequest("--limit-by-model must read GLOB:NAME=NUMBER")
        found.setdefault(glob, {}).update(_pairs([limit], "limit"))
    return {"limits_by_model": found} if given else {}


def _budget(
    text: str | None, amounts: Mapping[str, float | None], before: Mapping[str, Any] | None = None
) -> Mapping[str, Any] | None:
    given = {name: usd for name, usd in amounts.items() if usd is not None}
    if text is None:
        return {**(before or {}), **given} if given else None
    if given:
        raise BadRequest(f"--budget and --{next(iter(given)).replace('_', '-')}: keep one of them")
    try:
        budget = orjson.loads(text)
    except orjson.JSONDecodeError:
        budget = None
    if not isinstance(budget, dict):
        raise BadRequest('--budget must be a JSON object like {"daily_usd": 5}')
    return budget


def _duration(text: str, option: str) -> float:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text)
    if found is None:
        raise BadRequest(f'--{option} must read like "90s", "15m", "12h", "30d" or "8w"')
    return float(found[1]) * UNITS[found[2]]


_NO_KEY = "there is no key in records that is not revoked; keys of proxy.toml are not kept there"
_HEAD = ("ID", "NAME", "PREFIX", "STATUS", "TENANT", "USER", "EXPIRES")


def _line(key: StoredKey, now: float) -> tuple[str, ...]:
    status = status_of(key, now)
    return (key.id, key.name, key.prefix, status, key.tenant, key.user or "-", moment_text(key.expires_at))


def _print_key(key: StoredKey, now: float, as_json: bool) -> None:
    if as_json:
        print_json(show(key, now))
    else:
        print(f"{key.id} {key.name}: {status_of(key, now)}")


def _print_secret(desk: KeyDesk, key: StoredKey, secret: str, as_json: bool) -> None:
    if as_json:
        print_json(show(key, desk.now(), secret))
        return
    print(f"id:  {key.id}\nkey: {secret}")
    remark("keep the key now: it is not shown again")
