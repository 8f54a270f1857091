"""Explanations: what would become of a call, found out by a dry run of that very call.

Lives here: the chain that goes on after a refusal, and the answer made of what it found. Elsewhere: dry runs (pipeline.py, attempts.py), reasons (`call.note`), who may ask
(builtins/explain, surfaces/explained.py).
Idea: the hooks themselves are asked, so an explanation can't say anything else than the call would meet. Only, a refusal does not end it: it is written down and the next
hook is asked, because who is over a limit wants to know what else is in the way. Every plugin leaves its facts in `FINDINGS` and its reasons as notes.

A note about one deployment begins with its id and a colon: that is how a candidate gets its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hookline.call import Call, Note
from hookline.chain import Chain, Impl
from hookline.deployment import Target
from hookline.errors import ApiError, Rejected, Skip
from hookline.guards import Waiting
from hookline.reply import Reply
from hookline.slots import CACHE_STATUS, Slot

FINDINGS: Slot[dict[str, Any]] = Slot("findings")
"""What plugins found out on an explained dry run: members of the explanation, by name, as JSON values ("limits", "budgets", "worst_case_usd" by deployment)."""
ASKED = ("prepare", "admit", "lookup", "select", "admit_attempt")
"""Hooks that decide in a dry run."""


@dataclass(slots=True)
class Found:
    """What the chain decided, in order."""

    refusals: list[tuple[str, ApiError]] = field(default_factory=list)
    answer: tuple[str, Reply] | None = None
    ended_by: ApiError | None = None
    """The refusal that the call itself would meet: the first, unless an answer comes before it."""
    deployments: dict[str, None] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    """Deployments that `select` refused, all of them: they are asked on for what budgets and limits say, but none is a candidate."""


FOUND: Slot[Found] = Slot("found")


def explaining(chain: Chain) -> Chain:
    """The same chain, but no refusal and no cached answer ends a call."""
    return Chain(chain.plugins, {name: [_going_on(impl) for impl in chain.hook(name)] for name in _all_hooks(chain)})


def unasked(chain: Chain) -> tuple[str, ...]:
    """Plugins that would have a say and can't answer a dry run."""
    deciding = {impl.plugin for name in ASKED for impl in chain.hook(name)}
    return tuple(p.name for p in chain.plugins if not p.supports_dry_run and p.name in deciding)


def explain(call: Call, reply: Reply, *, is_own: bool) -> dict[str, Any]:
    """The explanation of a dry run that has ended with `reply`. `is_own`: it is for the caller itself, who is told nothing about all callers together."""
    found = call.find(FOUND) or Found()
    findings = dict(call.slots.get(FINDINGS, {}))
    refusals: list[dict[str, Any]] = [
        {"plugin": plugin, "status": e.reply_status, **_error_of(e)} for plugin, e in found.refusals
    ]
    error: dict[str, Any] | None = None
    status = reply.status
    if found.ended_by is not None:
        error, status = _error_of(found.ended_by), found.ended_by.reply_status
    elif found.answer is not None:
        status = found.answer[1].status
    elif status >= 400:
        error = (reply.json() or {}).get("error")
        if not found.deployments and error is not None:  # before anybody was asked about deployments
            refusals.append({"plugin": "pipeline", "status": status, **error})
    costs: Mapping[str, Any] = findings.pop("worst_case_usd", {})
    candidates = _candidates(call, found, costs)
    kept = [candidate for candidate in candidates if candidate["verdict"] == "kept"]
    explanation = {
        "object": "explanation",
        "can_proceed": error is None,
        "status": status,
        "error": error,
        "who": _who(call),
        "request": {"method": call.method, "path": call.path, "model": call.model, "stream": call.is_stream},
        "cache": _cache(call, found),
        "answered_by": found.answer[0] if found.answer is not None else None,
        "limits": [],
        "budgets": [],
        **findings,
        "candidates": candidates,
        "worst_case_usd": kept[0]["worst_case_usd"] if kept else None,
        "refusals": refusals,
        "notes": [{"plugin": n.plugin, "verdict": n.verdict, "text": n.text} for n in call.notes or ()],
    }
    if is_own:
        for name in ("limits", "budgets"):
            explanation[name] = [one for one in explanation[name] if not str(one.get("scope", "")).startswith("global")]
    return explanation


def _who(call: Call) -> dict[str, Any]:
    who = call.principal
    return {
        "key": who.key_name,
        "key_id": who.key_id,
        "tenant": who.tenant,
        "user": who.user,
        "tags": list(who.tags),
        "models": list(who.models),
    }


def _cache(call: Call, found: Found) -> dict[str, Any] | None:
    status = call.find(CACHE_STATUS)
    if status is None:
        return None
    headers: Mapping[str, str] = found.answer[1].headers if found.answer is not None else {}
    age = headers.get("age")
    return {
        "status": status,
        "age_s": int(age) if age is not None else None,
        "key": headers.get("x-hookline-cache-key"),
    }


def _candidates(call: Call, found: Found, costs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that were asked, in their order, then those that no plugin wanted to ask."""
    notes = call.notes or ()
    verdicts: dict[str, str] = {}
    for note in notes:
        if note.plugin == "pipeline" and note.verdict in ("kept", "skipped"):
            verdicts.setdefault(_about(note.text), note.verdict)
    verdicts = {id: verdict for id, verdict in verdicts.items() if id not in found.refused}
    ids = [*verdicts, *(id for id in found.deployments if id not in verdicts)]
    return [
        {
            "deployment": id,
            "verdict": verdicts.get(id, "left out"),
            "rank": rank if id in verdicts else None,
            "worst_case_usd": costs.get(id),
            "reasons": [r for r in _reasons(notes, id) if id not in found.refused or r["plugin"] != "pipeline"],
        }
        for rank, id in enumerate(ids, 1)
    ]


def _reasons(notes: Sequence[Note], id: str) -> list[dict[str, str]]:
    """What was noted about one deployment; the pipeline's own word only where no plugin said the same."""
    about = [(note, text) for note in notes if (text := _text_about(note, id)) is not None]
    said = {text for note, text in about if note.plugin != "pipeline"}
    return [
        {"plugin": note.plugin, "verdict": note.verdict, "text": text}
        for note, text in about
        if note.plugin != "pipeline" or text not in said
    ]


def _text_about(note: Note, id: str) -> str | None:
    """What a note says of a deployment; before its id there may be a rank ("2. ")."""
    rank, dot, rest = note.text.partition(". ")
    text = rest if dot and rank.isdecimal() else note.text
    return text.removeprefix(f"{id}: ") if text.startswith(f"{id}: ") else None


def _about(text: str) -> str:
    return text.split(": ", 1)[0]


def _error_of(error: ApiError) -> dict[str, Any]:
    told: dict[str, Any] = error.to_object()["error"]
    return told


def _all_hooks(chain: Chain) -> list[str]:
    return [name for name in Chain.__slots__ if name not in ("plugins", "timed") and chain.hook(name)]


def _going_on(impl: Impl) -> Impl:
    if impl.hook not in ("admit", "lookup", "select", "admit_attempt"):
        return impl

    def run(call: Call, *arguments: Any) -> Any:
        finish = _Finish(impl, call, arguments)
        try:
            answer = impl.run(call, *arguments)
        except Rejected as rejected:
            return finish.refused(rejected)
        except Skip as skip:
            raise finish.skipped(skip) from None
        # Waiting knows its guard only by `go_on`, and that is all it needs of one.
        return Waiting(finish, answer, call) if type(answer) is Waiting else finish.answered(answer)  # type: ignore[arg-type]

    return replace(impl, run=run)


class _Finish:
    """What is made of one hook's answer."""

    def __init__(self, impl: Impl, call: Call, arguments: tuple[Any, ...]) -> None:
        self._impl = impl
        self._call = call
        self._arguments = arguments
        self._found = call.slots.setdefault(FOUND, Found())
        self._before = [target.deployment.id for target in arguments[0]] if impl.hook == "select" else []
        self._found.deployments.update(dict.fromkeys(self._before))

    async def go_on(self, waiting: Any, timer: object) -> Any:
        try:
            return self.answered(await waiting)
        except Rejected as rejected:
            return self.refused(rejected)
        except Skip as skip:
            raise self.skipped(skip) from None

    def answered(self, answer: Any) -> Any:
        hook, call, plugin = self._impl.hook, self._call, self._impl.plugin
        if hook == "lookup" and isinstance(answer, Reply):
            if self._found.answer is None:
                self._found.answer = (plugin, answer)
                call.note(plugin, "answers", f"the reply would come from {answer.source}")
            return answer.ticket
        if hook == "select":
            self._note_order(answer)
        return answer

    def skipped(self, skip: Skip) -> Skip:
        """The same, with who it was written down."""
        target: Target = self._arguments[0]
        self._call.note(self._impl.plugin, "skips", f"{target.deployment.id}: {skip.reason}")
        return skip

    def refused(self, rejected: Rejected) -> Any:
        error = rejected.error
        if self._impl.hook == "admit_attempt":
            raise self.skipped(Skip(error.message, error))
        self._call.note(self._impl.plugin, "refuses", error.message)
        if not self._found.refusals and self._found.answer is None:
            self._found.ended_by = error
        self._found.refusals.append((self._impl.plugin, error))
        if self._impl.hook != "select":
            return None
        self._found.refused.update(self._before)
        return list(self._arguments[0])

    def _note_order(self, targets: list[Target]) -> None:
        """Say who was put before whom, where it was not as listed and the plugin has not said so itself."""
        if any(n.plugin == self._impl.plugin and n.verdict == "ranked" for n in self._call.notes or ()):
            return
        after = [target.deployment.id for target in targets]
        if after != [id for id in self._before if id in after]:
            for rank, target in enumerate(targets, 1):
                why = f", {target.reason}" if target.reason else ""
                self._call.note(self._impl.plugin, "ranked", f"{target.deployment.id}: {rank} of {len(after)}{why}")
