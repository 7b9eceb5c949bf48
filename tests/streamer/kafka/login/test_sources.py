"""Which source the settings name."""

from __future__ import annotations

import time

import pytest

from streamer.kafka.clients import client_configuration
from streamer.kafka.login.authorities import authorities_file, with_authorities
from streamer.kafka.login.sources import confluent_callback, reason_for_no_token, token_source
from streamer.kafka.login.tokens import TokenRefusedError
from streamer.settings.kafka import KafkaSettings

TOKENS = {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}
OIDC = {**TOKENS, "sasl.oauthbearer.method": "oidc"}


def settings(security: dict[str, str], provider: str = "") -> KafkaSettings:
    return KafkaSettings.model_validate({"security": security, "oauth_token_provider": provider})


def an_hour(configuration: str) -> tuple[str, float]:
    return f"token of {configuration}", time.time() + 3600


def test_password_needs_no_source() -> None:
    kafka = settings({"security.protocol": "SASL_SSL", "sasl.username": "u", "sasl.password": "p"})
    assert token_source(kafka) is None
    assert reason_for_no_token(kafka) is None
    assert "oauth_cb" not in client_configuration(kafka)


def test_function_serves_confluent_kafka_and_the_monitor_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "shops_login", __import__("types").SimpleNamespace(token=an_hour))
    kafka = settings({**TOKENS, "sasl.oauthbearer.config": "shop"}, "shops_login:token")
    source = token_source(kafka)
    assert source is not None
    assert source is token_source(kafka), "one in a process"
    token = source.token()
    assert client_configuration(kafka)["oauth_cb"]("") == ("token of shop", token.expires_at, "", {})


def test_librdkafka_asks_for_its_tokens_itself_and_trusts_whom_this_machine_trusts() -> None:
    kafka = settings(OIDC)
    assert confluent_callback(kafka) is None
    configuration = client_configuration(kafka)
    assert "oauth_cb" not in configuration
    assert configuration.get("https.ca.location") == authorities_file()
    assert with_authorities({**OIDC, "https.ca.location": "/shop.pem"})["https.ca.location"] == "/shop.pem"
    assert "https.ca.location" not in with_authorities({**OIDC, "https.ca.pem": "…"})
    assert "https.ca.location" not in with_authorities(TOKENS)


def test_way_that_the_monitor_cannot_do_is_named_to_it_and_left_to_librdkafka() -> None:
    kafka = settings({**OIDC, "sasl.oauthbearer.metadata.authentication.type": "aws_iam"})
    assert reason_for_no_token(kafka) is None
    with pytest.raises(TokenRefusedError, match=r"cannot do .*aws_iam.*kafka\.oauth_token_provider"):
        token_source(kafka)
