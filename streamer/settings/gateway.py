"""The settings of the gateway: where it listens, whom it lets in, and how much of everything it takes."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from streamer.settings.section import Section


def is_loopback(host: str) -> bool:
    """Whether an address is heard on this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class GatewaySettings(Section):
    """HTTP → Kafka (docs/gateway.md). A client is who has a key, or a certificate; without either, an address."""

    host: str = Field("127.0.0.1", description="where it listens")
    port: int = Field(8080, ge=1, le=65535)
    clients: Path | None = Field(
        None,
        description="a TOML file of clients and the hashes of their keys, read again when it changes; absent: no keys",
    )
    tls_certificate: Path | None = Field(None, description="PEM of the server, with its chain; absent: no TLS")
    tls_key: Path | None = Field(None, description="PEM of its private key; absent: in the certificate's file")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM of who signs the clients' certificates: each must then show one, and is called by its name",
    )
    open: bool = Field(False, description="serve beyond this machine although no client needs a key or a certificate")
    wait_seconds: float = Field(
        10.0, gt=0, description="how long a request waits for its answer; then 504 with the id to fetch it by"
    )
    maximum_waiting: int = Field(
        1_000, ge=1, description="queries that have no answer yet; more are told to come again"
    )
    client_waiting: int = Field(100, ge=1, description="the same, of each client")
    client_requests_per_second: float = Field(
        0.0, ge=0, description="of each client that has no rate of its own; 0: no limit"
    )
    client_request_burst: int = Field(100, ge=1, description="requests that a client may send at once")
    maximum_writing: int = Field(10_000, ge=1, description="writes that the broker has not confirmed yet")
    maximum_lines: int = Field(
        100_000, ge=1, description="lines of one POST /items; what follows is refused, and said so"
    )
    maximum_indexed_waits: int = Field(
        16, ge=1, description="queries that wait for writes to be indexed; each has a thread and a client of Kafka"
    )
    answers_kept: int = Field(10_000, ge=0, description="late answers that are kept to be fetched")
    answers_kept_bytes: int = Field(64 << 20, ge=0, description="of all of them together; the oldest go first")
    answers_kept_seconds: float = Field(300.0, gt=0, description="for how long each is kept")
    token_secret: SecretStr | None = Field(
        None,
        description="signs the tokens of writes: the same for all gateways, so that each takes the tokens of the others; absent: "
        "made at each start",
    )

    @property
    def address(self) -> str:
        """Where it is asked."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls_certificate is None else 'https'}://{host}:{self.port}"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.tls_certificate is None and (self.tls_key or self.tls_client_ca):
            raise ValueError("tls_key and tls_client_ca go with tls_certificate: name that too")
        if not (self.clients or self.tls_client_ca or self.open or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} is heard beyond this machine, and nobody needs a key: name gateway.clients (keys) or "
                "gateway.tls_client_ca (certificates), or say gateway.open = true"
            )
        return self
