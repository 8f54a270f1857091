"""What a model's name says."""

from __future__ import annotations

import pytest

from hookline.providers.chat_models import is_known_chat_model, output_limit_field


@pytest.mark.parametrize(
    "name",
    ["gpt-4o", "gpt-4o-mini-2024-07-18", "openai/gpt-4.1", "GPT-4", "gpt-3.5-turbo", "gpt-5", "gpt-6-luna", "chatgpt-4o-latest", "o1", "o3-mini", "claude-opus-5", "anthropic/claude-3-haiku", "gemini-2.5-pro", "grok-4", "deepseek-chat", "mistral-large-latest"],
)  # fmt: skip
def test_names_that_only_chat(name):
    assert is_known_chat_model(name)


@pytest.mark.parametrize(
    "name",
    ["gpt-3.5-turbo-instruct", "davinci-002", "babbage-002", "gpt-4-base", "gpt-oss-120b", "gpt-2", "llama-3.1-70b", "mistral-7b", "deepseek-coder", "octo", "olmo-2", "my-gpt-4o", "", "/"],
)  # fmt: skip
def test_names_that_may_also_complete(name):
    assert not is_known_chat_model(name)


@pytest.mark.parametrize(
    ("name", "field"),
    [("gpt-4o", "max_tokens"), ("llama3", "max_tokens"), ("openai/o3-mini", "max_completion_tokens"), ("gpt-5.4", "max_completion_tokens")],
)  # fmt: skip
def test_the_output_limit_has_the_name_the_model_knows(name, field):
    assert output_limit_field(name) == field
