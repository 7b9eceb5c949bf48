"""The settings of the cluster: how to reach it, what the topics are called, and the broker that we run by ourselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, SecretStr, model_validator

from streamer.settings.section import Section


class KafkaSettings(Section):
    """How to reach the cluster; ``security``: properties of librdkafka (``security.protocol``, ``sasl.*``, ``ssl.*``, …)."""

    bootstrap_servers: str = Field(
        "127.0.0.1:9092",
        description="host:port of some brokers, with commas between them; absent: 127.0.0.1 and broker.port",
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        "classic",
        description="of the groups of assigners and retrievers; consumer: the broker assigns partitions one by one (KIP-848), "
        "for Kafka 4.0 and later (docs/reliability.md)",
    )
    security: dict[str, SecretStr] = Field(
        default_factory=dict, description="librdkafka properties, for the monitor too (docs/security.md)"
    )
    oauth_token_provider: str = Field(
        "",
        pattern=r"^([A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*)?$",
        description="package.module:function that gives OAUTHBEARER tokens, as (token, seconds since the epoch at which it "
        "expires); absent: kafka.security says how to get them (docs/security.md)",
    )

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        properties = self.security_properties()
        oidc = properties.get("sasl.oauthbearer.method", "default").lower() == "oidc"
        unsecured = properties.get("enable.sasl.oauthbearer.unsecure.jwt", "false").lower() == "true"
        if self.oauth_token_provider and not self.uses_tokens:
            raise ValueError(
                "oauth_token_provider gives tokens: set security.protocol SASL_SSL and sasl.mechanism OAUTHBEARER in security"
            )
        if self.oauth_token_provider and oidc:
            raise ValueError(
                "tokens come from oauth_token_provider or by sasl.oauthbearer.method oidc: set one of the two"
            )
        if self.uses_tokens and not (self.oauth_token_provider or oidc or unsecured):
            raise ValueError(
                "sasl.mechanism OAUTHBEARER needs a source of tokens: sasl.oauthbearer.method oidc in security, or "
                "oauth_token_provider"
            )
        return self

    @property
    def uses_tokens(self) -> bool:
        """Whether the mechanism is OAUTHBEARER."""
        properties = self.security_properties()
        mechanism = properties.get("sasl.mechanism", properties.get("sasl.mechanisms", ""))
        return mechanism.upper() == "OAUTHBEARER" and properties.get("security.protocol", "").upper().startswith("SASL")

    def security_properties(self) -> dict[str, str]:
        """The security settings in clear, for the clients alone."""
        return {name: value.get_secret_value() for name, value in self.security.items()}


TOPIC_NAMES: Final = {
    "item_updates": "item-updates",
    "item_updates_dead_letters": "item-updates.dlq",
    "item_codes": "item-codes",
    "item_attributes": "item-attributes",
    "item_attributes_dead_letters": "item-attributes.dlq",
    "token_counts": "token-counts",
    "layouts": "layouts",
    "drift": "drift",
    "alerts": "alerts",
    "queries": "queries",
    "queries_dead_letters": "queries.dlq",
    "replayed_dead_letters": "dlq.replayed",
    "results": "results",
    "serving": "serving",
    "interactions": "interactions",
    "interactions_dead_letters": "interactions.dlq",
}


_TOPIC_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")


class TopicSettings(Section):
    """Names and shapes of the topics. A name that is not given is ``prefix`` + its default."""

    prefix: str = Field("", description="before each name of a topic, a group and a transaction that is not given")
    item_updates: str
    item_updates_dead_letters: str
    item_codes: str
    item_attributes: str
    item_attributes_dead_letters: str
    token_counts: str
    layouts: str
    drift: str
    alerts: str
    queries: str
    queries_dead_letters: str
    replayed_dead_letters: str
    results: str
    serving: str
    interactions: str
    interactions_dead_letters: str
    partitions: int = Field(
        4, ge=1, description="of item-updates, item-codes, item-attributes, queries, results and interactions"
    )
    replication_factor: int = Field(
        1, ge=1, description="of topics that are created; 3 in production (docs/reliability.md)"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        prefix = data.get("prefix", "")
        if not isinstance(prefix, str):
            prefix = ""  # its fault is told, and that names are missing is none
        return {**{field: prefix + name for field, name in TOPIC_NAMES.items()}, **data}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        fields: dict[str, str] = {}
        for field in TOPIC_NAMES:
            name = getattr(self, field)
            if not _TOPIC_NAME.fullmatch(name) or name in (".", ".."):
                raise ValueError(
                    f"{field} is {name!r}: a topic's name has 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"
                )
            if (other := fields.setdefault(name, field)) != field:
                raise ValueError(f"{other} and {field} are both {name!r}: each topic needs a name of its own")
        return self


class BrokerSettings(Section):
    """The embedded single-node Apache Kafka of ``sidstream broker`` and ``sidstream up``."""

    directory: Path = Field(Path(".sidstream/broker"), description="its data, settings and log")
    port: int = Field(9092, ge=0, le=65535, description="0 takes a free port")
    heap: str = Field("768m", pattern=r"^\d+[mg]$", description="of Java, such as 768m or 2g")
    short_lived: bool = Field(
        False,
        description="compile its code lightly: a third less of the processor in its first half minute, more after minutes",
    )
