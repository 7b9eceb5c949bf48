"""An issuer of OAuth 2.0 tokens: a real token endpoint with TLS, and its public keys as a broker fetches them. Signed by RS256.

For tests: it can be told how long a token lives, whom it is for, and to be away; and it counts what it has issued.
"""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

AUDIENCE = "kafka"
SCOPE = "kafka produce"
_KEY = "key-1"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _encoded(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class TokenIssuer:
    """``clients``: id → secret; a token's ``sub`` is the id. ``lifetime``: seconds of a token."""

    def __init__(self, clients: Mapping[str, str], authority: trustme.CA, directory: Path) -> None:
        self._clients = dict(clients)
        self._private_key = generate_private_key(public_exponent=65537, key_size=2048)
        self.authority = directory / "issuer-ca.pem"
        authority.cert_pem.write_to_path(str(self.authority))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self.lifetime = 3600.0
        self.audience = AUDIENCE
        self.away = False
        self.issued: Counter[str] = Counter()
        self.asked: list[dict[str, str]] = []
        self._servers = ExitStack()
        self._token_port = self._keys_port = 0

    @property
    def endpoint(self) -> str:
        return f"https://127.0.0.1:{self._token_port}/token"

    @property
    def identity_endpoint(self) -> str:
        """As that of Azure's machines: no secret, but a header."""
        return f"https://127.0.0.1:{self._token_port}/identity"

    @property
    def redirecting(self) -> str:
        return f"https://127.0.0.1:{self._token_port}/moved"

    @property
    def keys_url(self) -> str:
        return f"http://127.0.0.1:{self._keys_port}/keys"

    @property
    def name(self) -> str:
        return "https://issuer.test"

    def client_properties(self, client: str, secret: str | None = None) -> dict[str, str]:
        """librdkafka's, for OAUTHBEARER by client credentials; ``secret``: another one than the client's."""
        return {
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": client,
            "sasl.oauthbearer.client.secret": self._clients[client] if secret is None else secret,
            "sasl.oauthbearer.scope": SCOPE,
            "sasl.oauthbearer.token.endpoint.url": self.endpoint,
            "https.ca.location": str(self.authority),
        }

    def token(self, client: str) -> str:
        """A new one."""
        now = time.time()
        header = {"alg": "RS256", "typ": "JWT", "kid": _KEY}
        claims = {
            "iss": self.name, "aud": self.audience, "sub": client, "iat": int(now), "exp": now + self.lifetime,
        }  # fmt: skip
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        self.issued[client] += 1
        return f"{signed}.{_encoded(self._private_key.sign(signed.encode(), PKCS1v15(), SHA256()))}"

    def _keys(self) -> dict[str, Any]:
        numbers = self._private_key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": _KEY,
            "n": _number(numbers.n),
            "e": _number(numbers.e),
        }
        return {"keys": [key]}

    def _answer(self, path: str, headers: Any, body: str) -> tuple[int, dict[str, Any]]:
        if self.away:
            return 503, {"error": "temporarily_unavailable"}
        route, _, query = path.partition("?")
        if route == "/identity" and headers["Metadata"] == "true":
            self.asked.append(dict(urllib.parse.parse_qsl(query)))
            return 200, {"access_token": self.token(self.asked[-1]["client_id"])}
        if route == "/moved":
            return 307, {}
        if route != "/token":
            return 404, {}
        self.asked.append(dict(urllib.parse.parse_qsl(body)))
        kind, _, credentials = headers["Authorization"].partition(" ")
        client, _, secret = base64.b64decode(credentials).decode().partition(":")
        if kind != "Basic" or self._clients.get(client) != secret:
            return 401, {"error": "invalid_client", "error_description": "Invalid client or\nwrong secret"}
        if self.asked[-1] != {"grant_type": "client_credentials", "scope": SCOPE}:
            return 400, {"error": "invalid_scope"}
        return 200, {"access_token": self.token(client), "expires_in": self.lifetime, "token_type": "Bearer"}

    def __enter__(self) -> Self:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
                self._send(*issuer._answer(self.path, self.headers, body))

            def do_GET(self) -> None:
                keys = self.path == "/keys"
                self._send(*((200, issuer._keys()) if keys else issuer._answer(self.path, self.headers, "")))

            def _send(self, status: int, answer: dict[str, Any]) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", issuer.endpoint)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments: object) -> None:
                pass

        tokens, keys = (ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2))
        tokens.socket = self._context.wrap_socket(tokens.socket, server_side=True)
        self._token_port, self._keys_port = tokens.server_port, keys.server_port
        for server in (tokens, keys):
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            self._servers.callback(thread.join)
            self._servers.callback(server.server_close)
            self._servers.callback(server.shutdown)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._servers.close()
