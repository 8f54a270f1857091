"""Owners: with several tenants behind one provider key, an object belongs to the tenant that made it.

Lives here: what becomes of a call that names or makes stored objects. Elsewhere: paths (routes.py), ids in requests (references.py) and replies (claims.py),
lists (pages.py), whether there are several tenants (tenancy.py), the records (`host.records.owners`).
Idea: an id that is not recorded as the caller's own is a 404 before any upstream is asked, whether it is another's or nobody's; an id is recorded before the
reply that shows it leaves. With one tenant a call costs one look into a set.

The rules
- Closed where in doubt: a route whose objects can't be told apart is 403; while records are down, calls that need them are 503.
- Only what must not be upstream is refused here: what an id means there, and whether it still exists, its provider says.
- A follow-up goes to the provider, and the account, that made the id."""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote

import orjson
from pydantic import BaseModel, ConfigDict, Field

from hookline import (
    MADE_AT,
    OBJECTS_OF,
    BadRequest,
    Call,
    Deployment,
    Forbidden,
    FormField,
    Host,
    NotFound,
    Owner,
    Rejected,
    Reply,
    Slot,
    Target,
    Unavailable,
    UnsupportedMedia,
    Upload,
    UpstreamError,
    hookimpl,
)
from hookline.builtins.owners.claims import ClaimedStream, ids_in, ids_of_chat, unavailable
from hookline.builtins.owners.pages import INNER, cut_models, cut_to_own
from hookline.builtins.owners.references import (
    MADE_MODEL,
    References,
    may_name_any,
    read_fields,
    read_json,
    read_lines,
    read_query,
)
from hookline.builtins.owners.routes import Route, Withheld, is_plain, read_route
from hookline.builtins.owners.tenancy import Tenancy

QUICK: Final[dict[str, Route | None]] = {
    "chat": Route("chat/completions"), "responses": Route("responses"), "completions": None, "embeddings": None, "moderations": None,
}  # fmt: skip
"""Endpoints whose bodies are looked at before they are read pair by pair; their paths need no reading."""
BATCH_INPUT: Final = "files:batch"
"""The kind of a file whose lines were read."""
UNRECORDED_WORDS: Final = frozenset({"content", "results", "search"})
"""Below these lie the words of clients and models."""
CACHED_MAX: Final = 10_000
LINE_BYTES_MAX: Final = 32 << 20
SEEN_WAIT_S: Final = 0.5
"""So long records are waited for where memory can answer in their place."""


class OwnersOptions(BaseModel):
    """`[plugins.owners]`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    when: Literal["auto", "always"] = Field(
        "auto",
        description='"auto": from the second tenant on; "always": owners are recorded for a single tenant too, so that what it made stays its own when a second one comes.',
    )
    shared: list[str] = Field(
        [],
        description="Ids (globs) that every tenant may use and read, and none may change or delete: vector stores, prompts and fine-tuned models of the operator.",
    )
    list_pages_max: int = Field(
        20,
        ge=0,
        le=1000,
        description="How many further pages of 100 are asked for, at most, to fill one page of a list.",
    )


@dataclass(slots=True)
class Plan:
    """What is left to do for a call: who asks, what its reply may show for the first time."""

    tenant: str
    route: Route | None
    claims: bool = False
    kind: str = ""
    mentioned: frozenset[str] = frozenset()
    sent: frozenset[str] = frozenset()
    made_at: tuple[str, str] | None = None
    named: Sequence[str] = field(default_factory=list)


PLAN: Slot[Plan] = Slot("owners_plan")


class Plugin:
    """Checks what a call names, sends it where that lives, records what its reply shows."""

    Options = OwnersOptions
    has_model_options = False
    supports_dry_run = True

    def __init__(self, options: OwnersOptions, host: Host) -> None:
        self._options = options
        self._host = host
        self._records = host.records
        self._shared = re.compile("|".join(map(fnmatch.translate, options.shared)) or r"(?!)")
        self._configured = frozenset(host.settings.get("models", ()))
        self._providers = frozenset(host.settings.get("providers", ()))
        self._tenancy = Tenancy(host, host.settings.get("key_tenants", ()), is_always_shared=options.when == "always")
        self._own: dict[tuple[str, str], Owner] = {}
        """Found or recorded before, by tenant and id: for the time that records are down. What is deleted by one process is gone for all of them at once."""
        self.refused = host.metrics.counter(
            "hookline_owners_refused_total", "Calls that named an object which is not their tenant's."
        )()

    async def start(self) -> None:
        """Begin to look for other tenants."""
        self._host.spawn("tenants", self._tenancy.watch())

    @hookimpl
    async def prepare(self, call: Call) -> None:
        tenant = call.slots.get(OBJECTS_OF, call.principal.tenant)  # who pays for a mirror is no second tenant
        if tenant is None or self._tenancy.is_alone(tenant) or INNER in call.slots:
            return
        if not self._tenancy.is_shared and await call.wait(self._tenancy.meet(tenant)):
            return
        try:
            plan = await self._check(call, tenant)
        except BadRequest as error:
            raise Rejected(error) from error
        except Unavailable as error:
            raise unavailable(error) from error
        if plan is not None:
            call[PLAN] = plan
            if plan.made_at is not None:
                call[MADE_AT] = plan.made_at

    @hookimpl
    def select(self, call: Call, targets: list[Target]) -> list[Target]:
        plan = call.slots.get(PLAN)
        if plan is None or plan.made_at is None:
            return targets
        kept = [target for target in targets if place_of(target.deployment) == plan.made_at]
        if not kept and targets:
            raise Rejected(
                BadRequest(
                    f'"{plan.named[0]}" lives at provider "{plan.made_at[0]}", where {call.model or "this call"} does not go; '
                    "ask for a model there",
                    code="object_at_other_provider",
                )
            )
        return kept

    @hookimpl
    async def edit_reply(self, call: Call, reply: Reply) -> Reply:
        plan = call.slots.get(PLAN)
        if plan is None or reply.status >= 400 or call.is_dry_run or INNER in call.slots:
            return reply
        try:
            await self._edit(call, reply, plan)
        except Unavailable as error:
            raise unavailable(error) from error
        return reply

    async def _check(self, call: Call, tenant: str) -> Plan | None:
        """Read what the call names; see that it is its tenant's. Raises Rejected, BadRequest, Unavailable."""
        try:
            route = QUICK[call.endpoint] if call.endpoint in QUICK else read_route(call.method, call.path)
        except Withheld:
            raise Rejected(_withheld(call)) from None
        found = References()
        if route is not None:
            for id in route.ids:
                found.add(id)
        if call.query:
            read_query(call.query, found)
        kind = route.collection if route is not None else ""
        if call.payload is not None:
            body = call.body or orjson.dumps(call.payload)
            if call.endpoint not in QUICK or may_name_any(call.payload, body, call.endpoint):
                read_json(body, found)
        elif call.upload is not None:
            kind = await self._read_upload(call, call.upload, route, found) or kind
        if call.model is not None and MADE_MODEL.fullmatch(call.model):
            found.models.add(call.model)
        if route is None and call.endpoint not in QUICK:
            found.models.update(filter(MADE_MODEL.fullmatch, unquote(call.path).split("/")))
        for name in found.models - self._configured:
            found.add(self._made_name(name))
        claims = makes_objects(call, route)
        if not found.named and not found.mentioned:
            if not claims and (call.endpoint in QUICK or (route is None and call.endpoint != "models")):
                return None
            if claims:
                await self._records.owners.find(())  # what can't be recorded must not be made
        plan = Plan(
            tenant,
            route,
            claims,
            kind,
            frozenset(found.mentioned),
            frozenset(found.sent),
            named=list(found.named),
        )
        plan.made_at = await self._find_place(call, plan)
        return plan

    async def _find_place(self, call: Call, plan: Plan) -> tuple[str, str] | None:
        """Where everything lives that the call names. Raises Rejected for what is not its tenant's."""
        named, tenant = plan.named, plan.tenant
        owners = await self._find(call, tenant, {*named, *plan.mentioned})
        place: tuple[str, str] | None = None
        for id in named:
            owner = owners.get(id)
            if owner is None or owner.tenant != tenant:
                if self._may_use_shared(call, plan, id):
                    continue
                self._refuse(call, id)
            elif place is None or place == (owner.provider, owner.deployment):
                place = (owner.provider, owner.deployment)
            else:
                raise Rejected(
                    BadRequest(
                        f'"{named[0]}" and "{id}" live at different providers and can\'t be used in one call',
                        code="object_at_other_provider",
                    )
                )
        for id in plan.mentioned:
            if id in owners and owners[id].tenant != tenant:
                self._refuse(call, id)
        if plan.route is not None and plan.route.collection == "batches" and not plan.route.ids:
            self._check_batch_input(call, owners)
        return place

    async def _find(self, call: Call, tenant: str, ids: Collection[str]) -> dict[str, Owner]:
        """Owners by id. While records are down, those that were found or made here before; raises Unavailable for any other."""
        plain = [id for id in ids if is_plain(id)]
        if not plain:
            return {}
        is_seen = all((tenant, id) in self._own for id in plain)
        try:
            async with asyncio.timeout(SEEN_WAIT_S if is_seen else None):
                found = await call.wait(self._records.owners.find(plain))
        except (Unavailable, TimeoutError):
            if not is_seen:
                raise
            return {id: self._own[tenant, id] for id in plain if (tenant, id) in self._own}
        for id in plain:
            owner = found.get(id)
            if owner is not None and owner.tenant == tenant:
                self._remember(owner)
            else:
                self._own.pop((tenant, id), None)
        return {id: owner for id, owner in found.items() if owner.provider}

    def _remember(self, owner: Owner) -> None:
        if len(self._own) >= CACHED_MAX:
            del self._own[next(iter(self._own))]
        self._own[owner.tenant, owner.object_id] = owner

    def _may_use_shared(self, call: Call, plan: Plan, id: str) -> bool:
        """Whether the operator lets everyone use this id, and the call changes nothing of it."""
        if self._shared.fullmatch(id) is None:
            return False
        is_in_path = plan.route is not None and id in plan.route.ids
        return (
            not is_in_path or call.method in ("GET", "HEAD") or (plan.route is not None and plan.route.word == "search")
        )

    def _refuse(self, call: Call, id: str) -> None:
        self.refused.inc()
        call.note("owners", "refused", f'"{id[:100]}" is not an object of tenant "{call.principal.tenant}"')
        if call.model is not None and id == self._made_name(call.model):
            raise Rejected(NotFound(f'model "{id[:100]}" does not exist', code="model_not_found", param="model"))
        raise Rejected(NotFound(f'no such object: "{id[:100]}"'))

    def _check_batch_input(self, call: Call, owners: dict[str, Owner]) -> None:
        """The lines of a batch's input are requests that the provider runs by itself: only a file whose lines were read will do."""
        input_id = (call.payload or {}).get("input_file_id")
        if isinstance(input_id, str) and input_id in owners and owners[input_id].kind != BATCH_INPUT:
            raise Rejected(
                BadRequest(
                    'the input of a batch must be uploaded by POST /v1/files with purpose "batch"',
                    param="input_file_id",
                    code="unread_batch_input",
                )
            )

    async def _read_upload(self, call: Call, upload: Upload, route: Route | None, found: References) -> str:
        """What a body that is not JSON names. Answers the kind of what it makes, where that is not its collection."""
        media_type = upload.content_type.partition(";")[0].strip().lower()
        if media_type.startswith("multipart/form-data"):  # as the door has it
            await call.wait(upload.complete())
            read_fields(upload.fields, found)
            purposes = {field.start for field in upload.fields if field.name.lower() == "purpose"}
            if route is not None and route.collection == "files" and not route.ids and purposes <= {b"batch"}:
                await call.wait(_read_lines(upload, found))
                return BATCH_INPUT
            return ""
        if route is not None or media_type == "application/x-www-form-urlencoded":
            if media_type != "application/x-www-form-urlencoded" or (upload.content_length or 1 << 30) > 1 << 20:
                raise Rejected(UnsupportedMedia("send JSON or multipart/form-data here"))
            body = b"".join([piece async for piece in upload.chunks(None)])
            pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)
            read_fields([FormField(name, value.encode(), True) for name, value in pairs], found)
        return ""

    async def _edit(self, call: Call, reply: Reply, plan: Plan) -> None:
        route = plan.route
        if call.endpoint == "models":
            await cut_models(reply, partial(self._keep, call, plan), self._is_made_model)
            return
        if route is not None and route.is_own_list and call.method in ("GET", "HEAD"):
            if call.method == "GET":
                keep, pages_max = partial(self._keep, call, plan), self._options.list_pages_max
                shown = await cut_to_own(call, reply, host=self._host, keep=keep, pages_max=pages_max)
                await self._claim(call, plan, ids_in(shown))
            return
        if call.method == "DELETE" and route is not None:
            await self._forget(call, reply, plan, route)
            return
        if not plan.claims or reply.body == b"":
            return
        read = partial(ids_of_chat, is_stored=is_stored_chat(call)) if call.endpoint == "chat" else ids_in
        if not isinstance(reply.body, bytes):
            if reply.is_event_stream:
                stream = ClaimedStream(reply.body, partial(self._claim, call, plan), read)
                reply.body = stream
                await call.wait(stream.begin())
            return
        told = reply.json()
        if told is not None:
            # An answer that was written for this call may be read, whatever its id; an object may not.
            is_object = isinstance(told, dict) and call.method != "GET" and call.endpoint not in QUICK
            made = told.get("id") if is_object else None
            await self._claim(call, plan, read(told), made=made)
        elif call.method != "GET":
            raise Rejected(UpstreamError("the provider's reply can't be read, and so not recorded", kind="garbage"))

    async def _claim(self, call: Call, plan: Plan, ids: Iterable[str], made: str | None = None) -> None:
        """Record what is new among these ids. Raises Rejected where the one that was made belongs to another, or nothing can be recorded."""
        attempt = next((a for a in reversed(call.attempts) if not a.is_loser), None)
        # What is read again was recorded when it was made; what is made anew may have the id of what was deleted.
        known: Collection[tuple[str, str]] = self._own if call.method == "GET" else ()
        new = [id for id in dict.fromkeys(ids) if (plan.tenant, id) not in known and id not in plan.sent]
        new = [id for id in new if is_plain(id) and self._shared.fullmatch(id) is None]
        if attempt is None or not new:
            return
        provider, deployment = place_of(attempt.deployment)
        now = self._host.clock.time()
        claims = [Owner(id, plan.tenant, provider, now, plan.kind, deployment) for id in new]
        try:
            kept = await call.wait(self._records.owners.claim(claims))
        except Unavailable as error:
            raise unavailable(error) from error
        for id in new:
            owner = kept.get(id)
            if owner is not None and owner.tenant == plan.tenant:
                self._remember(owner)
            elif id == made:
                self._host.log.error("call %s: provider %s answered with an id of another tenant", call.id, provider)
                raise Rejected(UpstreamError("the provider answered with an object that is not yours", kind="garbage"))

    async def _forget(self, call: Call, reply: Reply, plan: Plan, route: Route) -> None:
        """What was deleted is nobody's. A file taken out of a vector store stays a file."""
        told = reply.json()
        if not route.ids or (len(route.ids) > 1 and route.collection == "vector_stores"):
            return
        if isinstance(told, dict) and told.get("deleted") is False:
            return
        id = route.ids[-1]
        self._own.pop((plan.tenant, id), None)
        try:
            await call.wait(self._records.owners.forget(plan.tenant, [id]))
        except Unavailable:
            # It is gone at its provider: a row too many names nothing.
            self._host.log.warning("call %s: a deleted object stays recorded, for records can't be written", call.id)

    async def _keep(self, call: Call, plan: Plan, ids: Sequence[str]) -> Collection[str]:
        owners = await self._find(call, plan.tenant, ids)
        return {id for id in ids if id in owners and owners[id].tenant == plan.tenant} | {
            id for id in ids if self._shared.fullmatch(id)
        }

    def _made_name(self, name: str) -> str:
        """A model's name as its provider says it."""
        first, _, rest = name.partition("/")
        return rest if first in self._providers and rest else name

    def _is_made_model(self, name: str) -> bool:
        return MADE_MODEL.fullmatch(name) is not None


def place_of(deployment: Deployment) -> tuple[str, str]:
    """The account in which a deployment's objects live: its provider's, or its own where it has a key of its own."""
    return deployment.provider, deployment.id if deployment.api_key is not None else ""


def makes_objects(call: Call, route: Route | None) -> bool:
    """Whether the reply may show ids that are new: everything that is stored but a response or chat completion that is not to be kept."""
    if call.endpoint == "chat":
        return is_stored_chat(call) or (call.payload or {}).get("audio") is not None
    if call.endpoint == "responses":
        payload = call.payload or {}
        return payload.get("store") is not False or payload.get("conversation") is not None
    if route is None or route.collection == "models" or route.word in UNRECORDED_WORDS:
        return False
    return call.method == "POST" or not route.is_own_list


def is_stored_chat(call: Call) -> bool:
    return (call.payload or {}).get("store") is True


async def _read_lines(upload: Upload, found: References) -> None:
    """Read the lines of a form as a batch's input. Raises BadRequest."""
    rest = b""
    async for piece in upload.chunks(None):
        lines = (rest + piece).splitlines(keepends=True)
        rest = b"" if lines and lines[-1].endswith((b"\n", b"\r")) else (lines.pop() if lines else b"")
        if len(rest) > LINE_BYTES_MAX:
            raise BadRequest(f"a line of the batch is longer than {LINE_BYTES_MAX >> 20} MiB", code="bad_batch_line")
        read_lines(lines, found)
    read_lines([rest], found)


def _withheld(call: Call) -> Forbidden:
    return Forbidden(
        f"{call.method} {call.path[:200]}: what lies there belongs to everyone with the provider's key, and this gateway serves several tenants with it",
        code="stored_objects_not_shared",
    )
