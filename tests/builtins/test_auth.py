"""Auth: which callers are known, through the real pipeline."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hookline import ANONYMOUS, Budget, Limits, Principal, hookimpl
from hookline.builtins.auth import AuthOptions
from hookline.builtins.auth import Plugin as Auth
from hookline.testing.kit import Delivered, PipelineKit

KEYS: list[dict[str, Any]] = [
    {"name": "ci", "key": "sk-canary-ci", "tenant": "acme", "user": "ann"},
    {"name": "ops", "key": "sk-canary-ops"},
]


class Witness:
    """Keeps the principals that got through."""

    def __init__(self, options: None, host: Any) -> None:
        self.seen: list[Principal] = []

    @hookimpl
    def admit(self, call: Any) -> None:
        self.seen.append(call.principal)


def make_kit(**options: Any) -> PipelineKit:
    return PipelineKit(Auth, Witness, options={"auth": options})


def who(kit: PipelineKit) -> list[str]:
    return [principal.key_name for principal in kit.plugin(Witness).seen]


def told(delivered: Delivered) -> tuple[int, str]:
    return delivered.status, delivered.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-canary-ci"},
        {"Authorization": "bearer   sk-canary-ci "},
        {"api-key": "sk-canary-ci"},
        {"X-Api-Key": "sk-canary-ci"},
    ],
)
async def test_a_known_key_is_found_in_every_header_that_sdks_use(headers):
    kit = make_kit(keys=KEYS)

    delivered = await kit.call(headers=headers)

    assert delivered.status == 200
    assert who(kit) == ["ci"]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`."),
        ({"authorization": "Bearer sk-other"}, "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."),
        ({"authorization": "Bearer sk-canary-c"}, "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."),
        ({"authorization": "Bearer sk-canary-ci2"}, "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."),
        ({"authorization": "Bearer \udcff\udcfe"}, "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."),
        ({"authorization": "Bearer "}, "The Authorization header holds no key. It must read `Authorization: Bearer YOUR_KEY`."),
        ({"authorization": "Basic c2stY2FuYXJ5"}, "The Authorization header holds no key. It must read `Authorization: Bearer YOUR_KEY`."),
        ({"api-key": "sk-other"}, "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."),
        # The first header that could hold a key decides: a wrong one is not saved by a right one elsewhere.
        ({"authorization": "Bearer sk-other", "api-key": "sk-canary-ci"}, "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."),
    ],
)  # fmt: skip
async def test_a_wrong_or_missing_key_is_401_in_openais_shape(headers, message):
    kit = make_kit(keys=KEYS)

    delivered = await kit.call(headers=headers)

    assert told(delivered) == (401, message)
    assert delivered.json()["error"]["type"] == "invalid_request_error"
    assert delivered.json()["error"]["code"] == "invalid_api_key"
    assert delivered.headers["x-should-retry"] == "false"
    assert who(kit) == []


async def test_a_refusal_never_echoes_the_key():
    delivered = await make_kit(keys=KEYS).call(headers={"authorization": "Bearer sk-secret-of-somebody"})

    assert b"sk-secret" not in delivered.body
    assert "sk-secret" not in str(delivered.headers)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer whatever"}])
async def test_without_keys_everyone_is_anonymous(headers):
    kit = make_kit()

    await kit.call(headers=headers)

    assert kit.plugin(Witness).seen == [ANONYMOUS]


@pytest.mark.parametrize(
    ("headers", "name"),
    [({}, "anonymous"), ({"authorization": "Bearer x"}, "anonymous"), ({"authorization": "Bearer sk-canary-ci"}, "ci")],
)
async def test_open_lets_strangers_in_and_still_knows_its_own(headers, name):
    kit = make_kit(keys=KEYS, open=True)

    await kit.call(headers=headers)

    assert who(kit) == [name]


async def test_every_field_of_a_key_reaches_the_principal():
    key = {
        "name": "ci",
        "key": "sk-canary-ci",
        "tenant": "acme",
        "user": "ann",
        "models": ["up/*"],
        "requests_per_minute": 60,
        "tokens_per_minute": 100_000,
        "max_parallel": 10,
        "budget": {
            "daily_usd": 0.1,
            "monthly_usd": 100,
            "total_usd": 1000.0,
            "rolling": [{"hours": 5, "usd": 1.5}],
            "alert_at": 0.5,
            "time_zone": "Asia/Kolkata",
            "mode": "soft",
        },
    }
    kit = make_kit(keys=[key])

    await kit.call(headers={"authorization": "Bearer sk-canary-ci"})

    assert kit.plugin(Witness).seen == [
        Principal(
            "ci", "ci", "acme", "ann", ("up/*",), Limits(60, 100_000, 10),
            Budget(100_000_000, 100_000_000_000, 1_000_000_000_000, ((5.0, 1_500_000_000),), 0.5, "Asia/Kolkata", "soft"),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ([KEYS[0], {**KEYS[1], "name": "ci"}], 'two keys are named "ci"'),
        ([KEYS[0], {**KEYS[1], "key": "sk-canary-ci"}], '"ci" and "ops" have the same key'),
        ([{**KEYS[0], "key": ""}], "visible ASCII"),
        ([{**KEYS[0], "key": "sk canary"}], "visible ASCII"),
        ([{**KEYS[0], "requests_per_minute": "60"}], "valid integer"),
        ([{**KEYS[0], "max_paralel": 1}], "Extra inputs"),
        ([{**KEYS[0], "budget": {"daily_usd": 1, "time_zone": "Mars/Olympus"}}], "unknown time zone"),
    ],
)
def test_a_bad_key_is_refused_at_start_without_being_shown(keys, problem):
    with pytest.raises(ValidationError, match=problem) as caught:
        AuthOptions.model_validate({"keys": keys})

    messages = [error["msg"] for error in caught.value.errors(include_input=False)]
    assert "sk-canary" not in str(messages)


def test_a_key_is_not_in_the_repr_of_the_options():
    assert "sk-canary" not in repr(AuthOptions.model_validate({"keys": KEYS}))
