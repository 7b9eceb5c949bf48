"""The gateway as a process before real assigner, indexer and retriever: items in, queries answered, over HTTP alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray

from streamer.events.records import ANSWER, Answer
from streamer.kafka.clients import producer_configuration
from streamer.settings import Settings
from support.gateway_requests import Reply, send
from support.gateways import ITEMS, Served, start
from support.patience import PATIENCE_SECONDS
from support.processes import SidstreamProcess, committed_records, free_port, wait_until


def ids(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    return [item["item_id"] for item in reply.json["items"]]


def test_query_sees_what_was_written_under_its_token(filled: Served, tiny_embeddings: NDArray[np.float32]) -> None:
    new = {"embedding": tiny_embeddings[ITEMS].tolist(), "title": "a new one"}
    path = "/items/" + quote("shoes/red 7", safe="")
    written = filled.send("PUT", path, new)
    assert (written.status, written.json["id"]) == (202, "shoes/red 7")
    after = {"Sidstream-After": written.headers["sidstream-token"]}
    query = {"text": "thing", "limit": 100, "history": ["item-1"]}
    assert "shoes/red 7" in ids(filled.send("POST", "/query", query, headers=after))

    priced = filled.send("PATCH", path + "/attributes", {"price": 12.5})
    both = {"Sidstream-After": f"{written.json['token']}, {priced.json['token']}"}
    cheap = query | {"filter": {"field": "price", "lte": 20}}
    assert ids(filled.send("POST", "/query", cheap, headers=both)) == ["shoes/red 7"]

    free = filled.send("DELETE", path + "/attributes")
    found = filled.send("POST", "/query", cheap, headers={"Sidstream-After": free.json["token"]})
    assert (ids(found), found.json["error"]["kind"]) == ([], "NothingEligible"), "an answer, with none and why"

    gone = filled.send("DELETE", path)
    after = {"Sidstream-After": gone.json["token"]}
    assert "shoes/red 7" not in ids(filled.send("POST", "/query", query, headers=after))


def test_write_that_the_assigner_refuses_is_told_to_the_query_that_waits_for_it(filled: Served) -> None:
    """The gateway passes on what is for another codebook; here no one has that."""
    other = {"embedding": [1.0, 2.0], "embedding_model": "of another codebook"}
    written = filled.send("PUT", "/items/elsewhere", other)
    assert written.status == 202
    waited = filled.send("POST", "/query", {"text": "thing"}, headers={"Sidstream-After": written.json["token"]})
    assert (waited.status, waited.kind) == (504, "NotIndexed")
    assert "of another codebook" in waited.json["detail"]


def test_query_in_messagepack_and_one_with_everything_are_answered(filled: Served) -> None:
    body = msgspec.msgpack.encode({"text": "thing", "limit": 3})
    packed = filled.send("POST", "/query", body, headers={"Content-Type": "application/msgpack"})
    assert len(ids(packed)) == 3
    whole = filled.ask(text="thing", history=["item-1"], limit=5, explain=True, why_not=["never"], exclude=["item-2"])
    assert len(ids(whole)) == 5
    assert whole.json["explanation"]["live_items"] >= ITEMS
    assert whole.json["why_not"][0]["reason"] == "not_indexed"


WRONG: list[tuple[str, str, Any, int, str, str]] = [
    ("POST", "/query", {"text": "x", "limt": 3}, 400, "UnknownField", "is limit meant"),
    ("POST", "/query", {}, 400, "EmptyQuery", "send text, history"),
    ("POST", "/query", {"text": "x", "limit": 0}, 400, "InvalidEvent", "limit 0"),
    ("POST", "/query", {"text": "x", "filter": {"field": "prise", "lte": 3}}, 400, "InvalidFilter", "price"),
    ("POST", "/query", {"embedding": [1.0, 2.0]}, 400, "WrongDimension", "takes 8"),
    ("POST", "/query", b"{nope", 400, "UndecodableEvent", "JSON"),
    ("POST", "/query", {"text": "x" * 200_000}, 413, "EventTooLarge", "limit"),
    ("POST", "/query", {"text": "x", "part": {"step": "search", "round": 0}}, 400, "InvalidPart", "leave it out"),
    ("PUT", "/items/a", {"title": "kettle"}, 400, "InvalidEvent", "embedding"),
    ("PUT", "/items/a", {"embedding": [1.0]}, 400, "WrongDimension", "takes 8"),
    ("PUT", "/items/a", {"embedding": [0.0] * 8}, 400, "EmbeddingZero", "delete the item"),
    ("PUT", "/items/a", {"embedding": [1.0] * 8, "id": "b"}, 400, "ContradictingId", "that is the item's id"),
    ("PUT", "/items/a", b"", 400, "EmptyEvent", "DELETE"),
    ("PUT", "/items/%20a", {"embedding": [1.0] * 8}, 400, "InvalidId", "white space"),
    ("PUT", "/items/%ff", {"embedding": [1.0] * 8}, 400, "UndecodableId", "UTF-8"),
    ("PUT", "/items/" + "a" * 300, {"embedding": [1.0] * 8}, 400, "IdTooLong", "256"),
    ("PUT", "/items/a", {"embedding": [1.0] * 60_000}, 413, "EventTooLarge", "maximum_event_bytes"),
    ("PATCH", "/items/a/attributes", {"price": "cheap"}, 400, "InvalidAttributes", "price"),
    ("PATCH", "/items/a/attributes", {"price": None}, 400, "InvalidAttributes", "price"),
    ("PATCH", "/items/a/attributes", b"[1]", 400, "UndecodableEvent", "JSON"),
    ("GET", "/answers/unknown", None, 404, "UnknownQuery", "keeps"),
    ("GET", "/item", None, 404, "NoSuchPath", "openapi.json"),
    ("PUT", "/query", {}, 405, "MethodNotAllowed", "openapi.json"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind", "says"), WRONG, ids=lambda value: str(value)[:24] if value else None
)
def test_what_cannot_be_used_is_a_problem_that_says_what_and_what_to_do(
    served: Served, method: str, path: str, body: Any, status: int, kind: str, says: str
) -> None:
    given = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
    reply = served.send(method, path, body, headers=given)
    assert (reply.status, reply.kind) == (status, kind), reply.body
    assert says in reply.json["detail"]


def test_page_of_another_site_is_kept_out(served: Served) -> None:
    """By its own name for this machine; and what a form may send anywhere is no request of ours."""
    other = served.send("POST", "/query", {"text": "x"}, headers={"Host": "shop.example"})
    assert (other.status, other.kind) == (421, "OtherHost")
    form = served.send("POST", "/query", b'{"text": "x"}', headers={"Content-Type": "text/plain"})
    assert (form.status, form.kind) == (415, "UnsupportedMediaType")
    lines = served.send("POST", "/items", b'{"id": "x", "delete": true}', headers={"Content-Type": "text/plain"})
    assert (lines.status, lines.kind) == (415, "UnsupportedMediaType")
    for path in ("/", "/figures", "/openapi.json"):
        page = served.send("GET", path)
        assert page.status == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"


def test_metrics_count_requests_by_route_and_status_and_never_by_id(served: Served) -> None:
    served.send("DELETE", "/items/counted-1")
    served.send("GET", "/no-such-path-1")
    text = served.send("GET", "/metrics").body.decode()
    exemplars = served.send("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert exemplars.headers["content-type"].startswith("application/openmetrics-text")
    wanted = 'sidstream_gateway_requests_total{method="DELETE",route="/items/{item_id}",status="202"}'
    assert wanted in text
    assert "counted-1" not in text
    assert "no-such-path-1" not in text


def test_request_in_flight_is_answered_after_sigterm_and_the_end_is_clean(
    pipeline_settings: Settings, tmp_path: Path
) -> None:
    own = pipeline_settings.gateway.model_copy(update={"port": free_port(), "wait_seconds": PATIENCE_SECONDS})
    settings = pipeline_settings.model_copy(update={"gateway": own})
    replies: list[Reply] = []
    with SidstreamProcess(settings, "gateway", tmp_path) as process:
        start(process, settings)
        asking = threading.Thread(target=lambda: replies.append(send(own.port, "POST", "/query", {"text": "kettle"})))
        asking.start()
        queries = settings.topics.queries
        wait_until(lambda: bool(committed_records(settings, queries)), what="the query on its topic")
        ending = threading.Thread(target=process.stop)
        ending.start()
        wait_until(lambda: "stopping" in process.log(), what="the gateway has heard of its end")
        [query] = committed_records(settings, queries)
        producer = Producer(producer_configuration(settings.kafka))
        value = ANSWER.encode(Answer(query_id=query.key().decode()))
        producer.produce(settings.topics.results, key=query.key(), value=value)
        assert producer.flush(PATIENCE_SECONDS) == 0
        asking.join()
        ending.join()
        assert process.status() == 0, process.log()
    [reply] = replies
    assert (reply.status, reply.json["query_id"]) == (200, query.key().decode())


def test_request_that_nobody_answers_before_the_end_gets_its_id(pipeline_settings: Settings, tmp_path: Path) -> None:
    own = pipeline_settings.gateway.model_copy(update={"port": free_port(), "wait_seconds": PATIENCE_SECONDS})
    settings = pipeline_settings.model_copy(update={"gateway": own})
    replies: list[Reply] = []
    short = {"SIDSTREAM_SHUTDOWN_SECONDS": "2"}
    with SidstreamProcess(settings, "gateway", tmp_path, environment=short) as process:
        start(process, settings)
        asking = threading.Thread(target=lambda: replies.append(send(own.port, "POST", "/query", {"text": "kettle"})))
        asking.start()
        wait_until(lambda: bool(committed_records(settings, settings.topics.queries)), what="the query on its topic")
        process.stop()
        asking.join()
    [reply] = replies
    [query] = committed_records(settings, settings.topics.queries)
    assert (reply.status, reply.kind, reply.json["query_id"]) == (504, "NotAnsweredYet", query.key().decode())
