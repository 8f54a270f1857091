"""`hookline explain`: the explanation on the command line.

Lives here: reading the request, asking the running gateway, what people read. Elsewhere: the explanation (the package).
Idea: limits, budgets and circuits live in the gateway, so it is asked; this command knows nothing of its own."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

FAILED = 1
TIMEOUT_S = 30.0


def make_command(default_url: str) -> Callable[..., None]:
    """`hookline explain`, which asks the running gateway: only that knows what is left and who is ill."""

    def explain(
        request: Annotated[
            Path,
            typer.Argument(
                help="A file with the body of a call, or with what POST /admin/explain takes; - is stdin.",
                show_default=False,
            ),
        ],
        key: Annotated[
            str | None, typer.Option(help="Name or id of the key that would call.", show_default=False)
        ] = None,
        path: Annotated[str, typer.Option(help="Of the call.")] = "/v1/chat/completions",
        url: Annotated[str, typer.Option(help="Where the gateway runs.")] = default_url,
        admin_key: Annotated[
            str | None, typer.Option(envvar="HOOKLINE_ADMIN_KEY", help="As in [admin] key.", show_default=False)
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
    ) -> None:
        """Say what would become of a call: who pays, what is left, which deployments are tried and why. Nothing is taken or sent."""
        try:
            answer = ask(url, admin_key, read_request(request, key, path))
        except OSError as error:
            print(f"hookline: {error}", file=sys.stderr)
            raise typer.Exit(FAILED) from None
        print(orjson.dumps(answer, option=orjson.OPT_INDENT_2).decode() if as_json else "\n".join(lines_of(answer)))
        if not answer["can_proceed"]:
            raise typer.Exit(FAILED)

    return explain


def read_request(file: Path, key: str | None, path: str) -> dict[str, Any]:
    """What is sent to `/admin/explain`. Raises OSError with a sentence."""
    text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise OSError(f"{file} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise OSError(f"{file} holds no JSON object")
    asked = value if isinstance(value.get("request"), dict) else {"request": value, "path": path}
    return {**asked, "key": key} if key is not None else asked


def ask(url: str, admin_key: str | None, asked: dict[str, Any]) -> dict[str, Any]:
    """The explanation. Raises OSError with a sentence."""
    if not url.startswith(("http://", "https://")):
        raise OSError(f'--url "{url}" has no scheme: begin it with http:// or https://')
    headers = {"content-type": "application/json"}
    if admin_key:
        headers["authorization"] = f"Bearer {admin_key}"
    request = urllib.request.Request(f"{url.rstrip('/')}/admin/explain", orjson.dumps(asked), headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            answer: dict[str, Any] = orjson.loads(reply.read())
            return answer
    except urllib.error.HTTPError as error:
        raise OSError(_refusal(error.code, error.read())) from None
    except TimeoutError:
        raise OSError(f"{url} did not answer within {TIMEOUT_S:g} s; its log may say why") from None
    except urllib.error.URLError as error:
        raise OSError(
            f"nobody answers at {url} ({error.reason}); start it by `hookline serve`, or give --url"
        ) from None
    except ValueError as error:
        raise OSError(f"{url} did not answer as a gateway does: {error}") from None


def _refusal(status: int, body: bytes) -> str:
    told: Any = {}
    with suppress(ValueError, KeyError, TypeError):
        told = orjson.loads(body)["error"]
    if status in (401, 403, 404) and told.get("code") != "key_not_found":
        return (
            f'the gateway answered {status}: it needs [admin] key and "explain" in [chain] plugins, and this command '
            "needs that key, by --admin-key or HOOKLINE_ADMIN_KEY"
        )
    return str(told.get("message") or f"the gateway answered {status}")


def lines_of(answer: dict[str, Any]) -> list[str]:
    """The explanation for people."""
    who, request, error = answer["who"], answer["request"], answer["error"]
    lines = [
        f"call       {request['method']} {request['path']}, model {request['model']}",
        f"who        key {who['key']}, tenant {who['tenant']}" + (f", user {who['user']}" if who["user"] else ""),
        f"result     {'would proceed' if error is None else str(answer['status']) + ': ' + error['message']}",
    ]
    if answer["cache"] is not None:
        age = answer["cache"]["age_s"]
        lines.append(f"cache      {answer['cache']['status']}" + (f", {age} s old" if age is not None else ""))
    for one in answer["limits"]:
        lines.append(f"limit      {one['scope']}: {one['remaining']} of {one['limit']} {one['unit']} left")
    for one in answer["budgets"]:
        lines.append(f"budget     {one['budget']}: {one['left_usd']} of {one['limit_usd']} USD left")
    for one in answer["candidates"]:
        cost = f", at most {one['worst_case_usd']} USD" if one["worst_case_usd"] is not None else ""
        lines.append(f"candidate  {one['deployment']}: {one['verdict']}{cost}")
        lines += [f"             {why['plugin']} ({why['verdict']}): {why['text']}" for why in one["reasons"]]
    about = {why["text"] for one in answer["candidates"] for why in one["reasons"]}
    lines += [
        f"note       {n['plugin']} ({n['verdict']}): {n['text']}"
        for n in answer["notes"]
        if not any(n["text"].endswith(text) for text in about)
    ]
    return lines
