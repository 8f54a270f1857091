"""Chat models: what a model's name alone says about how it wants to be asked.

Lives here: names that exist only as chat models, and the name of the output limit a model understands.
Elsewhere: what a deployment says of itself (`mode` in proxy.toml), which comes first; what a Claude generation accepts (anthropic_thinking.py).
Idea: a name is weak evidence, so only families are listed that their makers serve by chat alone; open models, which many servers also complete, are not."""

from __future__ import annotations

import re

_CHAT_ONLY = re.compile(
    r"""
      gpt-3\.5-turbo(?!-instruct)
    | gpt-[4-9](?!.*-base)
    | chatgpt-
    | o\d+(?:-|$)
    | claude-
    | gemini-
    | grok-
    | deepseek-(?:chat|reasoner)$
    | command-(?:r|a)
    | mistral-(?:large|medium|small)-(?:latest|\d{4})$
    """,
    re.VERBOSE | re.IGNORECASE,
)
_REASONS = re.compile(r"o\d+(?:-|$)|gpt-[5-9]", re.IGNORECASE)


def is_known_chat_model(name: str) -> bool:
    """Whether this model answers chat completions and not legacy ones. A provider in front (`openai/gpt-4o`) does not matter."""
    return _CHAT_ONLY.match(_bare(name)) is not None


def output_limit_field(name: str) -> str:
    """The chat field for the output limit: OpenAI's reasoning models refuse `max_tokens`, many other servers know nothing else."""
    return "max_completion_tokens" if _REASONS.match(_bare(name)) else "max_tokens"


def _bare(name: str) -> str:
    return name.rsplit("/", 1)[-1]
