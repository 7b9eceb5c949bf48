"""One trace through the whole pipeline: over HTTP and by our own clients, by spans that a real OTLP receiver has got."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from confluent_kafka import Message
from numpy.typing import NDArray

from retriever.client import Client
from streamer.client.publisher import ItemPublisher
from streamer.settings import Settings
from streamer.tracing.context import TraceContext, context_of, trace_context, working_in
from streamer.tracing.start import tracing_started
from support.gateways import ITEMS, Served
from support.otlp_receiver import OtlpReceiver, ReceivedSpan
from support.processes import committed_records

CALLER = "00f067aa0ba902b7"


def traceparent(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{CALLER}-01", "tracestate": "shop=t61rcWkgMzE"}


def of_trace(spans: Sequence[ReceivedSpan], trace_id: str) -> dict[str, ReceivedSpan]:
    """The spans of one trace by their names."""
    found = [span for span in spans if span.trace_id == trace_id]
    by_name = {span.name: span for span in found}
    assert len(by_name) == len(found), "no operation of it twice"
    return by_name


def batch_of(spans: Sequence[ReceivedSpan], one: ReceivedSpan) -> ReceivedSpan:
    """The batch that a record's span names."""
    [link] = one.links
    [batch] = [span for span in spans if (span.trace_id, span.span_id) == link]
    return batch


def last_of(settings: Settings, topic: str, key: str) -> Message:
    return [record for record in committed_records(settings, topic) if record.key() == key.encode()][-1]


def headers_context(record: Message) -> TraceContext:
    found = context_of(record)
    assert found is not None
    return found


def test_update_and_query_over_http_are_one_connected_trace_each_with_links_to_their_batches(
    filled: Served, receiver: OtlpReceiver, tiny_embeddings: NDArray[np.float32]
) -> None:
    topics, prefix = filled.settings.topics, filled.settings.topics.prefix
    write, question = "4bf92f3577b34da6a3ce929d0e0e4736", "5bf92f3577b34da6a3ce929d0e0e4737"
    new = {"embedding": tiny_embeddings[ITEMS + 1].tolist(), "title": "traced"}
    written = filled.send("PUT", "/items/traced-1", new, headers=traceparent(write))
    after = {"Sidstream-After": written.json["token"]}
    found = filled.send("POST", "/query", {"text": "traced"}, headers=traceparent(question) | after)
    assert found.status == 200, found.body

    names = [{"PUT /items/{item_id}", f"assign {prefix}item-updates", f"index {prefix}item-codes"}]
    names.append({"POST /query", f"answer {prefix}queries"})
    spans = receiver.await_spans(
        lambda spans: all(names[i] <= of_trace(spans, one).keys() for i, one in enumerate((write, question))),
        "every operation of both traces",
    )
    request, assign, index = (of_trace(spans, write)[name] for name in sorted(names[0]))
    services = [f"sidstream-{name}" for name in ("gateway", "assigner", "indexer")]
    assert [one.service for one in (request, assign, index)] == services
    assert [request.parent_id, assign.parent_id, index.parent_id] == [CALLER, request.span_id, assign.span_id]
    assert [request.kind, assign.kind, index.kind] == ["SERVER", "CONSUMER", "CONSUMER"]
    assert index.attributes["messaging.kafka.message.key"] == "traced-1"
    assert index.attributes["sidstream.record.age_ms"] >= assign.attributes["sidstream.record.age_ms"] >= 0
    for one, of, made_by in ((assign, "item-updates", request), (index, "item-codes", assign)):
        batch = batch_of(spans, one)
        assert (batch.name, batch.service, batch.parent_id) == (f"process {prefix}{of}", one.service, "")
        assert (write, made_by.span_id) in batch.links
        assert batch.attributes["messaging.system"] == "kafka"
        assert (
            batch.attributes["messaging.batch.message_count"] >= batch.attributes["sidstream.batch.traced_count"] == 1
        )

    asked, answer = of_trace(spans, question)["POST /query"], of_trace(spans, question)[f"answer {prefix}queries"]
    assert (asked.parent_id, answer.parent_id) == (CALLER, asked.span_id)
    assert (question, asked.span_id) in batch_of(spans, answer).links
    assert (asked.attributes["http.route"], asked.attributes["http.response.status_code"]) == ("/query", 200)
    response = found.headers["traceresponse"]
    assert response == f"00-{question}-{asked.span_id}-01"

    # What was made in the trace says so to whoever reads it, also what another system has to say of it.
    codes = headers_context(last_of(filled.settings, topics.item_codes, "traced-1"))
    assert (codes.trace_id, codes.span_id, codes.tracestate) == (write, assign.span_id, b"shop=t61rcWkgMzE")
    result = headers_context(last_of(filled.settings, topics.results, found.json["query_id"]))
    assert (result.trace_id, result.span_id) == (question, answer.span_id)


def test_update_and_question_of_our_own_clients_begin_traces_or_join_that_of_who_asks(
    filled: Served, receiver: OtlpReceiver, tiny_embeddings: NDArray[np.float32]
) -> None:
    prefix = filled.settings.topics.prefix
    settings = filled.settings.model_copy(update={"tracing": filled.settings.tracing.model_copy(update={"ratio": 1.0})})
    ours = trace_context([("traceparent", f"00-{'6' * 32}-{CALLER}-01".encode())])
    before = len(receiver.spans)
    with tracing_started(settings, "shop") as endpoint, Client(settings) as client:
        assert endpoint == f"{receiver.address}/v1/traces"
        with ItemPublisher(settings) as publisher:
            publisher.update("traced-2", tiny_embeddings[0])
        with working_in(ours):
            answer = client.ask("traced", timeout_seconds=120)
    assert answer.error is None
    wanted = {f"create {prefix}item-updates", f"index {prefix}item-codes", "ask", f"answer {prefix}queries"}
    spans = receiver.await_spans(
        lambda spans: wanted <= {span.name for span in spans[before:]}, "spans of the shop and of the pipeline"
    )[before:]
    [created] = [span for span in spans if span.name == f"create {prefix}item-updates"]
    assert (created.service, created.kind, created.parent_id) == ("sidstream-shop", "PRODUCER", "")
    of_item = of_trace(spans, created.trace_id)
    assert of_item[f"assign {prefix}item-updates"].parent_id == created.span_id
    assert of_item[f"index {prefix}item-codes"].parent_id == of_item[f"assign {prefix}item-updates"].span_id

    of_question = of_trace(spans, "6" * 32)
    ask, send = of_question["ask"], of_question[f"send {prefix}queries"]
    assert (ask.parent_id, send.parent_id, send.kind) == (CALLER, ask.span_id, "PRODUCER")
    assert of_question[f"answer {prefix}queries"].parent_id == send.span_id
    assert ask.seconds > of_question[f"answer {prefix}queries"].seconds


@pytest.mark.parametrize("header", ["", "00-0-0-01", "00-" + 32 * "0" + "-" + CALLER + "-01", "x" * 5_000])
def test_malformed_traceparent_is_no_fault_of_a_request_nor_of_its_records(served: Served, header: str) -> None:
    reply = served.send("DELETE", "/items/untraced", headers={"traceparent": header})
    assert reply.status == 202
    assert "traceresponse" in reply.headers, "a trace of its own, which is not recorded"
    record = last_of(served.settings, served.settings.topics.item_updates, "untraced")
    context = context_of(record)
    assert context is None or not context.sampled
