"""The source of tokens that the settings name, one in a process, and what confluent-kafka asks of it.

Which client asks whom: confluent-kafka's ask librdkafka (``sasl.oauthbearer.method`` oidc), or the function of
``kafka.oauth_token_provider``; the monitor's asks this source in both cases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import structlog

from models.errors import SidstreamError
from streamer.kafka.login.provider import provided_token, token_function
from streamer.kafka.login.token_endpoint import fetch_token, unable
from streamer.kafka.login.tokens import TokenRefusedError, TokenSource, TokenSourceAwayError
from streamer.settings.kafka import KafkaSettings

log = structlog.get_logger(__name__)

_TELL_AGAIN_SECONDS: Final = 10.0
_TOLD_AT: Final[dict[type[SidstreamError], float]] = {}
ConfluentToken = tuple[str, float, str, dict[str, str]]


def token_source(kafka: KafkaSettings) -> TokenSource | None:
    """The process' one source for these settings; ``None`` where no tokens log us in.

    Raises:
        TokenRefusedError: the settings name no source that works here.
    """
    if not kafka.uses_tokens:
        return None
    return _source(kafka.oauth_token_provider, tuple(sorted(kafka.security_properties().items())))


@lru_cache(maxsize=8)
def _source(provider: str, security: tuple[tuple[str, str], ...]) -> TokenSource:
    properties = dict(security)
    if provider:
        function = token_function(provider)
        return TokenSource(lambda: provided_token(provider, function, properties.get("sasl.oauthbearer.config", "")))
    if not_done := unable(properties):
        raise TokenRefusedError(
            f"kafka.security: the monitor cannot do {not_done}: give a function (kafka.oauth_token_provider)"
        )
    return TokenSource(lambda: fetch_token(properties))


def confluent_callback(kafka: KafkaSettings) -> Callable[[str], ConfluentToken] | None:
    """``oauth_cb`` of a client of confluent-kafka, which calls it in a thread of its own; ``None`` where librdkafka needs none.

    Raises:
        TokenRefusedError: the function cannot be loaded.
    """
    source = token_source(kafka) if kafka.oauth_token_provider else None
    if source is None:
        return None

    def give(_configuration: str) -> ConfluentToken:
        try:
            token = source.token()
        except SidstreamError as error:  # the client itself only says that an exception was raised
            tell_no_token(error)
            raise
        return token.value, token.expires_at, token.principal, dict(token.extensions)

    return give


def tell_no_token(error: SidstreamError) -> None:
    """Log why there is none, once in a while: a client that cannot connect tries many times a second."""
    kind, now = type(error), time.monotonic()
    if now - _TOLD_AT.get(kind, -math.inf) >= _TELL_AGAIN_SECONDS:
        _TOLD_AT[kind] = now
        log.error("no_login_token", reason=str(error), next="it is asked for again")


def reason_for_no_token(kafka: KafkaSettings) -> TokenRefusedError | TokenSourceAwayError | None:
    """Asks for a token as the clients do, to say why they get none; ``None`` if we get one, or cannot ask."""
    try:
        if kafka.oauth_token_provider or unable(kafka.security_properties()) is None:
            source = token_source(kafka)
            if source is not None:
                source.token()
    except (TokenRefusedError, TokenSourceAwayError) as error:
        return error
    return None
