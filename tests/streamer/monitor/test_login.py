"""librdkafka's properties as Faust's client takes them; that they log in, the secure pipeline's test shows on a broker."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import SidstreamError
from streamer.monitor.login import credentials
from streamer.settings.kafka import KafkaSettings


def found(security: dict[str, str], **kafka: str) -> Any:
    return credentials(KafkaSettings.model_validate({"security": security, **kafka}))


def test_no_credentials_without_security() -> None:
    assert found({}) is None
    assert found({"security.protocol": "PLAINTEXT"}) is None


@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_sasl_of_librdkafka_becomes_fausts(name: str) -> None:
    given = found({"security.protocol": "sasl_ssl", name: "SCRAM-SHA-512", "sasl.username": "u", "sasl.password": "p"})
    assert (given.protocol.value, given.mechanism.value) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (given.username, given.password) == ("u", "p")
    assert given.ssl_context is not None
    plain = found({"security.protocol": "SASL_PLAINTEXT", "sasl.username": "u", "sasl.password": "p"})
    assert (plain.protocol.value, plain.mechanism.value, plain.ssl_context) == ("SASL_PLAINTEXT", "PLAIN", None)


def test_tls_verification_follows_librdkafkas_switches() -> None:
    strict = found({"security.protocol": "ssl"})
    assert strict.context.check_hostname
    no_names = found({"security.protocol": "ssl", "ssl.endpoint.identification.algorithm": "none"})
    assert not no_names.context.check_hostname
    assert no_names.context.verify_mode.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"security.protocol": "smoke"}, "security.protocol 'SMOKE'"),
        ({"security.protocol": "sasl_ssl", "sasl.mechanism": "GSSAPI"}, "cannot do sasl.mechanism 'GSSAPI'"),
        ({"security.protocol": "sasl_plaintext"}, "sasl.username and sasl.password are needed"),
        ({"security.protocol": "ssl", "ssl.ca.location": "/nowhere.pem"}, "check ssl.ca.location"),
    ],
)
def test_security_that_cannot_work_says_what_to_do(properties: dict[str, str], message: str) -> None:
    with pytest.raises(SidstreamError, match=message):
        found(properties)
