"""Every setting of every process, from the environment (``SIDSTREAM_…``) and ``sidstream.toml``, validated once.

The environment wins over the file. Nested names use two underscores: ``SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS``.
Everything under ``kafka.security`` is a secret: it is masked wherever settings are printed.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from models.attributes import NAME_RULE, AttributeRules, AttributeType, is_name
from models.errors import SidstreamError
from streamer.gateway_settings import GatewaySettings
from streamer.settings_section import Section
from streamer.shards.partitions import EVERY, numbers_of, text_of
from streamer.tracing_settings import TracingSettings

CONFIGURATION_FILE: Final = "sidstream.toml"
CONFIGURATION_VARIABLE: Final = "SIDSTREAM_CONFIG"


class SettingsError(SidstreamError):
    """A setting is missing, unknown or out of range; the message names it."""


class KafkaSettings(Section):
    """How to reach the cluster; ``security``: properties of librdkafka (``security.protocol``, ``sasl.*``, ``ssl.*``, …)."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port of some brokers, with commas between them")
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
        return {**{field: prefix + name for field, name in TOPIC_NAMES.items()}, **data}


class RegistrySettings(Section):
    """A schema registry that speaks Confluent's API, for values that name their schema (docs/formats.md)."""

    url: str = Field(
        "", description="such as http://registry:8081; several, with commas between; absent: there is none"
    )
    security: dict[str, SecretStr] = Field(
        {},
        description="properties of confluent-kafka's SchemaRegistryClient: basic.auth.user.info, ssl.ca.location, bearer.auth.…",
    )
    timeout_seconds: float = Field(
        5.0, gt=0, description="of one request; a batch waits for as long as none is answered"
    )
    format: Literal["avro", "protobuf", "json"] = Field(
        "avro",
        description="what `sidstream topics create` registers our schemas in, and `sidstream publish --format registry` sends",
    )
    publish: bool = Field(False, description="our own publisher sends item updates so, and not in MessagePack")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if "@" in url:  # the address stands in messages
            raise ValueError(
                "a user and a password go into registry.security, as basic.auth.user.info, not into the address"
            )
        for one in filter(None, url.split(",")):
            if not one.strip().startswith(("http://", "https://", "mock://")):
                raise ValueError(f"{one.strip()!r} is no address of a registry: it begins with http:// or https://")
        return url


class ColumnSettings(Section):
    """Which columns of a row (of a change event, of Kafka Connect, of a registry's schema, or of plain JSON) are which fields of
    an item update; one that is not named has the field's own name. With any of them named, other columns are left out.
    """

    key: str = Field(
        "",
        description="the field of a key that is a map, such as Debezium's, which is the item's id; absent: the key is the id",
    )
    embedding: str = Field("", description="a list of numbers, bytes, base64, or a text like [0.1,0.2]")
    title: str = Field("", description="a text")
    weight: str = Field("", description="a number, or a text that is one")
    updated_at: str = Field(
        "", description="milliseconds since the epoch, a time like 2026-01-31T09:30:00Z, or Connect's"
    )
    dtype: str = Field("", description="float32 or float16, of an embedding in bytes")
    embedding_model: str = Field("", description="the name of what made the embedding")
    attributes: dict[str, str] = Field({}, description="attribute → the column that has it")


class BrokerSettings(Section):
    """The embedded single-node Apache Kafka of ``sidstream broker`` and ``sidstream up``."""

    directory: Path = Field(Path(".sidstream/broker"), description="its data, settings and log")
    port: int = Field(9092, ge=0, le=65535, description="0 takes a free port")
    heap: str = Field("768m", pattern=r"^\d+[mg]$", description="of Java, such as 768m or 2g")
    short_lived: bool = Field(
        False,
        description="compile its code lightly: a third less of the processor in its first half minute, more after minutes",
    )


class IntakeSettings(Section):
    """What any record from outside may carry beside its value; more makes it a dead letter."""

    maximum_headers: int = Field(64, ge=0, description="headers of a record")
    maximum_header_bytes: int = Field(16_384, ge=0, description="names and contents of a record's headers together")


class AttributeSettings(IntakeSettings):
    """Attributes of items, with an update or alone on ``item-attributes``; beyond a ``maximum_…`` a record is a dead letter."""

    filterable: dict[str, AttributeType] = Field(
        {},
        description="field → string, number, boolean or strings (a list of them): what queries may filter on. Another type in an "
        "update is a dead letter; fields that are not named here are stored, of any type",
    )
    maximum_bytes: int = Field(16_384, ge=2, description="of an item's attributes, encoded")
    maximum_fields: int = Field(64, ge=1, description="of an item")
    maximum_string_characters: int = Field(1_024, ge=1, description="of a string, also in a list")
    maximum_list_entries: int = Field(256, ge=0, description="strings in a list")

    @field_validator("filterable")
    @classmethod
    def _check_names(cls, filterable: dict[str, AttributeType]) -> dict[str, AttributeType]:
        for name in filterable:
            if not is_name(name):
                raise ValueError(f"{name!r} is no name of an attribute: {NAME_RULE}")
        return filterable

    def rules(self) -> AttributeRules:
        """The same for whoever reads attributes."""
        return AttributeRules(
            self.filterable,
            self.maximum_bytes,
            self.maximum_fields,
            self.maximum_string_characters,
            self.maximum_list_entries,
        )


class AssignerSettings(IntakeSettings):
    """Item updates → codes."""

    group: str = Field("sidstream-assigner", description="the consumer group, after topics.prefix")
    instance: str = Field("0", description="stable name of this instance; unique within the group")
    batch_size: int = Field(8_000, ge=1, description="events a transaction at the most")
    minimum_batch_interval_ms: float = Field(
        5.0, ge=0, description="between the beginnings of two transactions; more are larger batches, and less work"
    )
    maximum_event_bytes: int = Field(262_144, ge=1_024, description="larger events are dead letters")
    maximum_title_characters: int = Field(8_192, ge=0, description="events with a longer title are dead letters")
    maximum_weight: float = Field(1e12, gt=0, le=1e30, description="events with a greater weight are dead letters")
    strict: bool = Field(False, description="updates with an unknown field are dead letters, not merely counted")
    vectors: bool = Field(
        True,
        description="keep each item's vector, a byte a dimension, beside its codes: new items are found by it (retriever.dense); "
        "it takes D + 4 bytes an item in item-codes and in the index",
    )
    encoder_threads: int = Field(1, ge=1, description="of ONNX Runtime; the codes are the same with any number")
    accept_missed_updates: bool = Field(
        False, description="start although updates or deletions may have been missed; for one start (docs/runbook.md)"
    )


class IndexerSettings(Section):
    """Codes → LMDB, and the census' counts → monitor."""

    partitions: str = Field(
        EVERY,
        description="of item-codes and item-attributes that this host's index holds, as 0-3,6 or a list: a shard; absent: all "
        "(docs/scale.md)",
    )
    batch_size: int = Field(
        30_000, ge=1, description="records an LMDB transaction at the most, near the end of the topic"
    )
    catching_up_batch_size: int = Field(
        400_000,
        ge=1,
        description="far behind it, half of what waits and at the most this; two or three kilobytes of memory a record, "
        "a gigabyte for all of these",
    )
    map_bytes: int = Field(
        1 << 30, ge=1 << 16, description="address space that a new index begins with; doubled whenever it is full"
    )
    minimum_batch_interval_ms: float = Field(
        5.0, ge=0, description="between the beginnings of two transactions; more are larger batches, and less work"
    )
    counts_interval_seconds: float = Field(1.0, gt=0, description="how often changed counts are published")
    maximum_items: int = Field(
        0,
        ge=0,
        description="new items beyond so many are dead letters (IndexFull), known ones are updated; 0: no limit",
    )
    order: Literal["arrival", "updated_at"] = Field(
        "arrival",
        description="which of two updates of an item counts: arrival: the later one in its partition, as Kafka's compaction "
        "keeps it; updated_at: the one with the greater updated_at. Compaction knows offsets alone: once it has removed "
        "the newer update, a rebuild has the older one, which came later",
    )

    @field_validator("partitions", mode="before")
    @classmethod
    def _one_text(cls, given: Any) -> Any:
        if isinstance(given, int) and not isinstance(given, bool):
            given = [given]
        if isinstance(given, list | tuple):
            given = ",".join(map(str, given))
        return text_of(numbers_of(given.strip())) if isinstance(given, str) else given


class GenerationSettings(Section):
    """A codebook's pipeline beside the one that answers; on a machine of its own, share 1 and no interval."""

    catching_up_share: float = Field(
        0.33,
        gt=0,
        le=1,
        description="part of the time that its assigner and its indexer work until they have caught up; they rest in between",
    )
    catching_up_batch: int = Field(1_000, ge=1, description="records that they take at once until then")
    beside_batch_interval_ms: float = Field(
        50.0,
        ge=0,
        description="least time between their batches, a canary's and a previous one's too: each costs a transaction and a sync",
    )


class MonitorSettings(Section):
    """Counts → layouts, alerts, drift. A share is of all live items, 0 to 1."""

    app_id: str = Field("sidstream-monitor", description="names the group, changelog and journal, after topics.prefix")
    interval_seconds: float = Field(1.0, gt=0, description="how often the counts are evaluated")
    drift_interval_seconds: float = Field(5.0, gt=0, description="how often a changed drift record is published")
    bucket_seconds: float = Field(10.0, gt=0, description="of a step in which the window moves on")
    buckets: int = Field(6, ge=1, le=60, description="the rolling window is bucket_seconds × buckets long")

    method: Literal["none", "top_k", "top_p", "all"] = Field(
        "top_k", description="which layer-2 tokens are left out (docs/layouts.md); none: no layout is issued"
    )
    head_size: int | None = Field(None, ge=1, description="K; absent: as many as the bundle's layout has, or M / 10")
    head_share: float = Field(0.85, gt=0, le=1, description="p of top_p")
    exit_factor: float = Field(1.5, ge=1, description="a head token leaves past rank K × this")
    minimum_share_factor: float = Field(2.0, ge=0, description="a head token holds this many times the mean, 1 / M")
    minimum_items: int = Field(1_000, ge=1, description="below this nothing is judged")
    baseline_fill: float = Field(
        0.5, ge=0, description="nor below this part of the items that the bundle was fitted on"
    )
    minimum_interval_seconds: float = Field(30.0, ge=0, description="at most one new layout in this time")
    layout_growth_share: float = Field(0.005, ge=0, description="head tokens have grown when they gained this share")

    growth_share: float = Field(0.01, gt=0, description="alert: a token gained this share beyond its fair part")
    growth_traffic_share: float = Field(0.25, gt=0, description="alert: or this share of all that was gained")
    minimum_growth: int = Field(50, ge=1, description="and at least this many items")
    entropy_change: float = Field(0.05, gt=0, description="alert: a layer's entropy has changed so much since the fit")
    gini_change: float = Field(0.10, gt=0, description="the same of its Gini coefficient")
    standard_deviation_change: float = Field(0.5, gt=0, description="relative change of deviation / mean")
    head_share_change: float = Field(0.10, gt=0, description="of what the most crowded tenth of tokens holds")
    critical_factor: float = Field(2.0, gt=1, description="critical from this many times a threshold")
    clear_factor: float = Field(0.8, gt=0, le=1, description="cleared below this part of a threshold")
    repeat_seconds: float = Field(600.0, gt=0, description="a firing alert is sent again after this time")
    reshortened_seconds: float = Field(60.0, gt=0, description="how long the news of a new layout stays up")

    web_host: str = Field("127.0.0.1", description="where the dashboard listens")
    web_port: int = Field(0, ge=0, le=65535, description="dashboard; 0 switches it off")


class RetrieverSettings(IntakeSettings):
    """Queries → answers. A query beyond a ``maximum_…`` is a dead letter, and gets an answer that says so."""

    shards: int = Field(
        1,
        ge=1,
        description="in how many parts the index is (indexer.partitions); clients ask each, and put their answers together",
    )
    group: str = Field("sidstream-retriever", description="the consumer group, after topics.prefix")
    instance: str = Field("0", description="stable name of this instance; unique within the group")
    batch_size: int = Field(16, ge=1, description="queries decoded together at the most")
    gather_size: int = Field(1_000, ge=1, description="queries looked at ahead, so that late ones are answered at once")
    beams: int = Field(50, ge=1, description="of the search; more for a query whose limit is greater")
    maximum_limit: int = Field(
        100, ge=1, description="items an answer at the most, and beams of a query that asks for so many"
    )
    search: Literal["beam", "exact"] = Field(
        "beam",
        description="exact: branch and bound instead of a beam that may drop the beginning of a good SID; a query may ask for "
        "either; not with the marginal layout",
    )
    exact_budget: int = Field(
        4_096,
        ge=1,
        description="prefixes that the model runs for an exact search; an answer says so where they did not do",
    )
    exact_below: int = Field(
        1_000, ge=0, description="a filter that lets through no more items than this is searched exactly"
    )
    filters_kept: int = Field(16, ge=1, description="filters last used, kept current in memory: a byte an item each")
    maximum_query_bytes: int = Field(131_072, ge=256, description="of all fields of a query together")
    maximum_text_characters: int = Field(2_048, ge=1, description="of a query's text")
    maximum_history: int = Field(256, ge=0, description="item ids in a query's history; each of up to 256 bytes")
    maximum_user_bytes: int = Field(256, ge=1, description="of a query's user")
    maximum_exclusions: int = Field(1_000, ge=0, description="item ids in a query's exclude; each of up to 256 bytes")
    maximum_why_not: int = Field(10, ge=0, description="item ids in a query's why_not; each of up to 256 bytes")
    maximum_slate_rules: int = Field(8, ge=0, description="of a query's slate")
    maximum_slate_candidates: int = Field(
        1_000, ge=1, description="items that are looked at to fill a slate; a query's limit, if that is more"
    )
    maximum_filter_clauses: int = Field(64, ge=1, description="operators of a filter, and its alls, anys and nots")
    maximum_filter_depth: int = Field(8, ge=1, description="of alls, anys and nots in one another")
    maximum_filter_entries: int = Field(1_024, ge=1, description="values in a list of a filter")
    maximum_wait_seconds: float = Field(
        30.0, gt=0, description="a query that waited longer gets an error instead of work; its timeout_ms may say less"
    )
    user_queries_per_second: float = Field(0.0, ge=0, description="of each user, in this process; 0: no limit")
    user_query_burst: int = Field(10, ge=1, description="queries that a user may send at once")
    layout: Literal["pinned", "live", "marginal"] = Field(
        "pinned",
        description="pinned: the one that the model was trained on; live: the newest, for a model trained with layer-2 "
        "dropout; marginal: the newest, by exact sums over what the model writes, for any model; it costs more time",
    )
    ranking: Literal["own_probability", "weight_and_recency", "left_out_token", "history_similarity"] = Field(
        "own_probability",
        description="of the items of an answer; own_probability: the SID's times the item's share of the SID's weight; the "
        "others go SID by SID: left_out_token needs layer-2 tokens seen in training, history_similarity compares the "
        "items' codes with those of the history",
    )
    dense: bool = Field(
        True,
        description="find items by their vectors too, and mix what both legs find: new items are hardly found otherwise. It "
        "takes 4 bytes for each number of a vector and item in memory; with ranking own_probability alone",
    )
    boost_of_new: float | None = Field(
        None,
        ge=-20,
        le=20,
        description="raises (or lowers) what vectors say of items that came after training by a factor of e to this power; "
        "absent: as training chose it",
    )
    threads: int = Field(1, ge=1, description="torch threads")
    device: str = Field(
        "auto", description="where the model runs: cpu, cuda:0, mps; auto: a card if there is one, else the processor"
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="numbers of the model's passes; auto: those of its weights. bfloat16 is faster where the processor or card "
        "multiplies it (avx512_bf16, amx), int8 faster still on a processor (avx512_vnni), with the linear layers alone changed; "
        "answers differ a little (docs/training.md)",
    )
    normaliser: Literal["vocabulary", "layers"] = Field(
        "vocabulary",
        description="what a token's probability is a share of: all tokens, as in training; or those of its layer, which spares a "
        "large vocabulary's head",
    )


class LoggingSettings(Section):
    """One configuration for our log lines and the libraries'."""

    format: Literal["console", "json"] = Field("console", description="json: a JSON object a line")
    level: Literal["debug", "info", "warning", "error"] = Field("info", description="the least that is told")


class MetricsSettings(Section):
    """Prometheus metrics and health over HTTP: ``/metrics``, ``/live``, ``/ready``. Port 0 switches the server off."""

    host: str = Field("127.0.0.1", description="where each process listens")
    port: int = Field(
        0,
        ge=0,
        le=65535,
        description="0 switches it off; of `sidstream up`'s first process, the others have the next ones",
    )
    stalled_seconds: float = Field(30.0, gt=0, description="/live fails when the loop has not turned for so long")
    slow_seconds: float = Field(
        300.0,
        gt=0,
        description="or when a call that may take long (the start, a batch's decoding, a commit) took longer",
    )


class Settings(BaseSettings):
    """All of it. Build it with ``load_settings`` to get errors that a person can read."""

    model_config = SettingsConfigDict(
        env_prefix="SIDSTREAM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    bundle: Path = Field(
        Path(".sidstream/bundle"), description="what fit and train make; it answers until another one is deployed"
    )
    bundles: Path = Field(
        Path(".sidstream/bundles"),
        description="the bundle store: what is deployed, by its id; absent: beside the bundle",
    )
    index: Path = Field(Path(".sidstream/index"), description="of the first codebook")
    indexes: Path = Field(
        Path(".sidstream/indexes"), description="those of the codebooks after it, by their id; absent: beside the first"
    )
    pipeline: str = Field(
        "",
        description="which codebook an assigner or indexer works for, by its id; absent: the one that the settings' bundle has",
    )
    shutdown_seconds: float = Field(
        20.0, gt=0, description="from SIGTERM to the end: a process that is stuck for longer ends at once"
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = Field(default_factory=lambda: TopicSettings.model_validate({}))
    broker: BrokerSettings = BrokerSettings()
    attributes: AttributeSettings = AttributeSettings()
    registry: RegistrySettings = RegistrySettings()
    columns: ColumnSettings = ColumnSettings()
    assigner: AssignerSettings = AssignerSettings()
    indexer: IndexerSettings = IndexerSettings()
    generations: GenerationSettings = GenerationSettings()
    monitor: MonitorSettings = MonitorSettings()
    retriever: RetrieverSettings = RetrieverSettings()
    gateway: GatewaySettings = GatewaySettings()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()

    @model_validator(mode="before")
    @classmethod
    def _stay_together(cls, data: Any) -> Any:
        """Stores that are not named lie on the disk of what they are the stores of."""
        if not isinstance(data, dict):
            return data
        beside = {"bundles": data.get("bundle"), "indexes": data.get("index")}
        return {name: Path(at).parent / name for name, at in beside.items() if isinstance(at, str | Path)} | data

    def in_cluster(self, name: str) -> str:
        """What a group, a transactional id or a Faust app of ours is called: two pipelines share a cluster, never a name."""
        return self.topics.prefix + name

    @property
    def retriever_group(self) -> str:
        """The consumer group of this host's retrievers: those of each shard see every query."""
        held = self.indexer.partitions
        return self.in_cluster(self.retriever.group) + (f"-partitions-{held.replace(',', '_')}" if held else "")

    @property
    def monitor_app_id(self) -> str:
        """The monitor's Faust app, and with it its consumer group, changelog and journal."""
        return self.in_cluster(self.monitor.app_id)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = Path(os.environ.get(CONFIGURATION_VARIABLE) or CONFIGURATION_FILE)
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file)


def load_settings(**overrides: Any) -> Settings:
    """Settings from overrides, environment and file, in this order.

    Raises:
        SettingsError: names each wrong setting, its value's fault, and where settings come from.
    """
    named = os.environ.get(CONFIGURATION_VARIABLE)
    if named and not Path(named).is_file():
        raise SettingsError(
            f"{CONFIGURATION_VARIABLE} names {named}, which does not exist: unset it or create the file"
        )
    try:
        return Settings(**overrides)
    except ValidationError as error:
        # The input is left out of the message: it may be a secret.
        faults = "\n".join(f"  {'.'.join(map(str, fault['loc']))}: {_fault(fault)}" for fault in error.errors())
        raise SettingsError(
            f"settings are not valid; correct them in {named or CONFIGURATION_FILE} or in SIDSTREAM_… variables:\n{faults}"
        ) from None
    except ValueError as error:
        raise SettingsError(f"settings cannot be read from {named or CONFIGURATION_FILE}: {error}") from None


def _fault(fault: ErrorDetails) -> str:
    """What is wrong with one setting; for an unknown name, the known one that looks like it."""
    if fault["type"] != "extra_forbidden":
        return fault["msg"]
    *path, name = map(str, fault["loc"])
    section: type[BaseModel] = Settings
    for part in path:
        section = cast(type[BaseModel], section.model_fields[part].annotation)
    similar = get_close_matches(name, section.model_fields, n=1)
    return "there is no such setting" + (f"; is {similar[0]} meant?" if similar else "")
