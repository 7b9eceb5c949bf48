"""The headers of everything that our processes serve over HTTP: nothing is guessed, framed, kept, or run but our own page."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

_NOTHING: Final = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": _NOTHING,
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def page_headers(html: str) -> dict[str, str]:
    """For a page with scripts of its own: those, byte by byte, may run and ask this server; no other may."""
    scripts = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    ]
    policy = f"{_NOTHING}; script-src {' '.join(scripts)}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'"
    return {**HEADERS, "Content-Security-Policy": policy}
