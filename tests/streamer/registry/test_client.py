"""What the client of a registry is given, and what its errors mean."""

from __future__ import annotations

import pytest
from confluent_kafka.schema_registry.error import SchemaRegistryError

from streamer.registry.client import RegistryError, away, registry_client
from streamer.settings import SettingsError, load_settings
from streamer.settings.records import RegistrySettings

URL = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SchemaRegistryError(401, 40101, "no"), "refuses us.*registry.security"),
        (SchemaRegistryError(404, -1, "no"), "correct registry.url"),
        (SchemaRegistryError(503, 50301, "no"), "HTTP 503"),
        (TimeoutError("timed out"), "does not answer .TimeoutError: timed out"),
    ],
)
def test_error_says_what_to_do(error: Exception, words: str) -> None:
    with pytest.raises(Exception, match=words):
        raise away(URL, error)


def test_property_that_there_is_not_is_named() -> None:
    settings = RegistrySettings.model_validate({"url": URL, "security": {"basic.auth.user": "ada:secret"}})
    assert "secret" not in repr(settings)
    with pytest.raises(RegistryError, match=r"registry.security cannot be used: .*basic\.auth\.user"):
        registry_client(settings)


@pytest.mark.parametrize("url", ["http://ada:secret@registry:8081", "registry:8081"])
def test_address_has_no_password_and_a_scheme(url: str) -> None:
    with pytest.raises(SettingsError, match=r"registry\.url") as refused:
        load_settings(registry={"url": url})
    assert "secret" not in str(refused.value)
