"""`hookline spend` and `hookline ledger`: what was spent, from the command line.

Lives here: options, what is printed. Elsewhere: what may be asked and the answers (spend_report.py), the same over HTTP (its routes).
Idea: options are the parameters of the admin API, read by the same models, so both doors refuse the same with the same words. It works on the `records` that proxy.toml
names, whether or not a server runs on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from hookline import BadRequest, parse_members
from hookline.builtins.printing import print_json, print_table, remark
from hookline.builtins.spend_report import (
    ROW_COLUMNS,
    LedgerParameters,
    SpendParameters,
    SpendReports,
    sum_columns,
    to_csv,
)

Names = list[str] | None
Tenant = Annotated[Names, typer.Option(help="Only this tenant's; like every filter, may be repeated.")]
Key = Annotated[Names, typer.Option(help="A key's name or id.")]
User = Annotated[Names, typer.Option()]
Model = Annotated[Names, typer.Option()]
Deployment = Annotated[Names, typer.Option(help='As in "openai/gpt-4o".')]
Tag = Annotated[Names, typer.Option()]
Since = Annotated[
    str | None, typer.Option(help='As in "2026-11-01" or "2026-11-01T12:00:00Z" (UTC).', show_default=False)
]
Until = Annotated[str | None, typer.Option(help="The moment after the last one.", show_default=False)]
After = Annotated[str | None, typer.Option(help="Where the page before ended.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, as the admin API answers it.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV, as the admin API answers it.")]

SHORT_ROW = ("at", "tenant", "key", "model", "endpoint", "outcome", "input_tokens", "output_tokens", "cost_usd")
"""What a person sees of a row; `--json` and `--csv` print it whole."""
SHORT_SUM = ("calls", "input_tokens", "output_tokens", "cost_usd")


def make_spend(reports: SpendReports) -> Callable[..., Awaitable[None]]:
    """`hookline spend`."""

    async def spend(
        by: Annotated[
            Names, typer.Option(help="tenant, key, user, model, deployment, tag, hour, day; several with commas.")
        ] = None,
        since: Since = None,
        until: Until = None,
        tenant: Tenant = None,
        key: Key = None,
        user: User = None,
        model: Model = None,
        deployment: Deployment = None,
        tag: Tag = None,
        limit: Annotated[int | None, typer.Option(help="Lines at most, 1 to 10000. Default: 1000.")] = None,
        after: After = None,
        as_json: Json = False,
        as_csv: Csv = False,
    ) -> None:
        """Print what was spent, by whom or on what."""
        given = _given(locals(), SpendParameters)
        asked = parse_members(SpendParameters, given)
        _print(await reports.sum(asked), sum_columns(asked), (*asked.by, *SHORT_SUM), as_json, as_csv)

    return spend


def make_ledger(reports: SpendReports) -> Callable[..., Awaitable[None]]:
    """`hookline ledger`."""

    async def ledger(
        since: Since = None,
        until: Until = None,
        tenant: Tenant = None,
        key: Key = None,
        user: User = None,
        model: Model = None,
        deployment: Deployment = None,
        tag: Tag = None,
        limit: Annotated[int | None, typer.Option(help="Rows at most, 1 to 1000. Default: 100.")] = None,
        after: After = None,
        as_json: Json = False,
        as_csv: Csv = False,
    ) -> None:
        """Print the ledger's rows, the newest first."""
        given = _given(locals(), LedgerParameters)
        asked = parse_members(LedgerParameters, given)
        _print(await reports.rows(asked), ROW_COLUMNS, SHORT_ROW, as_json, as_csv)

    return ledger


def _given(options: Mapping[str, Any], model: type[SpendParameters] | type[LedgerParameters]) -> dict[str, Any]:
    if options["as_json"] and options["as_csv"]:
        raise BadRequest("--json and --csv: keep one of them")
    return {name: value for name, value in options.items() if name in model.model_fields and value not in (None, [])}


def _print(found: Mapping[str, Any], columns: Sequence[str], short: Sequence[str], as_json: bool, as_csv: bool) -> None:
    lines: Sequence[Mapping[str, Any]] = found["data"]
    if as_json:
        print_json(found)
    elif as_csv:
        print(to_csv(columns, lines), end="")
    elif lines:
        print_table([[name.upper() for name in short], *([_text(line[name]) for name in short] for line in lines)])
    else:
        remark("nothing was booked that matches")
    if found["has_more"] and not as_json:
        remark(f"there is more: add --after {found['last_id']}, or a higher --limit")


def _text(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)
