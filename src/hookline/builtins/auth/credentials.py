"""What a caller shows, and what a refusal says.

Lives here: reading a key or token from the headers, 401 and 503. Elsewhere: whether it is good (__init__.py, recorded_keys.py, tokens.py).
Idea: pure; nothing that was shown is ever part of an answer."""

from __future__ import annotations

from collections.abc import Mapping

from hookline import Unauthenticated, Unavailable

KEY_HEADERS = ("api-key", "x-api-key")
"""Where other SDKs put their key (Azure, Anthropic); asked when there is no `authorization`."""
RETRY_AFTER_S = 1.0


def find_key(headers: Mapping[str, str]) -> str | None:
    """The key a client shows: `Authorization: Bearer ...`, else `api-key`, else `x-api-key`. None if there is none."""
    authorization = headers.get("authorization")
    if authorization is not None:
        if authorization.startswith("Bearer "):
            return authorization[7:].strip() or None
        scheme, _, key = authorization.strip().partition(" ")
        return key.strip() or None if scheme.lower() == "bearer" else None
    for name in KEY_HEADERS:
        key = headers.get(name, "").strip()
        if key:
            return key
    return None


def refusal(headers: Mapping[str, str], key: str | None, why: str | None = None) -> Unauthenticated:
    """401. `why`: what is wrong with a key that was known once."""
    if why is not None:
        message = f"{why} Ask whoever runs this gateway for a new one."
    elif key is not None:
        message = "Incorrect API key provided. Ask whoever runs this gateway for a key of yours."
    elif "authorization" in headers:
        message = "The Authorization header holds no key. It must read `Authorization: Bearer YOUR_KEY`."
    else:
        message = "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`."
    return Unauthenticated(message, headers={"www-authenticate": "Bearer"})


def bad_token(why: str) -> Unauthenticated:
    """401 for a token (JWT)."""
    return Unauthenticated(
        f"The token is not accepted: {why}", headers={"www-authenticate": 'Bearer error="invalid_token"'}
    )


def cannot_tell(what: str, retry_after_s: float | None = None) -> Unavailable:
    """503: the caller may be known, but nobody can say so now."""
    return Unavailable(
        f"{what}, so this key can't be checked now; try again", retry_after_s=retry_after_s or RETRY_AFTER_S
    )
