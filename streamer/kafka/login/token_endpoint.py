"""Tokens by HTTP, from the endpoint that ``sasl.oauthbearer.…`` names: client credentials (KIP-768), or Azure's managed identity.

librdkafka does the same by itself; this is for the monitor's client, which does not, and for saying why there is no token.
What must hold: the secret goes to that address alone. A redirect is refused, as it could lead elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from models.terminal import printable
from streamer.kafka.login.tokens import Token, TokenRefusedError, TokenSourceAwayError

_TIMEOUT_SECONDS: Final = 10.0
_MOST_BYTES: Final = 1 << 20
_MOST_CHARACTERS: Final = 300  # of an answer, in a message
_IDENTITY_ENDPOINT: Final = "http://169.254.169.254/metadata/identity/oauth2/token"  # Azure's, on each of its machines
# The server is busy or starting; librdkafka waits for the same ones.
_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_PREFIX: Final = "sasl.oauthbearer."


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        return None


def unable(properties: Mapping[str, str]) -> str | None:
    """What of librdkafka's own ways to get a token is not done here; ``None`` if it is done."""
    grant = properties.get(f"{_PREFIX}grant.type", "client_credentials")
    kind = properties.get(f"{_PREFIX}metadata.authentication.type", "none")
    if grant != "client_credentials":
        return f"sasl.oauthbearer.grant.type {grant!r}"
    if kind not in ("none", "azure_imds"):
        return f"sasl.oauthbearer.metadata.authentication.type {kind!r}"
    if properties.get("enable.sasl.oauthbearer.unsecure.jwt", "false").lower() == "true":
        return "enable.sasl.oauthbearer.unsecure.jwt"
    return None


def fetch_token(properties: Mapping[str, str]) -> Token:
    """A new token. ``properties``: librdkafka's, with ``sasl.oauthbearer.method`` oidc.

    Raises:
        TokenRefusedError: the endpoint refuses our id or secret, is no such endpoint, or a property is missing.
        TokenSourceAwayError: it does not answer.
    """
    request = _identity_request(properties) if _is_azures(properties) else _credentials_request(properties)
    address = request.full_url.partition("?")[0]
    try:
        opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=_context(properties)))
        with opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            content = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        said = _told(error.read(_MOST_BYTES))
        reason = f"the token endpoint {address} answers {error.code} {error.reason}{said}"
        if error.code in _PASSING_STATUS:
            raise TokenSourceAwayError(reason) from None
        raise TokenRefusedError(reason) from None
    except OSError as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise TokenRefusedError(
                f"the certificate of the token endpoint {address} is not trusted ({cause.verify_message}): "
                "set https.ca.location"
            ) from None
        raise TokenSourceAwayError(f"the token endpoint {address} does not answer: {cause}") from None
    return _read(content, address, _extensions(properties))


def _is_azures(properties: Mapping[str, str]) -> bool:
    return properties.get(f"{_PREFIX}metadata.authentication.type") == "azure_imds"


def _credentials_request(properties: Mapping[str, str]) -> urllib.request.Request:
    identity, secret = (
        properties.get(f"{_PREFIX}client.{name}") or properties.get(f"{_PREFIX}client.credentials.client.{name}")
        for name in ("id", "secret")
    )
    endpoint = properties.get(f"{_PREFIX}token.endpoint.url")
    named = {"client.id": identity, "client.secret": secret, "token.endpoint.url": endpoint}
    missing = [f"{_PREFIX}{name}" for name, value in named.items() if not value]
    if missing or not endpoint:
        raise TokenRefusedError(f"{', '.join(missing)} missing in kafka.security")
    # As librdkafka sends it: a scope that somebody has percent-encoded stays so.
    scope = properties.get(f"{_PREFIX}scope", "").replace(" ", "+")
    body = "grant_type=client_credentials" + (f"&scope={scope}" if scope else "")
    credentials = base64.b64encode(f"{identity}:{secret}".encode()).decode()
    headers = {"Accept": "application/json", "Authorization": f"Basic {credentials}"}
    return urllib.request.Request(_checked(endpoint), body.encode(), headers)


def _identity_request(properties: Mapping[str, str]) -> urllib.request.Request:
    """The managed identity of this machine: no secret; ``sasl.oauthbearer.config`` has ``query=<parameters>``."""
    endpoint = properties.get(f"{_PREFIX}token.endpoint.url") or _IDENTITY_ENDPOINT
    query = dict(_pairs(properties.get(f"{_PREFIX}config", ""))).get("query")
    if query:
        endpoint += ("&" if "?" in endpoint else "?") + query
    return urllib.request.Request(_checked(endpoint), headers={"Metadata": "true", "Accept": "application/json"})


def _checked(endpoint: str) -> str:
    if not endpoint.startswith(("https://", "http://")):  # a file is none, either
        raise TokenRefusedError(
            f"sasl.oauthbearer.token.endpoint.url {endpoint!r} is no address: it begins with https://"
        )
    return endpoint


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return [(name.strip(), value) for name, _, value in pairs]


def _extensions(properties: Mapping[str, str]) -> dict[str, str]:
    return dict(_pairs(properties.get(f"{_PREFIX}extensions", "")))


def _context(properties: Mapping[str, str]) -> ssl.SSLContext:
    """For ``https://``. Raises ``TokenRefusedError`` for a file that cannot be read."""
    place = properties.get("https.ca.location")
    try:
        return ssl.create_default_context(
            cafile=None if place == "probe" else place, cadata=properties.get("https.ca.pem")
        )
    except OSError as error:
        raise TokenRefusedError(f"https.ca.location {place} cannot be used ({error})") from None


def _told(content: bytes) -> str:
    """What an endpoint says of an error (RFC 6749, 5.2), or the beginning of whatever it says."""
    text = content.decode("utf-8", "replace").strip()
    try:
        answer = json.loads(text)
        said = " ".join(str(answer[name]) for name in ("error", "error_description") if answer.get(name))
    except (ValueError, AttributeError, TypeError):
        said = ""
    said = printable(" ".join((said or text).split()))[:_MOST_CHARACTERS]
    return f" ({said})" if said else ""


def _read(content: bytes, address: str, extensions: Mapping[str, str]) -> Token:
    try:
        answer = json.loads(content)
        value = answer["access_token"]
    except (ValueError, KeyError, TypeError):
        raise TokenRefusedError(f"{address} answers without an access_token: it is no token endpoint") from None
    claims = _claims(value)
    expires_at = claims.get("exp")
    if not isinstance(expires_at, int | float) and isinstance(answer.get("expires_in"), int | float):
        expires_at = time.time() + answer["expires_in"]
    if not isinstance(value, str) or not isinstance(expires_at, int | float):
        raise TokenRefusedError(f"{address} issues a token that does not say when it expires (exp, expires_in)")
    return Token(value, float(expires_at), str(claims.get("sub", "")), extensions)


def _claims(token: object) -> dict[str, Any]:
    """Of a JSON Web Token, unverified: the broker verifies. Empty for a token of another kind."""
    parts = token.split(".") if isinstance(token, str) else []
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return {}
    return claims if isinstance(claims, dict) else {}
