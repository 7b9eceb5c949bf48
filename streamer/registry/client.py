"""The client of a schema registry; what it raises is told apart once, here: away, or no such schema."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from models.errors import SidstreamError
from streamer.events.formats.frames import FormatError, RegistryAwayError
from streamer.settings.records import RegistrySettings

if TYPE_CHECKING:  # an extra of its own
    from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

_HTTP_CLIENTS: Final = ("httpx", "httpx2")
_NOT_FOUND: Final = 404
_NO_SUCH_SCHEMA: Final = 40403  # Confluent's code; a wrong path is a 404 without it
_UNKNOWN_SECONDS: Final = 5.0  # for so long a schema that is not there is not asked for again
_UNKNOWN_KEPT: Final = 1_000
INSTALL: Final = "pip install 'sidstream[registry]'"


class RegistryError(SidstreamError):
    """The registry cannot be used as the settings say, or refuses a schema of ours; the message says what to do."""


def registry_client(settings: RegistrySettings) -> SchemaRegistryClient:
    """A client of the registry of the settings; nothing is asked yet.

    Raises:
        RegistryError: the packages are not installed, or a property is not one.
    """
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise RegistryError(
            f"registry.url is set, and reading schemas needs packages that are not installed ({error.name}): {INSTALL}"
        ) from None
    for client in _HTTP_CLIENTS:
        logging.getLogger(client).setLevel(logging.WARNING)  # each request would be a line
    own = {"url": settings.url, "timeout": settings.timeout_seconds, "max.retries": 0}
    secret = {name: value.get_secret_value() for name, value in settings.security.items()}
    try:
        return SchemaRegistryClient(own | secret)
    except (ValueError, TypeError, OSError) as error:
        raise RegistryError(f"registry.security cannot be used: {error}") from None


class Schemas:
    """Schemas by id or GUID, each fetched once."""

    def __init__(self, client: SchemaRegistryClient, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.client = client
        self._url = url
        self._clock = clock
        self._unknown: dict[tuple[Any, ...], float] = {}  # asked → when it was not there

    def schema(self, subject: str, identity: int | str, form: str | None = None) -> Schema:
        """A schema. ``identity``: its id, or its GUID; ``form``: ``serialized`` for a Protobuf descriptor.

        Raises:
            FormatError: there is no such schema.
            RegistryAwayError: the registry cannot be asked.
        """
        asked = (subject, identity, form)
        if self._clock() - self._unknown.get(asked, float("-inf")) < _UNKNOWN_SECONDS:
            raise self._no_schema(identity)
        try:
            if isinstance(identity, int):
                return self.client.get_schema(identity, subject, form)
            return self.client.get_schema_by_guid(identity, form)
        except Exception as error:
            raise self._judged(error, asked) from None

    def descriptor(self, subject: str, identity: int | str) -> Schema:
        """As ``schema``, of Protobuf: its descriptor in base64, or its text where the registry has none. Raises as it."""
        found = self.schema(subject, identity, "serialized")
        # Apicurio's answers with the descriptor's bytes as a text, which are lost then; the text it has.
        text = found.schema_str or ""
        return found if text.isascii() and text.isprintable() else self.schema(subject, identity)

    def version(self, subject: str, version: int) -> Schema:
        """The schema of a subject's version, which another one refers to. Raises as ``schema``."""
        try:
            return self.client.get_version(subject, version).schema
        except Exception as error:
            raise self._judged(error, (subject, f"of {subject}, version {version}")) from None

    def _judged(self, error: Exception, asked: tuple[Any, ...]) -> Exception:
        code = getattr(error, "http_status_code", None)
        if code == _NOT_FOUND and (getattr(error, "error_code", None) == _NO_SUCH_SCHEMA or self._is_a_registry()):
            if len(self._unknown) >= _UNKNOWN_KEPT:
                self._unknown.clear()
            self._unknown[asked] = self._clock()
            return self._no_schema(asked[1])
        return away(self._url, error)

    def _is_a_registry(self) -> bool:
        """Whether the address is that of a registry: what is not found there is not there."""
        try:
            return bool(self.client.get_subjects() is not None)
        except Exception:
            return False

    def _no_schema(self, identity: int | str) -> FormatError:
        what = "schema id" if isinstance(identity, int) else "schema GUID"
        return FormatError(
            "UnknownSchema",
            f"the registry at {self._url} has no {what} {identity}: send with a serializer that uses this registry, or name "
            "the sender's registry in registry.url",
        )


def away(url: str, error: Exception) -> RegistryAwayError:
    """What it means that the registry gave an error instead of a schema: nothing about the value."""
    code = getattr(error, "http_status_code", None)
    if code in {401, 403}:
        why = f"refuses us (HTTP {code}): correct registry.security"
    elif code == _NOT_FOUND:
        why = "has no schemas at this address (HTTP 404): correct registry.url, such as …/apis/ccompat/v7 of Apicurio's"
    elif code is not None:
        why = f"answers with an error (HTTP {code})"
    else:
        why = f"does not answer ({type(error).__name__}: {str(error)[:200]})"
    return RegistryAwayError(f"the schema registry at {url} {why}")
