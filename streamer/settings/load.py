"""Every setting of every process, from the environment (``SIDSTREAM_…``) and ``sidstream.toml``, validated once.

The environment wins over the file. Nested names use two underscores: ``SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS``.
Everything under ``kafka.security`` is a secret: it is masked wherever settings are printed.
"""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, cast

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource
from pydantic_settings import SettingsError as SourceError

from models.errors import SidstreamError
from streamer.settings.environment import DELIMITER, PREFIX, broken_json, unknown_variables
from streamer.settings.gateway import GatewaySettings
from streamer.settings.kafka import BrokerSettings, KafkaSettings, TopicSettings
from streamer.settings.monitor import MonitorSettings
from streamer.settings.pipeline import AssignerSettings, GenerationSettings, IndexerSettings
from streamer.settings.process import LoggingSettings, MetricsSettings
from streamer.settings.records import AttributeSettings, ColumnSettings, RegistrySettings
from streamer.settings.retriever import RetrieverSettings
from streamer.settings.tracing import TracingSettings

CONFIGURATION_FILE: Final = "sidstream.toml"
CONFIGURATION_VARIABLE: Final = "SIDSTREAM_CONFIG"


class SettingsError(SidstreamError):
    """A setting is missing, unknown or out of range; the message names it."""


class Settings(BaseSettings):
    """All of it. Build it with ``load_settings`` to get errors that a person can read."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        extra="forbid",
        frozen=True,
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

    @field_validator("bundle", "bundles", "index", "indexes", mode="before")
    @classmethod
    def _name_a_directory(cls, at: Any) -> Any:
        if at == "":
            raise ValueError("is empty: name a directory, or leave it out")
        return at

    @model_validator(mode="before")
    @classmethod
    def _stay_together(cls, data: Any) -> Any:
        """Stores that are not named lie on the disk of what they are the stores of."""
        if not isinstance(data, dict):
            return data
        beside = {"bundles": data.get("bundle"), "indexes": data.get("index")}
        return {name: Path(at).parent / name for name, at in beside.items() if at and isinstance(at, str | Path)} | data

    @model_validator(mode="before")
    @classmethod
    def _find_own_broker(cls, data: Any) -> Any:
        """A broker of ours that has a port of its own is where everything looks for the cluster, unless told otherwise."""
        if not isinstance(data, dict):
            return data
        broker, kafka = data.get("broker", {}), data.get("kafka", {})
        if isinstance(broker, dict) and isinstance(kafka, dict) and str(broker.get("port") or 0) != "0":
            return data | {"kafka": {"bootstrap_servers": f"127.0.0.1:{broker['port']}"} | kafka}
        return data

    @property
    def brings_broker(self) -> bool:
        """Whether the cluster is a broker that `up` starts: none is named, or one at the port that ``broker.port`` names."""
        is_named = "bootstrap_servers" in self.kafka.model_fields_set
        return not is_named or ("port" in self.broker.model_fields_set and self.names_own_broker)

    @property
    def names_own_broker(self) -> bool:
        """Whether ``kafka.bootstrap_servers`` is where a broker with these settings listens."""
        return self.kafka.bootstrap_servers in (f"{host}:{self.broker.port}" for host in ("127.0.0.1", "localhost"))

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
    if unknown := unknown_variables(Settings, os.environ):
        raise SettingsError(
            "the environment has variables that nothing reads; correct or unset them:\n" + "\n".join(unknown)
        )
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
    except SourceError as error:
        faults = "\n".join(broken_json(Settings, os.environ)) or f"  {error}"
        raise SettingsError(f"settings cannot be read from the environment:\n{faults}") from None
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
