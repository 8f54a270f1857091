"""Hookline's public plugin API: everything a plugin may import.

Lives here: the objects that flow, the hooks and their answers, the errors, the store protocols. Elsewhere: everything else, which no plugin reaches.
Idea: built-in plugins import this module and nothing below it; a test freezes its names and signatures."""

from typing import TYPE_CHECKING, Any

from hookline.attempt import Attempt, Outcome, Provider, Result, Ticket
from hookline.bounds import InputBound, bound_input, bound_output
from hookline.call import ENDPOINTS, Call, Endpoint, Note
from hookline.chat_view import ChatView
from hookline.choice import BUDGET_LEFT, CACHE_VARY, COMPLEXITY
from hookline.deployment import MADE_AT, Deployment, Target
from hookline.errors import (
    STATUSES_THAT_STAY,
    UPSTREAM_KINDS,
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    InsufficientQuota,
    InternalError,
    NotFound,
    RateLimited,
    Rejected,
    Skip,
    StartupError,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unprocessable,
    UnsupportedMedia,
    UpstreamError,
)
from hookline.explaining import FINDINGS, explain
from hookline.failures import Failure, failure_of
from hookline.flight import RESERVE_FOR_FOLLOWER, FlightRules
from hookline.flights import FlightMismatch, Flights, Lead
from hookline.free_routes import is_free
from hookline.hookspecs import hookimpl
from hookline.host import (
    Access,
    AddCommand,
    AddProvider,
    AddRoute,
    AddStore,
    AddWorker,
    Clock,
    Host,
    Metrics,
    RouteRequest,
)
from hookline.money import NANO_PER_USD, Price, Usage, format_usd, to_nanousd
from hookline.offers import KEY_REFUSAL, LACKS, LONGER_MODELS
from hookline.openai_wire import usage_in
from hookline.own_calls import IN_BACKGROUND, IS_EVIDENCE, OBJECTS_OF, OWN_CALL, REPEATS, derive_call
from hookline.paths import endpoint_of, resolve_target
from hookline.plain_as_stream import Inexact, disassemble
from hookline.principal import ANONYMOUS, Budget, Limits, Principal
from hookline.reply import Event, Reply, Source, Tap
from hookline.results import SKIPPED
from hookline.slots import CACHE_STATUS, END_USER, EXPOSED_HEADERS, Slot
from hookline.steps import TARGETS_LEFT, Continue, Fallback, GiveUp, Retry, Step
from hookline.stores.keys import KeyChanges, KeyStore, StoredKey
from hookline.stores.owners import Owner, OwnerStore
from hookline.stores.plugin_tables import Page, Row, Table, TableStore
from hookline.stores.protocols import (
    FlightStore,
    LedgerEntry,
    Level,
    LimitStore,
    Notice,
    RecordStore,
    Refusal,
    ReplyStore,
    Spend,
    SpendAlert,
    SpendRefusal,
    Take,
)
from hookline.stores.reports import REPORT_BUCKETS, REPORT_MEMBERS, LedgerPage, LedgerQuery, SpendQuery, SpendSum
from hookline.told_limits import LimitKind, Told, read_told
from hookline.upload import FormField, Upload

if TYPE_CHECKING:
    from hookline.limit_tables import BudgetTable, LimitTable, ScopedLimitTable
    from hookline.parameters import ListParameters, Parameters, list_object, parse_members

__all__ = [
    "ANONYMOUS",
    "BUDGET_LEFT",
    "CACHE_STATUS",
    "CACHE_VARY",
    "COMPLEXITY",
    "ENDPOINTS",
    "END_USER",
    "EXPOSED_HEADERS",
    "FINDINGS",
    "IN_BACKGROUND",
    "IS_EVIDENCE",
    "KEY_REFUSAL",
    "LACKS",
    "LONGER_MODELS",
    "MADE_AT",
    "NANO_PER_USD",
    "OBJECTS_OF",
    "OWN_CALL",
    "REPEATS",
    "REPORT_BUCKETS",
    "REPORT_MEMBERS",
    "RESERVE_FOR_FOLLOWER",
    "SKIPPED",
    "STATUSES_THAT_STAY",
    "TARGETS_LEFT",
    "UPSTREAM_KINDS",
    "Access",
    "AddCommand",
    "AddProvider",
    "AddRoute",
    "AddStore",
    "AddWorker",
    "ApiError",
    "Attempt",
    "BadRequest",
    "Budget",
    "BudgetTable",
    "Call",
    "ChatView",
    "Clock",
    "Conflict",
    "Continue",
    "Deployment",
    "Endpoint",
    "Event",
    "Failure",
    "Fallback",
    "FlightMismatch",
    "FlightRules",
    "FlightStore",
    "Flights",
    "Forbidden",
    "FormField",
    "GiveUp",
    "Host",
    "Inexact",
    "InputBound",
    "InsufficientQuota",
    "InternalError",
    "KeyChanges",
    "KeyStore",
    "Lead",
    "LedgerEntry",
    "LedgerPage",
    "LedgerQuery",
    "Level",
    "LimitKind",
    "LimitStore",
    "LimitTable",
    "Limits",
    "ListParameters",
    "Metrics",
    "NotFound",
    "Note",
    "Notice",
    "Outcome",
    "Owner",
    "OwnerStore",
    "Page",
    "Parameters",
    "Price",
    "Principal",
    "Provider",
    "RateLimited",
    "RecordStore",
    "Refusal",
    "Rejected",
    "Reply",
    "ReplyStore",
    "Result",
    "Retry",
    "RouteRequest",
    "Row",
    "ScopedLimitTable",
    "Skip",
    "Slot",
    "Source",
    "Spend",
    "SpendAlert",
    "SpendQuery",
    "SpendRefusal",
    "SpendSum",
    "StartupError",
    "Step",
    "StoredKey",
    "Table",
    "TableStore",
    "Take",
    "Tap",
    "Target",
    "Ticket",
    "Told",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Unprocessable",
    "UnsupportedMedia",
    "Upload",
    "UpstreamError",
    "Usage",
    "bound_input",
    "bound_output",
    "derive_call",
    "disassemble",
    "endpoint_of",
    "explain",
    "failure_of",
    "format_usd",
    "hookimpl",
    "is_free",
    "list_object",
    "parse_members",
    "read_told",
    "resolve_target",
    "to_nanousd",
    "usage_in",
]

_MODELS = {
    **dict.fromkeys(("BudgetTable", "LimitTable", "ScopedLimitTable"), "hookline.limit_tables"),
    **dict.fromkeys(("ListParameters", "Parameters", "list_object", "parse_members"), "hookline.parameters"),
}


def __getattr__(name: str) -> Any:
    """What needs pydantic comes when it is asked for: 70 ms that `hookline --help` need not wait."""
    if name not in _MODELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODELS[name]), name)
