"""The files that the local broker reads: Kafka's properties for a single node on loopback, and where its log goes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

# Events up to 2 MiB, and as dead letters the same with their headers (streamer.kafka.MESSAGE_MAXIMUM_BYTES).
MAXIMUM_BATCH_BYTES: Final = 2 * 1024 * 1024 + 128 * 1024


def broker_properties(host: str, port: int, controller_port: int, *, data: Path) -> str:
    """``server.properties`` of a broker that is its own controller."""
    properties = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@{host}:{controller_port}",
        "listeners": f"BROKER://{host}:{port},CONTROLLER://{host}:{controller_port}",
        "advertised.listeners": f"BROKER://{host}:{port}",
        "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "BROKER",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": _escaped(data),
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
        "message.max.bytes": MAXIMUM_BATCH_BYTES,
        # The cleaner's default of 128 MiB is a quarter of the heap; 32 MiB hold 1.3 million keys a pass.
        "log.cleaner.dedupe.buffer.size": 32 * 1024 * 1024,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }
    return "".join(f"{name}={value}\n" for name, value in properties.items())


def _escaped(path: Path) -> str:
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
