"""Explain: why a call goes where it goes, or would not go at all.

Lives here: `POST /admin/explain`, whether clients may explain their own calls. Elsewhere: `hookline explain` (commands.py), the call (asked_call.py), the explanation itself (the core's dry run, and each plugin's
findings and notes), the header `x-hookline-explain` (the door reads it).
Idea: a thin door to the core's dry run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    AddCommand,
    AddRoute,
    ApiError,
    BadRequest,
    Host,
    Parameters,
    Reply,
    RouteRequest,
    explain,
    hookimpl,
)
from hookline.builtins.asked_call import AskedCall, make_call, run_asked


class ExplainOptions(BaseModel):
    """`[plugins.explain]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    clients: bool = Field(
        True,
        description="Let every key explain its own calls by `x-hookline-explain: true`; they count against no limit.",
    )


class Plugin:
    """Explains."""

    Options = ExplainOptions
    has_model_options = False
    supports_dry_run = True

    def __init__(self, options: ExplainOptions, host: Host) -> None:
        self.explains_to_clients = options.clients
        self._host = host

    @hookimpl
    def register_routes(self, add: AddRoute) -> None:
        add("POST", "/admin/explain", self._explain, access="admin")

    @hookimpl
    def register_commands(self, add: AddCommand) -> None:
        from hookline.builtins.explain.commands import make_command  # typer is for the command line only

        server = self._host.settings.get("server", {})
        host = str(server.get("host", "127.0.0.1"))
        reached = "127.0.0.1" if host in ("0.0.0.0", "") else "[::1]" if host == "::" else host
        add("explain", make_command(f"http://{reached}:{server.get('port', 8080)}"))

    async def _explain(self, request: RouteRequest) -> Reply:
        request.parameters(Parameters)
        asked = request.json_object(AskedCall)
        try:
            call = make_call(asked, request, self._host)
        except ApiError as error:  # it would be no call
            raise BadRequest(f'"path": {error.message}', code="invalid_parameter", param="path") from None
        call.is_explained = True
        if asked.key is None:
            call.note("explain", "no key", 'the call is one without a key; "key" takes the name or id of one')
        reply = await run_asked(asked, call, self._host)
        return Reply.from_json(explain(call, reply, is_own=False))
