"""The local broker behind TLS and logins: SASL_SSL with passwords (SCRAM-SHA-512) or tokens (OAUTHBEARER) for clients, mutual TLS
for what it says to itself and for clients with a certificate.

No password is on a command line or in a file of the broker: its log of metadata gets salted hashes (RFC 5802).
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from models.errors import SidstreamError

MECHANISM: Final = "SCRAM-SHA-512"
_BROKER: Final = "broker"
_ITERATIONS: Final = 8_192  # Kafka takes 4,096 to 16,384
_FORBIDDEN_IN_NAMES: Final = frozenset('[],="\\ \n')
_ALLOWED_URLS: Final = "org.apache.kafka.sasl.oauthbearer.allowed.urls"
_OAUTH: Final = "org.apache.kafka.common.security.oauthbearer"


@dataclass(frozen=True)
class TokenRules:
    """Which tokens are a login: those that a key of ``keys_url`` (a JSON Web Key Set) has signed, of this issuer and for this
    audience; their ``sub`` is the user."""

    keys_url: str
    issuer: str
    audience: str

    def broker_properties(self, clients: str) -> dict[str, str]:
        """Kafka's, for the listener ``clients``."""
        prefix = f"listener.name.{clients.lower()}"
        return {
            f"{prefix}.oauthbearer.sasl.jaas.config": f"{_OAUTH}.OAuthBearerLoginModule required;",
            f"{prefix}.oauthbearer.sasl.server.callback.handler.class": f"{_OAUTH}.OAuthBearerValidatorCallbackHandler",
            f"{prefix}.sasl.oauthbearer.jwks.endpoint.url": self.keys_url,
            f"{prefix}.sasl.oauthbearer.expected.issuer": self.issuer,
            f"{prefix}.sasl.oauthbearer.expected.audience": self.audience,
        }


@dataclass(frozen=True)
class BrokerSecurity:
    """What a broker needs to serve SASL_SSL.

    keystore: PEM file of an unencrypted PKCS 8 key and its certificate, whose names hold 127.0.0.1 as an IP address and which
    is good for servers and clients alike. truststore: PEM file of the certificates that signed it, or itself.
    users: name → password, stored when the broker's directory is first used; later changes have no effect there.
    super_users: those that may do everything, while others have the rights that are given to them; None: everyone may.
    tokens: which ones are a login, besides the passwords.
    """

    keystore: Path
    truststore: Path
    users: Mapping[str, str] = field(repr=False)
    super_users: tuple[str, ...] | None = None
    tokens: TokenRules | None = None

    def __post_init__(self) -> None:
        if not self.users:
            raise SidstreamError("a broker with security needs at least one user: nobody could connect")
        for name in self.users:
            if not name or _FORBIDDEN_IN_NAMES & set(name):
                raise SidstreamError(
                    f"the user name {name!r} is empty or has a character that Kafka's tools cannot take"
                )

    def client_properties(self, user: str) -> dict[str, str]:
        """librdkafka's properties for a user, as ``kafka.security`` takes them."""
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": MECHANISM,
            "sasl.username": user,
            "sasl.password": self.users[user],
            "ssl.ca.location": str(self.truststore.absolute()),
        }

    def scram_records(self) -> list[str]:
        """``--add-scram`` arguments of ``kafka-storage format``: salted hashes, as other users see command lines."""
        records = []
        for name, password in self.users.items():
            salt = secrets.token_bytes(24)
            salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
            fields = {
                "name": f'"{name}"',
                "iterations": _ITERATIONS,
                "salt": f'"{base64.b64encode(salt).decode()}"',
                "saltedpassword": f'"{base64.b64encode(salted).decode()}"',
            }
            records.append(f"{MECHANISM}=[{','.join(f'{key}={value}' for key, value in fields.items())}]")
        return records

    def broker_properties(self, clients: str, *internal: str) -> dict[str, str]:
        """Kafka's properties: SCRAM and tokens on the listener ``clients``, certificates of clients on the ``internal`` ones."""
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        mechanisms = [MECHANISM] if self.tokens is None else [MECHANISM, "OAUTHBEARER"]
        properties = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.keystore.absolute()),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.truststore.absolute()),
            f"listener.name.{clients.lower()}.sasl.enabled.mechanisms": ",".join(mechanisms),
            f"listener.name.{clients.lower()}.{MECHANISM.lower()}.sasl.jaas.config": login,
        }
        if self.super_users is not None:
            properties |= {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                # Whoever has a certificate on the internal listeners is the user of its name, or the broker itself.
                "ssl.principal.mapping.rules": f"RULE:^(?:.*,)?CN=([^,]+).*$/$1/,RULE:^.*$/{_BROKER}/",
                "super.users": ";".join(f"User:{name}" for name in (_BROKER, *self.super_users)),
            }
        if self.tokens is not None:
            properties |= self.tokens.broker_properties(clients)
        return properties | {f"listener.name.{name.lower()}.ssl.client.auth": "required" for name in internal}

    def java_options(self) -> list[str]:
        """Since Kafka 4.0 a broker asks no address for keys that its command line does not name."""
        return [] if self.tokens is None else [f"-D{_ALLOWED_URLS}={self.tokens.keys_url}"]
