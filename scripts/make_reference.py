"""Make docs/reference from the code; with --check, say what is out of date and write nothing.

Lives here: pages for hooks, configuration, errors, metrics, the admin API and the command line. Elsewhere: the facts (hookspecs, config, errors, plugins, cli).
Idea: a page that is made can't disagree with the code, and CI refuses one that was not made again."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

from hookline import errors, hookspecs
from hookline.builtins.asked_call import AskedCall
from hookline.builtins.auth.key_fields import KeyFilters, NewKey, Rotation
from hookline.builtins.budget.admin import WindowFilters
from hookline.builtins.cache.purge import PurgeParameters
from hookline.builtins.circuit_breaker.admin import CircuitFilters, Decision
from hookline.builtins.health_probes.findings import ProbeFilters
from hookline.builtins.spend_report import LedgerParameters, SpendParameters
from hookline.chain import DECIDING_HOOKS, PHASES, START_S, STOP_S, Chain, compile_chain
from hookline.config import ChainEntry, Settings
from hookline.metrics_registry import MetricsRegistry
from hookline.pipeline import Pipeline
from hookline.plugin_host import Stores, Workshop
from hookline.plugin_loading import PluginEntry, load_class
from hookline.stores.redis_client import RedisClient, watch
from hookline.testing.clock import FakeClock
from hookline.watchdog import Watchdog

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
MADE = "<!-- Made by scripts/make_reference.py from the code. Edit the code, then run it. -->\n\n"
COMBINE = {
    "first": "the first answer wins",
    "each": "all are called",
    "all": "all tickets are kept",
    "pipe": "each gets the last one's answer",
}
_TOML_TYPES: dict[Any, str] = {
    NoneType: "none",
    SecretStr: "str",
    Any: "any",
    tuple: "list",
    set: "list",
    frozenset: "list",
    Sequence: "list",
    Mapping: "dict",
}
PLUGIN = (
    """## The class

| member | |
|---|---|
| `__init__(self, options, host)` | Called when the configuration is compiled, also by `hookline check`: keep things, start nothing. May be left out together with `Options`. |
| `Options` | A pydantic model, checked against `[plugins.NAME]` and `[models.X.plugins.NAME]`. Unknown keys are refused unless its `extra` says otherwise. |
| `start(self)`, `stop(self)` | `def` or `async def`, before the first call and after the last; in list order and in reverse. `start` has START_S seconds and may raise `StartupError`; `stop` has STOP_S seconds, and is called where `start` failed, too. |
| `on_error = "closed"` | Closes the deciding hooks that are open by default: DECIDING. |
| `needs_shared_state = True` | What it counts must hold across processes: more than one worker without a shared store is refused. |
| `has_model_options = False` | Refuses `[models.x.plugins.NAME]` tables. A plugin that reads `host.options_by_model` leaves it out. |
| `supports_dry_run = True` | Its hooks take and write nothing for a call with `is_dry_run`. A plugin without it is left out of dry runs. |

`host` is a [`Host`](../../src/hookline/host.py): `log`, `metrics`, `clock`, `http` (an aiohttp session), `limits`, `replies` and `records` (the stores), `settings`, `options_by_model`, `describe()`, `run(call)` and `spawn(name, coroutine)`, the last two from `start()` on.
`import hookline` has everything a plugin needs; nothing below it is public.
What plugins leave for each other on a call is a [`Slot`](../../src/hookline/slots.py): `SEEN = Slot[int]("seen")`, then `call[SEEN] = 1` and `call.find(SEEN)`.

## What is refused at start

Each with plugin, file, line and what to write, all at once; `hookline check` says the same:

- a marked method that is no hook, with the nearest name; a hook without `@hookimpl`; a hook outside the class;
- an argument too many, missing, misspelt or in another place; keyword-only and starred arguments;
- pluggy's `tryfirst`, `trylast`, `wrapper`, `hookwrapper`, `optionalhook` and `specname`: order is set in `[chain]`, and nothing wraps;
- `@hookimpl` above `@staticmethod` or `@classmethod` (below them it works); an object in place of a function;
- generators; an `async def` inside a plain wrapper; `async def` for `edit_event` and the registration hooks;
- options that the model refuses; `Options` that are no pydantic model or reach no `__init__`;
- a plugin listed twice, not installed, or offered by two packages; a route, provider kind or store scheme that is taken.

## When it runs

A plain `def` of `admit`, `lookup` or `admit_attempt` may return a coroutine where it seldom has to wait: it is awaited for the answer.
An async hook has `[server] hook_timeout_s`; `await call.wait(...)` and `await call.sleep(...)` wait on purpose and do not count.
A plain `def` that blocks the event loop for a second is named in the log and counted in `hookline_loop_blocked_total`.
A failure is logged with plugin and hook (the 1st, 2nd, 4th, 8th, ... time) and counted in `hookline_hook_errors_total`; the time of each hook is in `hookline_hook_seconds`.

Order is that of `[chain] plugins`; `order = { call_ended = ["logging"] }` puts some first in one hook.
Edits are an onion in list order: a plugin listed earlier is further outside, so `edit_reply` and `edit_event` run last listed first and take no `order`.
""".replace("START_S", f"{START_S:g}")
    .replace("STOP_S", f"{STOP_S:g}")
    .replace("DECIDING", ", ".join(f"`{name}`" for name in PHASES if name in DECIDING_HOOKS))
)
PLUGIN_COMMANDS = ("keys", "spend", "ledger", "cache", "explain")
ADMIN_MANNERS = """\
# Admin API

For whoever has the key of `[admin] key`, sent as `authorization: Bearer ...`; without that line in `proxy.toml` there is no such path.
Each route belongs to a plugin of `[chain]`: keys to `auth`, the cache to `cache`, explanations to `explain`, breakers to `circuit_breaker`, probes to `health_probes`, the rest to `budget`.

All of them read what they are sent in one way, and so can [routes of your own plugins](../howto/plugin-routes.md):

- An unknown parameter, a wrong type or value, one that is missing or given twice is a 400 `invalid_parameter`.
  The message names every one of them, with the nearest right name; `param` is the first.
- A body is a JSON object; one that can't be read is a 400 `invalid_json`. A `content-type` that says something else than JSON is a 415, another method a 405 with `allow`.
- A list is OpenAI's list object: `data`, `first_id`, `last_id`, `has_more`. Send `last_id` as `after` for the next page; what it looks like is nobody's business.
- Moments are Unix seconds or ISO 8601, in UTC where no zone is given (but an expiry must give one).
"""
ADMIN_ROUTES: dict[str, tuple[type[BaseModel] | None, str]] = {
    "GET /admin/keys": (KeyFilters, "Virtual keys, oldest first."),
    "POST /admin/keys": (
        NewKey,
        "Makes a key. The answer is the only one that holds `key`, its secret; `warnings` say so where others have its name.",
    ),
    "GET /admin/keys/ID": (None, "One key."),
    "PATCH /admin/keys/ID": (
        None,
        "Changes the members that are sent, of those of `POST /admin/keys`, and no other. Lists and objects are replaced whole; `null` takes a limit, a budget, a user or an expiry away.",
    ),
    "DELETE /admin/keys/ID": (None, "Revokes a key, for ever. The answer is the key."),
    "POST /admin/keys/ID/rotate": (Rotation, "Gives a key a new secret, and answers with it."),
    "GET /admin/budgets": (
        WindowFilters,
        "Where each budget window stands: of tenants, everyone, and of the keys and users that have called.",
    ),
    "POST /admin/budgets/check": (
        AskedCall,
        "Whether a call could proceed now; takes nothing and sends nothing. See [money](money.md#asking).",
    ),
    "POST /admin/explain": (
        AskedCall,
        "What would become of a call, and why; takes nothing and sends nothing. See [explain](../howto/explain.md).",
    ),
    "GET /admin/spend": (SpendParameters, "Sums of the ledger. See [what was spent](../howto/ledger.md)."),
    "GET /admin/ledger": (LedgerParameters, "The ledger's rows, the newest first."),
    "GET /admin/breakers": (
        CircuitFilters,
        "Where each deployment's [circuit](../howto/circuit-breaker.md#by-hand) stands, and why; by name.",
    ),
    "GET /admin/health_probes": (
        ProbeFilters,
        "What [probes](../howto/canary.md#probes) have found of each deployment they ask, by name.",
    ),
    "POST /admin/breakers": (
        Decision,
        "Holds a circuit open or closed in every process, or (`auto`) lets votes decide again.",
    ),
    "DELETE /admin/cache": (
        PurgeParameters,
        "Removes answers from the [cache](../howto/cache.md#purging): exactly one of these.",
    ),
}
SECTIONS = ("When", "May change", "Ends the call by", "If it raises", "Example plugin")


def main() -> int:
    """Write the pages, or compare them. The exit status is 1 if --check found a difference."""
    pages = {
        "hooks": hooks(),
        "configuration": configuration(),
        "errors": error_table(),
        "failures": failures(),
        "metrics": metrics(),
        "admin-api": admin_api(),
        "cli": command_line(),
    }
    stale = []
    for name, text in pages.items():
        path = REFERENCE / f"{name}.md"
        made = MADE + text.rstrip() + "\n"
        if "--check" in sys.argv:
            if not path.is_file() or path.read_text() != made:
                stale.append(str(path.relative_to(ROOT)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made)
    if stale:
        print(f"out of date: {', '.join(stale)}; run scripts/make_reference.py")
    return 1 if stale else 0


def hooks() -> str:
    """hooks.md: the table, then each hook's docstring."""
    rows = [
        f"| {rules.order} | [`{name}`](#{name}) | {COMBINE[rules.combine]}{', last listed first' if rules.is_reversed else ''} | {rules.on_error} |"
        for name, rules in PHASES.items()
    ]
    parts = [
        "# Hooks\n\nA plugin implements any of these as methods marked with `@hookimpl`, `def` or `async def`, with exactly these arguments.\n",
        "| # | per-call hook | answers combine | if it raises |\n|---|---|---|---|\n" + "\n".join(rows) + "\n",
        "closed: the call fails. open: the call goes on as if the hook had answered None.\n",
        PLUGIN,
    ]
    for name in PHASES:
        parts.append(_hook(name))
    parts.append("## Registration\n\nCalled once, when the chain is compiled. Plain `def` only.\n")
    for name in [n for n in vars(hookspecs) if n.startswith("register_")]:
        parts.append(f"### {name}\n\n```text\n{_signature(name)}\n```\n\n{inspect.getdoc(getattr(hookspecs, name))}\n")
    return "\n".join(parts)


def _hook(name: str) -> str:
    doc = inspect.getdoc(getattr(hookspecs, name)) or ""
    first, *lines = [line for line in doc.splitlines() if line.strip()]
    points = []
    for section in SECTIONS:
        told = next((line for line in lines if line.startswith(f"{section}:")), None)
        if told is None:
            raise SystemExit(f"hookspecs.{name}: its docstring has no line `{section}:`")
        points.append(f"- *{section}*:{told.removeprefix(f'{section}:')}")
    return f"## {name}\n\n```text\n{_signature(name)}\n```\n\n{first}\n\n" + "\n".join(points) + "\n"


def _signature(name: str) -> str:
    return f"{name}{inspect.signature(getattr(hookspecs, name))}".replace("'", "")


def configuration() -> str:
    """configuration.md: every table of proxy.toml, then every built-in plugin's and provider's options."""
    parts = [
        "# proxy.toml\n\nStrict: an unknown key or a wrong type is refused at start, with file, line and the nearest right name.",
        "`${NAME}` in a string reads the environment. `hookline check` says all that is wrong at once; `hookline schema` prints a JSON Schema for editors.\n",
    ]
    for path, model in _tables(Settings, ()):
        parts.append(_table(path, model))
    parts.append("# Options of plugins\n")
    for name in entry_points():
        options = getattr(load_class(PluginEntry(name)), "Options", None)
        if options is None:
            parts.append(f"## `[plugins.{name}]`\n\nNo options.\n")
            continue
        for path, model in _tables(options, ("plugins", name), is_root=True):
            parts.append(_table(path, model))
    parts.append("# Options of providers\n\nThe page [providers](../howto/providers.md) has the lines to paste.\n")
    for kind, options in provider_kinds().items():
        for path, model in _tables(options, ("providers", "NAME"), is_root=True):
            parts.append(_table(path, model, suffix=f', `kind = "{kind}"`'))
    return "\n".join(parts)


def _tables(
    model: type[BaseModel], path: tuple[str, ...], *, is_root: bool = False
) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    if path or is_root:
        yield path, model
    for name, field in model.model_fields.items():
        for inner, step in _models_in(field.annotation):
            yield from _tables(inner, (*path, (field.alias or name), *step))


def _models_in(annotation: Any) -> Iterator[tuple[type[BaseModel], tuple[str, ...]]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation, ()
        return
    origin, arguments = getattr(annotation, "__origin__", None), getattr(annotation, "__args__", ())
    step = ("NAME",) if origin in (dict, Mapping) else ()
    for argument in arguments:
        for model, deeper in _models_in(argument):
            yield model, (*step, *deeper)


def _table(path: tuple[str, ...], model: type[BaseModel], suffix: str = "") -> str:
    doc = inspect.cleandoc(model.__doc__ or "")
    title = f"## `[{'.'.join(path)}]`{suffix}\n\n"
    rows = [_row(field.alias or name, field) for name, field in model.model_fields.items()]
    return title + doc + "\n\n| key | type | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _row(name: str, field: Any) -> str:
    default = "required" if field.is_required() else f"`{_shown(field.get_default(call_default_factory=True))}`"
    return f"| `{name}` | {_type(field.annotation)} | {default} | {field.description or ''} |"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = [item.name if isinstance(item, ChainEntry) else item for item in value]
    if isinstance(value, BaseModel):
        return "{}"
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    text = re.sub(r"<[^>]*>", "...", repr(value))
    return {"None": "none", "True": "true", "False": "false"}.get(text, text.replace("'", '"')).replace("|", "\\|")


def _type(annotation: Any) -> str:
    return f"`{_named(annotation)}`"


def _named(annotation: Any) -> str:
    """A type in the words of someone who writes TOML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _named(arguments[0])
    if origin is Literal:
        return " or ".join(f'"{choice}"' for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_named(argument) for argument in arguments))
    if origin is not None:
        inner = ", ".join(_named(argument) for argument in arguments if argument is not ...)
        return f"{_TOML_TYPES.get(origin, origin.__name__)}[{inner}]"
    return _TOML_TYPES.get(annotation, getattr(annotation, "__name__", str(annotation)))


def error_table() -> str:
    """errors.md: classes with status, type and code; kinds of upstream failure."""
    classes = [
        c
        for c in vars(errors).values()
        if inspect.isclass(c) and issubclass(c, errors.ApiError) and c is not errors.ApiError
    ]
    rows = [
        f"| {c.status} | `{c.__name__}` | `{c.type}` | {f'`{c.code}`' if c.code else ''} | {'yes' if c.may_retry_by_default else 'no'} |"
        for c in sorted(classes, key=lambda c: (c.status, c.__name__))
    ]
    kinds = [
        f"| `{kind}` | {row.status} | `{row.code}` | {'yes' if row.may_fall_back else 'no'} |"
        for kind, row in errors.UPSTREAM_KINDS.items()
    ]
    codes = sorted(set(_codes_in_source()))
    return (
        '# Errors\n\nEvery failure is the OpenAI error object, `{"error": {"message", "type", "param", "code"}}`, with `x-request-id`.\n'
        "Where a retry can't help, the reply says `x-should-retry: false`, which OpenAI's SDKs obey; where waiting helps, `retry-after`.\n\n"
        "| status | class | type | code | may be retried |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "## Upstream failures\n\nAn upstream's own error status is passed on with its body. Where there is none:\n\n"
        "| kind | status | code | another target is tried |\n|---|---|---|---|\n" + "\n".join(kinds) + "\n\n"
        "Statuses that another target would not answer better: "
        + ", ".join(map(str, sorted(errors.STATUSES_THAT_STAY)))
        + ".\n\n"
        "## Codes\n\nMore exact codes, given where the case is known:\n\n"
        + "\n".join(f"- `{code}`" for code in codes)
        + "\n"
    )


def failures() -> str:
    """failures.md: what kind of failure an answer is, what is retried, what is a vote, states by events."""
    from hookline import failures as known
    from hookline.builtins.circuit_breaker.circuit import TRANSITIONS, Event, State
    from hookline.builtins.circuit_breaker.votes import VOTE_OF_FAILURE
    from hookline.builtins.fallback.retry_table import table_as_markdown

    by_status = ", ".join(f"{status} `{failure}`" for status, failure in known.FAILURE_OF_STATUS.items())
    by_kind = [f"| `{kind}` | `{failure}` |" for kind, failure in known.FAILURE_OF_KIND.items()]
    by_code = [f"| `{code}` | `{failure}` |" for code, failure in known.FAILURE_OF_CODE.items()]
    votes = [f"| `{failure}` | {f'`{vote}`' if vote else 'none'} |" for failure, vote in VOTE_OF_FAILURE.items()]
    states = get_args(State)
    moves = [
        f"| `{event}` | "
        + " | ".join(f"`{after}`" if (after := TRANSITIONS.get((state, event))) else "" for state in states)
        + " |"
        for event in get_args(Event)
    ]
    return (
        "# Failures\n\nWhat kind of failure an attempt ended in decides what is tried next, and what the breaker is told.\n"
        "A code in the error body says more than its status, and a message about length or content more than a code like `invalid_request_error`; a 403 that says the input was flagged (OpenRouter) is about content, a 400 that says the credit balance is too low (Anthropic) is `quota`.\n\n"
        f"By status: {by_status}; every other 4xx `bad_request`, every other 5xx `server_error`.\n\n"
        "| without an answer | |\n|---|---|\n" + "\n".join(by_kind) + "\n\n"
        "| `code`, then `type` | |\n|---|---|\n" + "\n".join(by_code) + "\n\n"
        "## What is retried\n\nWhether the same deployment may be asked again, where [`max_retries`](configuration.md) allows it.\n"
        "Repeatable: GET, HEAD, OPTIONS, PUT, DELETE. A model call: a POST that stores nothing. Other: every other POST, and model calls with `store` or `background`.\n"
        "Once bytes of the reply have left, nothing is retried: a stream can only be continued.\n\n"
        + table_as_markdown()
        + "\n"
        "## Votes\n\nWhat a failure tells the circuit breaker of the deployment. A complete answer is `ok`, or `slow`; a client that left, a hedge that lost and the call's own deadline say nothing, unless it had waited longer than `slow_call_s`: then it is `slow`, too.\n\n"
        "| failure | vote |\n|---|---|\n" + "\n".join(votes) + "\n\n"
        "`missing` and a 403 on routes that name objects are no votes: it is the object that is not there, or not ours.\n\n"
        "## Circuits\n\nWhat an event makes of each state; nothing where the cell is empty.\n\n"
        "| event | "
        + " | ".join(f"`{state}`" for state in states)
        + " |\n|"
        + "---|" * (len(states) + 1)
        + "\n"
        + "\n".join(moves)
        + "\n"
    )


def _codes_in_source() -> Iterator[str]:
    for path in sorted((ROOT / "src" / "hookline").rglob("*.py")):
        if "demo" in path.name or "anthropic" in path.name or "testing" in path.parts:
            continue
        yield from re.findall(r'\bcode="([a-z_]+)"', path.read_text())


def metrics() -> str:
    """metrics.md: every family that the built-in plugins, the pipeline and the watchdog make."""
    registry = MetricsRegistry()
    chain = _chain(registry)
    Pipeline(chain=chain, catalog=None, providers={}, clock=FakeClock(), metrics=registry)  # type: ignore[arg-type]
    watch(RedisClient("redis://127.0.0.1"), registry, "limits")
    Watchdog(registry, dict)
    families = sorted(_families(registry))
    rows = [f"| `{name}` | {kind} | {labels} | {doc} |" for name, kind, labels, doc in families]
    return (
        "# Metrics\n\n`GET /metrics` of the plugin `metrics`: for loopback clients, with the admin key, or for everyone with `[plugins.metrics] open = true`.\n\n"
        "| family | kind | labels | |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nBeside these, `process_*` of prometheus-client.\n"
    )


def _families(registry: MetricsRegistry) -> Iterator[tuple[str, str, str, str]]:
    for kind, families in (
        ("counter", registry._counters),
        ("gauge", registry._gauges),
        ("histogram", registry._histograms),
    ):
        for name, family in families.items():  # type: ignore[attr-defined]
            yield name, kind, ", ".join(f"`{label}`" for label in family.labels), family.doc


def _chain(registry: MetricsRegistry) -> Chain:
    """All built-in plugins."""
    workshop = Workshop(
        clock=FakeClock(),
        metrics=registry,
        stores=Stores(None, None, None),  # type: ignore[arg-type]
        settings={"tenants": {}, "users": {}, "global": {}, "server": {}, "models": []},
        find_http=lambda: None,
    )
    entries = [PluginEntry(name) for name in entry_points()]
    return compile_chain(entries, make_host=workshop.make_host, metrics=registry)


def admin_api() -> str:
    """admin-api.md: what every route under /admin takes."""
    found: set[str] = set()

    def add(method: str, path: str, handler: Any, *, access: str = "admin") -> None:
        found.add(f"{method} {path}")

    _chain(MetricsRegistry()).register("register_routes", add)
    listed = {re.sub(r"ID.*", "*", route) for route in ADMIN_ROUTES}
    if missing := {route for route in found if "/admin/" in route} ^ listed:
        raise SystemExit(f"ADMIN_ROUTES and the plugins' routes differ: {', '.join(sorted(missing))}")
    parts = [ADMIN_MANNERS]
    for route, (model, text) in ADMIN_ROUTES.items():
        parts.append(f"## {route}\n\n{text}\n")
        if model is not None:
            what = "member" if route.startswith("POST") else "parameter"
            rows = [_row(field.alias or name, field) for name, field in model.model_fields.items()]
            parts.append(f"| {what} | type | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def command_line() -> str:
    """cli.md: `--help` of the command and of each sub-command."""
    parts = ["# Command line\n"]
    top = _help()
    parts.append(f"```text\n{top}\n```\n")
    for name in re.findall(r"^  ([a-z]+)  +\S", top.split("Commands:")[1], re.MULTILINE):
        parts.append(f"## hookline {name}\n\n```text\n{_help(name)}\n```\n")
    for group in PLUGIN_COMMANDS:  # of built-in plugins
        shown = _help(group)
        parts.append(f"## hookline {group}\n\n```text\n{shown}\n```\n")
        for name in re.findall(r"^  ([a-z]+)  +\S", shown.partition("Commands:")[2], re.MULTILINE):
            parts.append(f"### hookline {group} {name}\n\n```text\n{_help(group, name)}\n```\n")
    return "\n".join(parts)


def _help(*command: str) -> str:
    shown = subprocess.run(
        [sys.executable, "-m", "hookline", *command, "--help"],
        capture_output=True, text=True, check=True, cwd="/", env={"COLUMNS": "100", "TERM": "dumb", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines()).replace(
        "python -m hookline", "hookline"
    )


def entry_points() -> list[str]:
    manifest = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return sorted(manifest["project"]["entry-points"]["hookline"])


def provider_kinds() -> dict[str, type[BaseModel]]:
    from hookline import providers

    kinds: dict[str, type[BaseModel]] = {}

    def add(kind: str, factory: Callable[..., Any], *, options: type[BaseModel] | None = None) -> None:
        if options is not None:
            kinds[kind] = options

    providers.register_providers(add)
    return kinds


if __name__ == "__main__":
    sys.exit(main())
