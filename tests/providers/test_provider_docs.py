"""The page about providers says what is true: its tables load, and every option and every demo model is on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from hookline.config_loading import check
from hookline.config_source import parse_source
from hookline.providers import anthropic_request, completions_as_chat, register_providers, responses_request
from hookline.providers.demo_behaviours import BEHAVIOURS
from hookline.providers.field_table import Field
from hookline.testing.clock import FakeClock

PAGE = (Path(__file__).parents[2] / "docs/howto/providers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def kinds() -> dict[str, tuple[Any, type[BaseModel]]]:
    found: dict[str, tuple[Any, type[BaseModel]]] = {}
    register_providers(lambda kind, factory, *, options: found.update({kind: (factory, options)}))
    return found


@pytest.mark.parametrize("block", BLOCKS)
async def test_every_table_on_the_page_makes_a_provider(block: str) -> None:
    settings, problems = check(parse_source(block, file="docs", path=None, environ={}))

    assert problems == []
    assert settings.providers
    for name, table in settings.providers.items():
        factory, model = kinds()[table.kind]
        provider = factory(name, model.model_validate(table.options), FakeClock())
        assert provider.name == name
        await provider.aclose()


@pytest.mark.parametrize("kind", kinds())
def test_every_option_is_on_the_page(kind: str) -> None:
    missing = [name for name in kinds()[kind][1].model_fields if name not in PAGE]

    assert missing == []


def test_every_tls_option_is_on_the_page() -> None:
    tls = kinds()["openai"][1].model_fields["tls"].annotation
    assert tls is not None
    assert [name for name in tls.model_fields if f"`{name}`" not in PAGE] == []


def test_every_demo_model_is_on_the_page_with_its_own_words() -> None:
    for name, behaviour in BEHAVIOURS.items():
        assert f"`demo/{name}`" in PAGE
        assert behaviour.doc.partition(";")[0] in PAGE


def row(name: str, field: Field) -> str:
    """What the page says about one field of a translated request."""
    becomes = ", ".join(f"`{one}`" for one in field.becomes.split(", ")) if field.becomes else "not sent"
    if not field.becomes and not field.is_ignored:
        harmless = "".join(f", but for `{orjson.dumps(value).decode()}`" for value in field.harmless)
        becomes = f"400{harmless}"
    return f"| `{name}` | {becomes} | {field.note} |"


@pytest.mark.parametrize(
    ("title", "table"),
    [
        ("### Fields of a chat completion", anthropic_request.FIELDS),
        ("### Fields of a response", responses_request.FIELDS),
        ("### Fields of a legacy completion", completions_as_chat.REFUSED),
    ],
)
def test_every_field_of_a_translation_is_on_the_page_with_its_own_words(title: str, table: dict[str, Field]) -> None:
    section = PAGE.partition(title + "\n")[2].partition("\n#")[0]

    assert [line for line in section.split("\n") if line.startswith("| `")] == [row(*one) for one in table.items()]
