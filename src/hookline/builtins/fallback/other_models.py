"""Other models: the lists of `[plugins.fallback]` as targets.

Lives here: names to targets, and whether such a target may take the call. Elsewhere: when which list is used (the package's __init__).
Idea: a fallback must not become a way around a rule. The model's own price holds, because money is reserved per attempt; permission and features are checked
when it is its turn, for the principal that called: a target that fails is skipped with its reason, never tried with less."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hookline import LACKS, ApiError, Call, Deployment, Host, Skip, Target


def targets_of(names: Sequence[str], known: Iterable[Target], call: Call, host: Host) -> list[Target]:
    """The deployments of these models as targets, those of `known` left out."""
    seen = {target.deployment.id for target in known}
    targets: list[Target] = []
    for name in names:
        for deployment in _deployments_of(name, call, host):
            if deployment.id not in seen:
                seen.add(deployment.id)
                targets.append(Target(deployment, reason=f'fallback to "{name}"', model=name))
    return targets


def _deployments_of(name: str, call: Call, host: Host) -> Sequence[Deployment]:
    try:
        return host.find_deployments(name, call)
    except ApiError as error:
        call.note("fallback", "left out", f'"{name}": {error.message}')
        return ()


def check_rules(call: Call, target: Target, host: Host) -> None:
    """Raises Skip if the deployment may not serve the request, by what it declares and by what the call demands."""
    lacks = host.offers.get(LACKS)
    reasons = [] if lacks is None else list(lacks(call, target.deployment))
    if reasons:
        raise Skip(", ".join(reasons))
