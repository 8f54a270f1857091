"""`x-hookline-explain: true`: a client asks what would become of its own call.

Lives here: who may, and the reply. Elsewhere: the dry run and the explanation (explaining.py), any call of any key (builtins/explain, for the admin key).
Idea: the header never becomes an ordinary call by accident: where it is not served it is refused."""

from __future__ import annotations

from functools import partial
from typing import Final

from multidict import istr

from hookline.call import Call
from hookline.errors import BadRequest
from hookline.explaining import explain
from hookline.reply import Reply
from hookline.surfaces.settings import Deliver, Serving

X_EXPLAIN: Final = istr("x-hookline-explain")


def wants_explanation(said: str, serving: Serving) -> bool:
    """What the header means. Raises BadRequest where it can't be done."""
    word = said.strip().lower()
    if word in ("false", "0"):
        return False
    if word not in ("true", "1"):
        raise BadRequest(f'{X_EXPLAIN}: "{said[:40]}" is neither true nor false')
    if not serving.explains:
        raise BadRequest(
            f"{X_EXPLAIN} is not served here, and nothing was sent; leave it out, or have the operator add "
            '"explain" to [chain] plugins',
            code="explain_not_served",
        )
    return True


def prepare_explained_call(call: Call, send: Deliver) -> Deliver:
    """Make `call` a dry run; returns the `deliver` to run it with, whatever its reply was to be made into."""
    call.is_dry_run = call.is_explained = True
    return partial(_deliver_explanation, call, send)


async def _deliver_explanation(call: Call, deliver: Deliver, reply: Reply) -> None:
    if reply.status == 401:  # nobody's own call
        await deliver(reply)
        return
    await deliver(Reply.from_json(explain(call, reply, is_own=True)))
