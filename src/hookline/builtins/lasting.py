"""What a call leaves behind, or needs, at one provider.

Lives here: members and tools that tie a call to its provider. Elsewhere: who must not ask twice because of them (hedging.py, mirror.py), what may be sent again after a failure
(fallback/retry_table.py).
Idea: each says what it makes of a tie; what is one is said once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

CLIENT_TOOLS: Final = frozenset({"function", "custom"})
"""Tools that the client runs. All others run at the provider, and some of them act (MCP, code, computers)."""
TIES: Final = ("background", "conversation", "previous_response_id")


def tie_of(payload: Mapping[str, Any]) -> str | None:
    """The first member that ties the call to one provider."""
    return next((name for name in TIES if payload.get(name)), None)


def hosted_tool_of(payload: Mapping[str, Any]) -> str | None:
    """The type of the first tool that the provider runs itself."""
    tools = payload.get("tools")
    for tool in tools if isinstance(tools, list) else ():
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind not in CLIENT_TOOLS:
            return str(kind)
    return None
