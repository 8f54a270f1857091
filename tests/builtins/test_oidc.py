"""Tokens of OIDC issuers: real tokens, a real JWKS server on loopback, the real pipeline."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import ValidationError

from hookline import Budget, Limits, Principal, hookimpl
from hookline.builtins.auth import AuthOptions
from hookline.builtins.auth import Plugin as Auth
from hookline.testing.clock import FakeClock
from hookline.testing.kit import Delivered, PipelineKit

ISSUER = "https://id.example"
RSA = {name: rsa.generate_private_key(public_exponent=65_537, key_size=2_048) for name in ("one", "two", "stranger")}
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SECRET = "canary-secret-of-thirty-two-bytes-or-more"


class Witness:
    """Keeps the principals that got through."""

    def __init__(self, options: None, host: Any) -> None:
        self.seen: list[Principal] = []

    @hookimpl
    def admit(self, call: Any) -> None:
        self.seen.append(call.principal)


def jwk(key: Any, **about: Any) -> dict[str, Any]:
    kind = {"RSA": "RS256", "ECP": "ES256", "Ed2": "EdDSA"}[type(key).__name__.lstrip("_")[:3]]
    algorithm = jwt.get_algorithm_by_name(kind)
    made = algorithm.to_jwk(key.public_key(), as_dict=True)  # type: ignore[call-arg]
    made.pop("key_ops", None)
    return {**made, **about}


class IssuerServer:
    """A JWKS endpoint and its discovery document, on loopback; counts what it is asked."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA["one"], kid="one", use="sig", alg="RS256")]
        self.asked: list[str] = []
        self.status = 200
        self.body: bytes | None = None
        self.issuer = ISSUER
        self.gate: asyncio.Event | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await self._site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.gate is not None:
            await self.gate.wait()
        if request.path.endswith("/.well-known/openid-configuration"):
            return web.json_response({"issuer": self.issuer, "jwks_uri": f"{self.url}/jwks"})
        if self.status == 302 and request.path != "/good":
            return web.Response(status=302, headers={"location": "/good"})
        if request.path == "/good":
            return web.json_response({"keys": [jwk(RSA["one"], kid="one"), jwk(RSA["two"], kid="two")]})
        if self.body is not None:
            return web.Response(status=self.status, body=self.body)
        return web.json_response({"keys": self.keys}, status=self.status)


@pytest.fixture
async def server():
    server = IssuerServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def clock():
    return FakeClock(unix_s=time.time())  # tokens are read by a library that knows only the real time


@pytest.fixture
async def make_kit(server, clock):
    made: list[PipelineKit] = []
    session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    def make(
        *,
        keys: tuple[Any, ...] = (),
        issuers: list[dict[str, Any]] | None = None,
        records: Any = None,
        **issuer: Any,
    ) -> PipelineKit:
        table = {"name": "corp", "issuer": ISSUER, "audience": "hookline", "jwks_url": f"{server.url}/jwks", **issuer}
        table = {name: value for name, value in table.items() if value is not None}
        kit = PipelineKit(
            Auth, Witness, options={"auth": {"issuers": issuers or [table], "keys": list(keys)}}, clock=clock
        )
        kit.workshop.find_http = lambda: session
        kit.plugin(Auth)._host.records = records
        made.append(kit)
        return kit

    yield make
    for kit in made:
        await kit.chain.stop()
    await session.close()


def make_token(
    key: Any = RSA["one"], *, kid: str | None = "one", alg: str = "RS256", headers: Any = None, **claims: Any
) -> str:
    now = int(time.time())
    plausible = {"iss": ISSUER, "aud": "hookline", "sub": "ann", "exp": now + 600, "iat": now}
    told = {name: value for name, value in {**plausible, **claims}.items() if value is not None}
    return jwt.encode(told, key, algorithm=alg, headers={**({"kid": kid} if kid else {}), **(headers or {})})


async def call(kit: PipelineKit, token: str, **about: Any) -> Delivered:
    return await kit.call(headers={"authorization": f"Bearer {token}"}, **about)


async def status(kit: PipelineKit, token: str) -> int:
    return (await call(kit, token)).status


def told(delivered: Delivered) -> str:
    assert delivered.status == 401, delivered.body
    message: str = delivered.json()["error"]["message"]
    return message.removeprefix("The token is not accepted: ")


async def test_a_good_token_is_let_in_as_what_its_claims_say(make_kit):
    kit = make_kit(
        claims={
            "tenant": "https://claims.example/org",
            "models": "access.models",
            "limits": {"requests_per_minute": "rpm"},
            "tags": "groups",
        },
        tokens_per_minute=1_000,
        budget={"daily_usd": 1},
    )
    token = make_token(
        **{"https://claims.example/org": "acme"},
        access={"models": ["up/*"]},
        rpm=7,
        groups="a b",
        aud=["x", "hookline"],
    )

    assert await status(kit, token) == 200

    assert kit.plugin(Witness).seen == [
        Principal(
            "corp:acme/ann",
            "corp:acme/ann",
            "acme",
            "ann",
            ("up/*",),
            Limits(7, 1_000, None),
            Budget(1_000_000_000),
            ("a", "b"),
        )
    ]


async def test_models_of_a_token_are_honoured(make_kit):
    kit = make_kit(claims={"models": "models"})

    assert await status(kit, make_token(models=["other/*"])) == 403
    assert await status(kit, make_token(models="up/m other")) == 200


async def test_a_known_token_costs_no_check_and_keeps_its_principal(make_kit, monkeypatch):
    kit, token = make_kit(), make_token()
    assert await status(kit, token) == 200
    monkeypatch.setattr(jwt, "decode", None)

    assert await status(kit, token) == 200
    first, second = kit.plugin(Witness).seen
    assert first is second


async def test_a_known_token_ends_when_it_expires(make_kit, clock):
    kit, token = make_kit(), make_token(exp=int(time.time()) + 600)
    assert await status(kit, token) == 200

    clock.advance(601)

    assert kit.plugin(Auth)._tokens.find(next(iter(kit.plugin(Auth)._tokens._known)), clock.time()) is None


PUBLIC_PEM = (
    RSA["one"].public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)


def unsigned(alg: str) -> str:
    _, payload, _ = make_token().split(".")
    changed = base64.urlsafe_b64encode(json.dumps({"alg": alg, "kid": "one"}).encode()).decode().rstrip("=")
    return f"{changed}.{payload}."


def signed_by_public_key() -> str:
    """The classic: HS256 with the public key as the secret."""
    import hmac
    from hashlib import sha256

    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').decode().rstrip("=")
    signed = f"{head}.{make_token().split('.')[1]}"
    mark = base64.urlsafe_b64encode(hmac.new(PUBLIC_PEM, signed.encode(), sha256).digest()).decode().rstrip("=")
    return f"{signed}.{mark}"


def tampered() -> str:
    head, payload, mark = make_token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["sub"] = "root"
    return f"{head}.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.{mark}"


NOW = int(time.time())


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (lambda: make_token(exp=NOW - 60), "it has expired."),
        (lambda: make_token(exp=None), 'it lacks the claim "exp".'),
        (lambda: make_token(aud=None), 'it lacks the claim "aud".'),
        (lambda: make_token(nbf=NOW + 600), "it is not valid yet."),
        (lambda: make_token(aud="other"), "it is meant for another audience."),
        (lambda: make_token(iss="https://evil.example"), "its issuer is not one that this gateway knows."),
        (lambda: make_token(iss=None), "its issuer is not one that this gateway knows."),
        (lambda: make_token(RSA["stranger"]), "its signature or a claim is wrong."),
        (tampered, "its signature or a claim is wrong."),
        (lambda: make_token(alg="RS512"), "its algorithm is not one that this gateway takes from its issuer."),
        (lambda: make_token(alg="PS256"), "its algorithm is not one that this gateway takes from its issuer."),
        (lambda: make_token(EC, alg="ES256"), "its algorithm is not one that this gateway takes from its issuer."),
        (lambda: unsigned("none"), "its algorithm is not one that this gateway takes from its issuer."),
        (lambda: unsigned("None"), "its algorithm is not one that this gateway takes from its issuer."),
        (lambda: unsigned("RS256"), "its signature or a claim is wrong."),
        (signed_by_public_key, "its algorithm is not one that this gateway takes from its issuer."),
        (lambda: make_token(headers={"crit": ["b64"]}), "it can't be read."),
        (lambda: make_token(headers={"jwk": jwk(RSA["stranger"])}, key=RSA["stranger"]), "its signature or a claim is wrong."),
        (lambda: "a.b@d.c", "it can't be read."),
        (lambda: ".".join(["x" * 9_000] * 3), "it can't be read."),
        (lambda: make_token(sub="a\u0000b"), 'its claim "sub" must be printable text, at most 200 characters.'),
        (lambda: make_token(sub="x" * 201), 'its claim "sub" must be printable text, at most 200 characters.'),
    ],
)  # fmt: skip
async def test_a_bad_token_is_401_and_says_why(make_kit, token, why):
    kit, shown = make_kit(), token()

    delivered = await call(kit, shown)

    assert told(delivered) == why
    assert delivered.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert shown.split(".")[1] not in delivered.body.decode()
    assert kit.plugin(Witness).seen == []


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({}, 'it lacks the claim "org".'),
        ({"org": 7}, 'its claim "org" must be printable text, at most 200 characters.'),
        ({"org": "acme", "models": {"a": 1}}, 'its claim "models" must be a list of at most 100 texts.'),
        ({"org": "acme", "rpm": "many"}, 'its claim "rpm" must be a whole number from 1 on.'),
        ({"org": "acme", "rpm": True}, 'its claim "rpm" must be a whole number from 1 on.'),
        ({"org": "acme", "rpm": 0}, 'its claim "rpm" must be a whole number from 1 on.'),
    ],
)
async def test_a_claim_that_is_not_as_it_should_be_is_named(make_kit, claims, why):
    kit = make_kit(claims={"tenant": "org", "models": "models", "limits": {"requests_per_minute": "rpm"}})

    assert told(await call(kit, make_token(**claims))) == why


async def test_a_token_without_a_tenant_takes_the_one_of_its_issuer(make_kit):
    kit = make_kit(claims={"tenant": "org"}, tenant="staff", models=["up/*"])

    assert await status(kit, make_token()) == 200
    assert (kit.plugin(Witness).seen[0].tenant, kit.plugin(Witness).seen[0].models) == ("staff", ("up/*",))


async def test_users_of_one_name_in_two_tenants_are_two_payers(make_kit):
    """Else one tenant draws on the budget of the other, and reads its spend in a refusal."""
    kit = make_kit(claims={"tenant": "org"}, tenant="staff")
    people: list[dict[str, str]] = [
        {"org": "acme", "sub": "ann"},
        {"org": "globex", "sub": "ann"},
        {"org": "acme/ann", "sub": "ann"},
        {"org": "acme", "sub": "ann/ann"},
        {"org": "acme:ann", "sub": "x"},
        {"sub": "ann"},
        {"sub": "acme/ann"},
        {"org": "acme", "sub": None},
        {"sub": "acme"},
    ]

    for claims in people:
        assert await status(kit, make_token(**claims)) == 200

    assert len({principal.key_id for principal in kit.plugin(Witness).seen}) == len(people)


async def test_keys_work_beside_tokens_and_the_door_is_closed(make_kit):
    kit = make_kit(keys=({"name": "ci", "key": "sk-ci.with.dots"},))

    assert await status(kit, "sk-ci.with.dots") == 200
    assert await status(kit, "sk-other") == 401
    assert (await kit.call()).status == 401


async def test_elliptic_curves_work_where_they_are_configured(make_kit, server):
    server.keys = [jwk(EC, kid="ec"), jwk(ED, kid="ed"), jwk(RSA["one"], kid="one")]
    kit = make_kit(algorithms=["ES256", "EdDSA"])

    assert await status(kit, make_token(EC, kid="ec", alg="ES256")) == 200
    assert await status(kit, make_token(ED, kid="ed", alg="EdDSA")) == 200
    assert await status(kit, make_token()) == 401


async def test_a_token_that_names_no_key_needs_an_issuer_with_one(make_kit, server):
    kit, token = make_kit(), make_token(kid=None)
    assert await status(kit, token) == 200

    server.keys.append(jwk(RSA["two"], kid="two"))
    other = make_kit()

    assert told(await call(other, token)) == "its issuer has no such key."


async def test_keys_that_are_not_for_signing_or_too_short_or_no_keys_are_left_out(make_kit, server):
    short = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
    server.keys = [
        jwk(RSA["two"], kid="enc", use="enc"),
        {"kty": "oct", "kid": "oct", "k": base64.urlsafe_b64encode(PUBLIC_PEM).decode()},
        {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
        jwk(short, kid="short"),
        "no key",  # type: ignore[list-item]
        *server.keys,
    ]
    kit = make_kit()

    assert await status(kit, make_token()) == 200
    assert told(await call(kit, make_token(RSA["two"], kid="enc"))) == "its issuer has no such key."
    assert told(await call(kit, make_token(short, kid="short"))) == "its issuer has no such key."


async def test_keys_are_fetched_once_for_many_callers(make_kit, server):
    kit = make_kit()
    server.gate = asyncio.Event()
    calls = [asyncio.ensure_future(status(kit, make_token(sub=f"u{n}"))) for n in range(20)]
    while not server.asked:  # noqa: ASYNC110
        await asyncio.sleep(0)
    calls.pop().cancel()
    server.gate.set()

    assert set(await asyncio.gather(*calls)) == {200}
    assert server.asked == ["/jwks"]


async def test_a_new_key_is_found_when_a_token_names_it_and_the_old_one_ends(make_kit, server):
    kit, old = make_kit(), make_token()
    assert await status(kit, old) == 200
    server.keys = [jwk(RSA["two"], kid="two")]
    kit.clock.advance(10)

    assert await status(kit, make_token(RSA["two"], kid="two")) == 200
    assert told(await call(kit, old)) == "its issuer has no such key."


async def test_invented_key_names_are_asked_for_seldom(make_kit, server, clock):
    kit = make_kit()
    assert await status(kit, make_token()) == 200

    for n in range(20):
        assert await status(kit, make_token(RSA["stranger"], kid=f"invented-{n}")) == 401
    assert len(server.asked) == 5

    clock.advance(10)
    for n in range(20):
        assert await status(kit, make_token(RSA["stranger"], kid=f"invented-{n}")) == 401
    assert len(server.asked) == 6


async def test_an_invented_name_does_not_keep_a_new_key_waiting(make_kit, server):
    kit = make_kit()
    assert await status(kit, make_token()) == 200
    assert await status(kit, make_token(RSA["stranger"], kid="invented")) == 401

    server.keys = [jwk(RSA["two"], kid="two", use="sig", alg="RS256")]

    assert await status(kit, make_token(RSA["two"], kid="two")) == 200
    assert await status(kit, make_token()) == 401


@pytest.mark.parametrize(
    "failure",
    [
        {"status": 500},
        {"status": 302},
        {"body": b"<html>"},
        {"body": b'{"keys": 1}'},
        {"body": b'{"keys": ["' + b"x" * 600_000 + b'"]}'},
    ],
)
async def test_an_issuer_that_fails_is_503_for_new_keys_and_nothing_for_known_ones(make_kit, server, clock, failure):
    kit = make_kit()
    assert await status(kit, make_token()) == 200
    vars(server).update(failure)
    clock.advance(10)

    delivered = await call(kit, make_token(RSA["two"], kid="two"))

    assert delivered.status == 503
    assert int(delivered.headers["retry-after"]) >= 1
    assert await status(kit, make_token(sub="bob")) == 200


async def test_an_issuer_that_is_away_from_the_start_is_503_and_comes_back(make_kit, server, clock):
    url = server.url
    await server.stop()
    kit = make_kit(jwks_url=f"{url}/jwks")
    assert [await status(kit, make_token()) for _ in range(2)] == [503, 503]

    await server.start()
    kit.plugin(Auth)._tokens._key_sets[ISSUER]._issuer = (
        kit.plugin(Auth)._tokens._issuers[ISSUER].model_copy(update={"jwks_url": f"{server.url}/jwks"})
    )
    clock.advance(10)

    assert await status(kit, make_token()) == 200


class NoKeys:
    """Records as far as reloads need them: one object for all."""

    keys = None


async def test_a_reload_while_the_issuer_is_away_knows_the_keys_that_were_known(make_kit, server):
    records = NoKeys()
    kit = make_kit(records=records)
    assert await status(kit, make_token()) == 200
    server.status = 500

    reloaded = make_kit(records=records)
    await reloaded.chain.start()
    another = make_kit(records=NoKeys())
    await another.chain.start()

    assert await status(reloaded, make_token(sub="bob")) == 200
    assert await status(another, make_token(sub="bob")) == 503, "another gateway's"


async def test_a_slow_issuer_is_503_within_its_time(make_kit, server):
    server.gate = asyncio.Event()
    kit = make_kit(timeout_s=0.05)

    assert await status(kit, make_token()) == 503
    server.gate.set()


async def test_keys_are_kept_fresh_by_a_task(make_kit, server):
    kit = make_kit(refresh_s=1)
    key_set = kit.plugin(Auth)._tokens._key_sets[ISSUER]
    task = asyncio.ensure_future(kit.plugin(Auth)._tokens.keep_fresh())
    while key_set.version == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    server.keys = [jwk(RSA["two"], kid="two")]
    while key_set.version == 1:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert await status(kit, make_token(RSA["two"], kid="two")) == 200


async def test_discovery_finds_the_keys(make_kit, server):
    server.issuer = server.url
    kit = make_kit(issuer=server.url, jwks_url=None)

    assert await status(kit, make_token(iss=server.url)) == 200
    assert server.asked == ["/.well-known/openid-configuration", "/jwks"]


async def test_discovery_of_another_issuer_is_not_believed(make_kit, server):
    server.issuer = "https://evil.example"
    kit = make_kit(issuer=server.url, jwks_url=None)

    assert await status(kit, make_token(iss=server.url)) == 503


async def test_a_secret_checks_tokens_of_its_algorithm_only(make_kit):
    kit = make_kit(jwks_url=None, secret=SECRET)

    assert await status(kit, make_token(SECRET, kid=None, alg="HS256")) == 200
    assert await status(kit, make_token(SECRET, kid=None, alg="HS512")) == 401
    assert await status(kit, make_token(SECRET + "x", kid=None, alg="HS256")) == 401
    assert await status(kit, unsigned("none")) == 401


async def test_each_issuer_checks_its_own_tokens(make_kit, server):
    one = {"name": "one", "issuer": ISSUER, "audience": "hookline", "jwks_url": f"{server.url}/jwks"}
    two = {"name": "two", "issuer": "https://two.example", "audience": "hookline", "secret": SECRET}
    kit = make_kit(issuers=[one, two])

    assert await status(kit, make_token()) == 200
    assert await status(kit, make_token(SECRET, kid=None, alg="HS256", iss="https://two.example")) == 200
    assert await status(kit, make_token(iss="https://two.example")) == 401
    assert await status(kit, make_token(SECRET, kid="one", alg="HS256")) == 401


async def test_leeway_lets_clocks_differ(make_kit):
    kit = make_kit(leeway_s=120)

    assert await status(kit, make_token(exp=int(time.time()) - 60)) == 200
    assert await status(kit, make_token(nbf=int(time.time()) + 60)) == 200


BASE = {"name": "corp", "issuer": ISSUER, "audience": "hookline"}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"algorithms": ["none"]}, '"none" is none that public keys can check'),
        ({"algorithms": ["HS256"]}, '"HS256" is none that public keys can check'),
        ({"secret": SECRET, "algorithms": ["RS256"]}, '"RS256" is none that a secret can check'),
        ({"secret": "short"}, "32 bytes or more"),
        ({"secret": SECRET, "jwks_url": "https://x/jwks"}, "keep one of them"),
        ({"jwks_url": "http://id.example/jwks"}, "must be an https:// URL"),
        ({"jwks_url": "https://user:canary@id.example/jwks"}, "without a password"),
        ({"issuer": "http://id.example"}, "must be an https:// URL"),
        ({"issuer": "id.example"}, "must be an https:// URL"),
        ({"audience": []}, "at least 1"),
        ({"audence": "x"}, "Extra inputs"),
        ({"claims": {"limits": {"requests_per_minut": "rpm"}}}, 'there is no limit "requests_per_minut"'),
    ],
)
def test_a_table_that_would_not_be_safe_is_refused_at_start(table, problem):
    with pytest.raises(ValidationError, match=problem) as caught:
        AuthOptions.model_validate({"issuers": [{**BASE, **table}]})

    assert SECRET not in str([error["msg"] for error in caught.value.errors(include_input=False)])
