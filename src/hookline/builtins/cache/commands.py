"""`hookline cache purge`: answers that must not be served any more, from the command line.

Lives here: options, what is printed. Elsewhere: what is done (purge.py), the same over HTTP (its route).
Idea: a command is a process of its own, so it reaches only a cache that processes share; what lives in a server's memory is purged by that server."""

from __future__ import annotations

from typing import Annotated

import typer

from hookline import Conflict, ReplyStore, parse_members
from hookline.builtins.cache.purge import Purge, PurgeParameters
from hookline.builtins.printing import print_json


def make_commands(purge: Purge, replies: ReplyStore) -> typer.Typer:
    """The commands."""
    cache = typer.Typer(
        name="cache",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @cache.callback()
    def root() -> None:
        """The response cache, where processes share it ([state] shared)."""

    @cache.command("purge")
    async def purge_(
        key: Annotated[
            list[str] | None, typer.Option(help="What a reply's x-hookline-cache-key says; may be repeated.")
        ] = None,
        model: Annotated[str | None, typer.Option(help="All answers of a model or alias.", show_default=False)] = None,
        tenant: Annotated[str | None, typer.Option(help="All answers of a tenant.", show_default=False)] = None,
        is_all: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON, as the admin API answers it.")] = False,
    ) -> None:
        """Remove answers: those of one key, model or tenant, or all. Say which."""
        given = {
            "key": ",".join(key) if key else None,
            "model": model,
            "tenant": tenant,
            "all": "true" if is_all else None,
        }
        asked = parse_members(PurgeParameters, given)
        name, value = asked.named
        if not replies.is_shared:
            raise Conflict(
                "the cache is in the server's own memory ([state] shared), which no other process reaches; ask the server: "
                f"curl -X DELETE -H 'authorization: Bearer ADMIN_KEY' 'http://HOST:PORT/admin/cache?{name}={value}'"
            )
        done = await purge.purge(asked)
        if as_json:
            print_json(done)
        else:
            print(f"{done['deleted']} removed")

    return cache
