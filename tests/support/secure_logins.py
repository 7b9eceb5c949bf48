"""A cluster over TLS whose users log in by passwords, tokens and certificates, and settings of each user."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import tomli_w
import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from streamer.kafka.clients import client_configuration
from streamer.local.broker import LocalBroker
from streamer.local.broker_security import BrokerSecurity, TokenRules
from streamer.operations.acls import acl_lines
from streamer.settings import Settings
from streamer.settings.kafka import KafkaSettings
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess
from support.token_issuer import AUDIENCE, TokenIssuer

USER = "pipeline"
PASSWORD = 'correct "horse" = battery, staple\\$7c1f'  # with all that a configuration file could trip over
# Who has the rights of its lines alone.
LIMITED = ("producer", "follower", "assigner", "indexer", "monitor", "retriever", "gateway", "client")
WRONG_PASSWORD = "wrong-horse-9d2e"
SECRET = "client-secret-1f6a:+/%"
KEY_PASSWORD = "key-password-5e0b"
SECRETS = (PASSWORD, SECRET, KEY_PASSWORD)
# How each of them logs in; who is not named here, by password.
BY_TOKEN = ("assigner", "monitor", "retriever")
BY_CERTIFICATE = ("indexer", "monitor")
TOKEN_SECONDS = 8.0
PROVIDER = """\
import json, ssl, time, urllib.request

def token(configuration):
    address, authority = configuration.split()
    request = urllib.request.Request(address, headers={"Metadata": "true"})
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=authority)) as answer:
        return json.load(answer)["access_token"], time.time() + 8
"""


def pem_keystore(certificate: trustme.LeafCert, path: Path) -> Path:
    """Kafka reads PKCS 8 keys alone."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + b"".join(part.bytes() for part in certificate.cert_chain_pems))
    return path


def broker_security(directory: Path, issuer: TokenIssuer) -> BrokerSecurity:
    """Writes the keys and certificates of everybody into the directory."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(directory / "another-ca.pem"))
    keystore = pem_keystore(authority.issue_cert("127.0.0.1"), directory / "broker.pem")
    stranger = trustme.CA().issue_cert("stranger.test", common_name="sidstream-monitor")
    stranger.private_key_pem.write_to_path(str(directory / "stranger.key"))
    stranger.cert_chain_pems[0].write_to_path(str(directory / "stranger.certificate"))
    for name in BY_CERTIFICATE:
        certificate = authority.issue_cert(f"{name}.test", common_name=f"sidstream-{name}")
        pem = load_pem_private_key(certificate.private_key_pem.bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(KEY_PASSWORD.encode())
        )
        (directory / f"{name}.key").write_bytes(pem)
        certificate.cert_chain_pems[0].write_to_path(str(directory / f"{name}.pem"))
    users = {USER: PASSWORD, "reader": "another-password"} | {f"sidstream-{name}": PASSWORD for name in LIMITED}
    rules = TokenRules(issuer.keys_url, issuer.name, AUDIENCE)
    return BrokerSecurity(keystore, directory / "ca.pem", users, super_users=(USER,), tokens=rules)


class SecureProcess(SidstreamProcess):
    """With the secrets in its configuration: settings are dumped with them masked."""

    def __init__(self, settings: Settings, command: str, directory: Path, *, name: str | None = None) -> None:
        super().__init__(settings, command, directory, name=name)
        configuration = directory / f"{name or command}.toml"
        values = settings.model_dump(mode="json", exclude_none=True)
        assert not [secret for secret in SECRETS if secret in str(values)]
        values["kafka"]["security"] = settings.kafka.security_properties()
        configuration.write_text(tomli_w.dumps(values))
        self.configuration = configuration


def with_kafka(settings: Settings, **kafka: object) -> Settings:
    return settings.model_copy(
        update={"kafka": KafkaSettings.model_validate({"bootstrap_servers": settings.kafka.bootstrap_servers, **kafka})}
    )


def with_security(settings: Settings, **changes: str) -> Settings:
    changed = {name.replace("_", "."): value for name, value in changes.items()}
    return with_kafka(settings, security={**settings.kafka.security_properties(), **changed})


def give_rights(settings: Settings) -> None:
    """What `sidstream acls` prints, as kafka-acls does it."""
    admin = AdminClient(client_configuration(settings.kafka))
    kinds = {
        "--topic": ResourceType.TOPIC,
        "--group": ResourceType.GROUP,
        "--transactional-id": ResourceType.TRANSACTIONAL_ID,
    }
    bindings = []
    for line in acl_lines(settings, {}):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        [(kind, name)] = [(kinds[word], words[place + 1]) for place, word in enumerate(words) if word in kinds]
        pattern = ResourcePatternType.PREFIXED if words[-1] == "prefixed" else ResourcePatternType.LITERAL
        principal = words[words.index("--allow-principal") + 1]
        for place, word in enumerate(words):
            if word == "--operation":
                operation = AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", words[place + 1]).upper()]
                bindings.append(AclBinding(kind, name, pattern, principal, "*", operation, AclPermissionType.ALLOW))
    for done in admin.create_acls(bindings).values():
        done.result(PATIENCE_SECONDS)


@dataclass(frozen=True)
class Logins:
    """Settings of each user, who logs in in a way of their own."""

    settings: Settings
    broker: LocalBroker
    security: BrokerSecurity
    issuer: TokenIssuer
    directory: Path
    """Of keys and certificates, and of the provider's module, which Python finds there."""

    @property
    def _over_tls(self) -> dict[str, str]:
        return {"security.protocol": "SASL_SSL", "ssl.ca.location": str(self.security.truststore)}

    def by_password(self, name: str) -> Settings:
        return with_security(self.settings, sasl_username=f"sidstream-{name}")

    def by_token(self, name: str, secret: str | None = None) -> Settings:
        tokens = self.issuer.client_properties(f"sidstream-{name}", secret)
        return with_kafka(self.settings, security={**self._over_tls, **tokens})

    def by_certificate(self, name: str) -> Settings:
        properties = {
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.security.truststore),
            "ssl.certificate.location": str(self.directory / f"{name}.pem"),
            "ssl.key.location": str(self.directory / f"{name}.key"),
            "ssl.key.password": KEY_PASSWORD,
        }
        return with_kafka(self.settings, bootstrap_servers=self.broker.certificate_servers, security=properties)

    def by_provider(self, name: str) -> Settings:
        configuration = f"{self.issuer.identity_endpoint}?client_id=sidstream-{name} {self.issuer.authority}"
        tokens = {"sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.config": configuration}
        security = {**self._over_tls, **tokens}
        return with_kafka(self.settings, security=security, oauth_token_provider="shops_login:token")
