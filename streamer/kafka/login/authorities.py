"""Whom this machine trusts, for librdkafka's HTTPS: its wheels look where Red Hat has the file, and trust nobody elsewhere."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat, Fedora, Amazon
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # BSD, macOS
)


def authorities_file() -> str | None:
    """The file of the certificates that this machine trusts; ``None`` if it is at no place that we know."""
    for place in (ssl.get_default_verify_paths().cafile, *_FILES):
        if place is not None and Path(place).is_file():
            return place
    return None


def with_authorities(properties: Mapping[str, str]) -> dict[str, str]:
    """librdkafka's properties, with ``https.ca.location`` where it fetches tokens and nothing else says whom to trust."""
    fetches = properties.get("sasl.oauthbearer.method", "").lower() == "oidc"
    told = properties.get("https.ca.location", "probe") != "probe" or "https.ca.pem" in properties
    place = authorities_file() if fetches and not told else None
    return dict(properties) if place is None else {**properties, "https.ca.location": place}
