"""How Faust's client (aiokafka) logs in: librdkafka's properties, which all other clients take as they are, told to it.

What must hold: what librdkafka can log in with, it logs in with too, or the monitor does not start and says what it cannot do.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import AIOKafkaConnection, OAuthAuthenticator
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from faust.auth import OAuthCredentials, SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver

from models.errors import SidstreamError
from streamer.kafka.errors import LoginRefusedError
from streamer.kafka.login.sources import tell_no_token, token_source
from streamer.kafka.login.tokens import TokenRefusedError, TokenSource, TokenSourceAwayError
from streamer.settings.kafka import KafkaSettings

_WITH_PASSWORD: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_CERTIFICATES_ELSEWHERE: Final = ("ssl.keystore.location", "ssl.certificate.pem", "ssl.key.pem")


class _Tokens(AbstractTokenProvider):  # type: ignore[misc]
    """A source of tokens, as aiokafka asks it at each connection. It cannot renew a login: the broker ends the connection with
    the token, and the next one is made with another."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source
        self._extensions: dict[str, str] = {}

    async def token(self) -> str:
        try:
            token = await asyncio.get_running_loop().run_in_executor(None, self._source.token)
        except (TokenRefusedError, TokenSourceAwayError) as error:
            tell_no_token(error)
            raise KafkaConnectionError(str(error)) from error  # what aiokafka takes for a broker that is away
        self._extensions = dict(token.extensions)
        return token.value

    def extensions(self) -> dict[str, str]:
        return self._extensions


class _Authenticator(OAuthAuthenticator):  # type: ignore[misc]
    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        # The broker answers a token that it refuses with the reason (RFC 7628), which aiokafka takes for success.
        if payload:
            raise SaslAuthenticationFailed(payload.decode("utf-8", "replace"))
        return await super().step(payload)  # type: ignore[no-any-return]


class _Connection(AIOKafkaConnection):  # type: ignore[misc]
    def authenticator_oauth(self) -> _Authenticator:
        return _Authenticator(sasl_oauth_token_provider=self._sasl_oauth_token_provider)


async def check_login(kafka: KafkaSettings) -> None:
    """Log in once as Faust will: its own clients take a refused login for a broker that is away, and try for ever.

    Raises:
        LoginRefusedError: wrong user or password, a token that is refused, or a certificate that is not trusted.
    """
    given = credentials(kafka)
    if given is None:
        return
    for server in kafka.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        connection = _Connection(host, int(port), **driver.credentials_to_aiokafka_auth(given))
        try:
            await connection.connect()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            continue  # it went away during the handshake
        except (
            AuthenticationFailedError,
            SaslAuthenticationFailed,
            UnsupportedSaslMechanismError,
            ssl.SSLError,
        ) as error:
            raise LoginRefusedError(kafka, f"{type(error).__name__}: {error}") from None
        except (TimeoutError, KafkaError, OSError) as error:
            # Of its own certificate a client of TLS 1.3 hears when it reads, which aiokafka takes for a broker that went away.
            cause = error.__cause__
            if isinstance(cause, TokenRefusedError) or (
                isinstance(cause, ssl.SSLError) and "ALERT" in str(cause.reason)
            ):
                raise LoginRefusedError(kafka, str(cause)) from None
            continue  # away; that is waited for elsewhere
        connection.close()
        return


def credentials(kafka: KafkaSettings) -> SASLCredentials | SSLCredentials | OAuthCredentials | None:
    """Faust's credentials of librdkafka's properties; ``None`` for a plain connection.

    Raises:
        SidstreamError: a protocol or mechanism that Faust cannot do, or files that cannot be read.
    """
    properties = kafka.security_properties()
    protocol = properties.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return None
    if protocol not in ("SSL", "SASL_PLAINTEXT", "SASL_SSL"):
        raise SidstreamError(
            f"kafka.security: security.protocol {protocol!r} is not one of plaintext, ssl, sasl_plaintext, sasl_ssl"
        )
    unable = sorted(name for name in _CERTIFICATES_ELSEWHERE if name in properties)
    if unable:
        raise SidstreamError(
            f"kafka.security: the monitor cannot read {', '.join(unable)}: give ssl.certificate.location and ssl.key.location"
        )
    context = _ssl_context(properties) if protocol.endswith("SSL") else None
    if protocol == "SSL":
        return SSLCredentials(context)
    if (source := token_source(kafka)) is not None:
        return OAuthCredentials(oauth_cb=_Tokens(source), ssl_context=context)
    mechanism = properties.get("sasl.mechanism", properties.get("sasl.mechanisms", "PLAIN")).upper()
    if mechanism not in _WITH_PASSWORD:
        raise SidstreamError(
            f"kafka.security: the monitor cannot do sasl.mechanism {mechanism!r}; it can do "
            f"{', '.join(_WITH_PASSWORD)}, OAUTHBEARER"
        )
    if not properties.get("sasl.username") or "sasl.password" not in properties:
        raise SidstreamError("kafka.security: sasl.username and sasl.password are needed with security.protocol sasl_…")
    return SASLCredentials(
        username=properties["sasl.username"],
        password=properties["sasl.password"],
        mechanism=mechanism,
        ssl_context=context,
    )


def _ssl_context(properties: Mapping[str, str]) -> ssl.SSLContext:
    place = properties.get("ssl.ca.location")
    password = properties.get("ssl.key.password")
    folder = place is not None and place != "probe" and Path(place).is_dir()
    try:
        context = ssl.create_default_context(
            cafile=None if folder or place == "probe" else place,
            capath=place if folder else None,
            cadata=properties.get("ssl.ca.pem"),
        )
        if certificate := properties.get("ssl.certificate.location"):
            # An empty password is one too: OpenSSL would ask the terminal for it.
            context.load_cert_chain(certificate, properties.get("ssl.key.location"), password or "")
    except (OSError, ssl.SSLError) as error:
        raise SidstreamError(
            f"kafka.security: the TLS files cannot be used ({error}): check ssl.ca.location, ssl.certificate.location, "
            "ssl.key.location and ssl.key.password"
        ) from None
    if properties.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif properties.get("ssl.endpoint.identification.algorithm", "https").lower() in ("none", ""):
        context.check_hostname = False
    return context
