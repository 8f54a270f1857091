"""Qualifying: which deployments of a model may serve a call.

Lives here: everything that leaves a deployment out, and the 400 that names it. Elsewhere: what a request needs (needs.py), what it may cost (costs.py), who of the rest goes first (ranking.py).
Idea: pure: a demand and a deployment make a list of reasons; an empty list qualifies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hookline import SKIPPED, BadRequest, Call, Deployment, Rejected, Target
from hookline.builtins.model_selection.complexity import CLASSES
from hookline.builtins.model_selection.costs import costs_more_than, dearer_than
from hookline.builtins.model_selection.needs import CONTEXT, Needs, lacks_of, needs_of, surely_fit
from hookline.builtins.model_selection.options import Place
from hookline.builtins.model_selection.policies import Policy


class Demand(NamedTuple):
    """What a call demands beside what it needs. None: nothing."""

    places: Sequence[Place] = ()
    class_at: int | None = None
    """The class of the request, as its place in `CLASSES`."""
    max_cost_nanousd: int | None = None
    max_per_1k_nanousd: int | None = None


NO_DEMAND = Demand()


def qualify(call: Call, targets: list[Target], demand: Demand, policy: Policy) -> list[Target]:
    """The targets that may serve the call. Raises Rejected, naming what excluded each, when there is none."""
    fit = len(targets) < 2 or surely_fit(call, targets)  # what a lone one lacks is its upstream's to say
    if fit and demand == NO_DEMAND:
        return targets
    needs = None if fit else needs_of(call)
    lacks = [list(exclusions(call, target.deployment, needs, demand, policy)) for target in targets]
    for target, reasons in zip(targets, lacks, strict=True):
        if reasons:
            call.note("model_selection", "left out", f"{target.deployment.id}: {', '.join(reasons)}")
    qualified = [target for target, reasons in zip(targets, lacks, strict=True) if not reasons]
    if not qualified:
        raise Rejected(none_qualifies(call.model, targets, lacks))
    if len(qualified) < len(targets):
        told = call.slots.setdefault(SKIPPED, [])
        told += [(t.deployment.id, ", ".join(why)) for t, why in zip(targets, lacks, strict=True) if why]
    return qualified


def exclusions(
    call: Call, deployment: Deployment, needs: Needs | None, demand: Demand, policy: Policy
) -> Iterator[str]:
    """Why a deployment may not serve a call."""
    if needs is not None:
        yield from lacks_of(deployment, needs)
    for place in demand.places:
        if place.regions and deployment.region not in place.regions:
            where = f'is in region "{deployment.region}"' if deployment.region is not None else "is in no known region"
            yield f"{where}, {' or '.join(place.regions)} demanded"
        if missing := [tag for tag in place.tags if tag not in deployment.tags]:
            yield f"lacks tag {', '.join(missing)}"
    if demand.class_at is not None:
        highest = max(policy.classes_of(deployment.listed_id))
        if highest < demand.class_at:
            yield f"serves {CLASSES[highest]} requests at most, this one is {CLASSES[demand.class_at]}"
    if demand.max_per_1k_nanousd is not None and (why := dearer_than(deployment, demand.max_per_1k_nanousd)):
        yield why
    if demand.max_cost_nanousd is not None:
        why = costs_more_than(call, deployment, demand.max_cost_nanousd, policy.assumed_output_tokens)
        if why is not None:
            yield why


def none_qualifies(model: str | None, targets: Sequence[Target], lacks: Sequence[Sequence[str]]) -> BadRequest:
    """The 400. Where every one is too small, it has the code that SDKs know for that."""
    reasons = "; ".join(
        f"{t.deployment.id} {' and '.join(dict.fromkeys(why))}" for t, why in zip(targets, lacks, strict=True)
    )
    is_about_length = all(any(one.startswith(CONTEXT) for one in why) for why in lacks)
    asked = f'"{model}"' if model is not None else "the default provider"
    return BadRequest(
        f"no deployment of {asked} can take this call: {reasons}",
        code="context_length_exceeded" if is_about_length else "no_qualified_deployment",
        param="messages" if is_about_length else None,
    )
