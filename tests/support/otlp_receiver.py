"""A receiver of OTLP over HTTP, as a collector is one: it keeps the spans of every `ExportTraceServiceRequest` that it gets."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan

from support.processes import wait_until


@dataclass(frozen=True)
class ReceivedSpan:
    """``links``: (trace id, span id) of each; ids in hexadecimal digits."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    failed: bool
    seconds: float
    attributes: dict[str, Any] = field(hash=False)
    links: tuple[tuple[str, str], ...]


class OtlpReceiver:
    """Listens on a free port of loopback; ``status``: what it answers, 503 is one that takes nothing."""

    def __init__(self) -> None:
        self.status = 200
        self.requests = 0
        self._spans: list[ReceivedSpan] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver._take(self.path, self.headers.get("Content-Encoding", ""), body)
                self.send_response(receiver.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nobody asks."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[ReceivedSpan]:
        return list(self._spans)

    def _take(self, path: str, encoding: str, body: bytes) -> bytes:
        assert path == "/v1/traces", path
        self.requests += 1
        if self.status == 200:
            content = gzip.decompress(body) if encoding == "gzip" else body
            for of_process in ExportTraceServiceRequest.FromString(content).resource_spans:
                resource = _attributes(of_process.resource.attributes)
                for scope in of_process.scope_spans:
                    assert scope.scope.name == "sidstream"
                    self._spans += [_received(str(resource["service.name"]), span) for span in scope.spans]
        return ExportTraceServiceResponse().SerializeToString()

    def await_spans(self, wanted: Callable[[Sequence[ReceivedSpan]], bool], what: str) -> list[ReceivedSpan]:
        """Every span that has come once ``wanted`` holds of them."""
        try:
            wait_until(lambda: wanted(self.spans), what=what)
        except AssertionError:
            for span in self.spans:
                print(span)
            raise
        return self.spans

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _received(service: str, span: WireSpan) -> ReceivedSpan:
    return ReceivedSpan(
        service,
        span.name,
        WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.status.code == span.status.STATUS_CODE_ERROR,
        (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        _attributes(span.attributes),
        tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )


def _attributes(found: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in found}
