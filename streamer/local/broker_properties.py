"""The files that the local broker reads: Kafka's properties for a single node on loopback, and where its log goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from streamer.events.topics import MAXIMUM_BATCH_BYTES
from streamer.local.broker_security import BrokerSecurity

# Of a controller that is started for nothing else than to notice a death that is known already.
_SESSION_MS: Final = 500


def broker_properties(host: str, ports: Sequence[int], *, data: Path, security: BrokerSecurity | None = None) -> str:
    """``server.properties`` of a broker that is its own controller.

    ``ports``: of the clients' listener and of the controller's; with ``security`` also of the broker's own, as its
    transaction coordinator writes markers through a listener.
    """
    return _written(_properties(host, ports, data, security))


def controller_properties(
    host: str, ports: Sequence[int], *, data: Path, security: BrokerSecurity | None = None
) -> str:
    """Those of the same node's controller without its broker, which it takes for dead after half a second."""
    properties = _properties(host, ports, data, security)
    del properties["advertised.listeners"], properties["inter.broker.listener.name"]
    properties |= {
        "process.roles": "controller",
        "listeners": f"CONTROLLER://{host}:{ports[1]}",
        "broker.session.timeout.ms": _SESSION_MS,
        "broker.heartbeat.interval.ms": _SESSION_MS // 2,
    }
    return _written(properties)


def _properties(host: str, ports: Sequence[int], data: Path, security: BrokerSecurity | None) -> dict[str, object]:
    names = ["BROKER", "CONTROLLER"] if security is None else ["BROKER", "CONTROLLER", "INTERNAL"]
    listeners = [f"{name}://{host}:{port}" for name, port in zip(names, ports, strict=True)]
    protocols = dict.fromkeys(names, "PLAINTEXT") if security is None else dict.fromkeys(names, "SSL")
    if security is not None:
        protocols["BROKER"] = "SASL_SSL"
    properties: dict[str, object] = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{host}:{ports[1]}",
        "listeners": ",".join(listeners),
        "advertised.listeners": ",".join(listener for listener in listeners if not listener.startswith("CONTROLLER")),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "inter.broker.listener.name": "BROKER" if security is None else "INTERNAL",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        # A missing topic must be an error and not a topic of a wrong shape.
        "auto.create.topics.enable": "false",
        "default.replication.factor": 1,
        "min.insync.replicas": 1,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # Of groups of the newer protocol (KIP-848), whose members cannot say it themselves: as ours say for the classic one.
        "group.consumer.min.session.timeout.ms": 6_000,
        "group.consumer.session.timeout.ms": 6_000,
        "group.consumer.min.heartbeat.interval.ms": 1_000,
        "group.consumer.heartbeat.interval.ms": 2_000,
        "message.max.bytes": MAXIMUM_BATCH_BYTES,
        # The cleaner's default of 128 MiB is a quarter of the heap; 32 MiB hold 1.3 million keys a pass.
        "log.cleaner.dedupe.buffer.size": 32 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }
    if security is not None:
        properties |= security.broker_properties("BROKER", "CONTROLLER", "INTERNAL")
    return properties


def _written(properties: Mapping[str, object]) -> str:
    return "".join(f"{name}={_escaped(str(value))}\n" for name, value in properties.items())


def _escaped(path: Path | str) -> str:
    """As Java reads properties: Latin-1, with a backslash for an escape."""
    text = str(path).replace("\\", "\\\\")
    utf16 = text.encode("utf-16-be")
    units = (int.from_bytes(utf16[at : at + 2], "big") for at in range(0, len(utf16), 2))
    return "".join(chr(unit) if unit < 128 else f"\\u{unit:04x}" for unit in units)


def logging_properties(log_file: Path) -> str:
    """``log4j2.properties``: everything into one rolled file, nothing on the terminal."""
    path = _escaped(log_file)
    return f"""\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={path}
appender.file.filePattern={path}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{{ISO8601}} %p %m (%c)%n
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""
