"""Hookline's public plugin API: everything a plugin may import.

Lives here: the objects that flow, the hooks and their answers, the errors, the store protocols. Elsewhere: everything else, which no plugin reaches.
Idea: built-in plugins import this module and nothing below it; a test freezes its names and signatures."""

from hookline.attempt import Attempt, Outcome, Provider, Result, Ticket
from hookline.bounds import InputBound, bound_input, bound_output
from hookline.call import ENDPOINTS, Call, Endpoint, Note
from hookline.chat_view import ChatView
from hookline.deployment import Deployment, Target
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
from hookline.openai_wire import usage_in
from hookline.principal import ANONYMOUS, Budget, Limits, Principal
from hookline.reply import Event, Reply, Source, Tap
from hookline.slots import CACHE_STATUS, END_USER, EXPOSED_HEADERS, Slot
from hookline.steps import Continue, Fallback, GiveUp, Retry, Step
from hookline.stores.keys import KeyChanges, KeyStore, StoredKey
from hookline.stores.owners import Owner, OwnerStore
from hookline.stores.protocols import (
    LedgerEntry,
    Level,
    LimitStore,
    RecordStore,
    Refusal,
    ReplyStore,
    Spend,
    SpendAlert,
    SpendRefusal,
    Take,
)
from hookline.upload import Upload

__all__ = [
    "ANONYMOUS",
    "CACHE_STATUS",
    "ENDPOINTS",
    "END_USER",
    "EXPOSED_HEADERS",
    "NANO_PER_USD",
    "STATUSES_THAT_STAY",
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
    "Call",
    "ChatView",
    "Clock",
    "Conflict",
    "Continue",
    "Deployment",
    "Endpoint",
    "Event",
    "Fallback",
    "Forbidden",
    "GiveUp",
    "Host",
    "InputBound",
    "InsufficientQuota",
    "InternalError",
    "KeyChanges",
    "KeyStore",
    "LedgerEntry",
    "Level",
    "LimitStore",
    "Limits",
    "Metrics",
    "NotFound",
    "Note",
    "Outcome",
    "Owner",
    "OwnerStore",
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
    "Skip",
    "Slot",
    "Source",
    "Spend",
    "SpendAlert",
    "SpendRefusal",
    "StartupError",
    "Step",
    "StoredKey",
    "Take",
    "Tap",
    "Target",
    "Ticket",
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
    "format_usd",
    "hookimpl",
    "is_free",
    "to_nanousd",
    "usage_in",
]
