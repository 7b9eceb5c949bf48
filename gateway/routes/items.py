"""``/items``: one item by its id, its attributes, and many at once as lines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from litestar import Response, delete, patch, post, put
from litestar.params import PathParameter
from litestar.types import ASGIApp

from gateway.clients.keys import ClientRecord
from gateway.gateway import Gateway
from gateway.kafka.writes import Place
from gateway.problems import Problem
from gateway.routes.lines import Lines
from gateway.routes.paths import id_of_path
from gateway.routes.queries import problems, require_broker
from gateway.routes.requests import JSON_TYPES, LINES_TYPES, AnyRequest, body_of, gateway_of, require_type
from streamer.events.records import UNDECODABLE, ItemAttributes

TOKEN_HEADER: Final = "Sidstream-Token"
ItemId = Annotated[str, PathParameter(description="the item's id, percent-encoded; 1 to 256 bytes")]
_REFUSALS: Final = {
    "s400": "what cannot be used: which field, why, and what to do",
    "s401": "no client has this key",
    "s403": "the client may not write",
    "s413": "too large",
    "s415": "another media type",
    "s429": "too many requests or writes: `Retry-After` says when to come again",
    "s503": "the broker has not confirmed it",
    "s504": "the broker has not confirmed it in time: it may be written; send it again",
}
_ATTRIBUTES: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The broker has the write; it is indexed a moment later. ``token``: for ``Sidstream-After`` of a query that is to see it."""

    id: str
    token: str


@put(
    "/items/{item_id:str}",
    status_code=202,
    summary="Write the full state of an item",
    description="The body is the record of `item-updates`. Its attributes alone: `PATCH /items/{id}/attributes`.",
    responses=problems(**_REFUSALS),
)
async def put_item(request: AnyRequest, item_id: ItemId) -> Response[Accepted]:
    gateway, client, key = _begin(request, item_id)
    require_type(request, JSON_TYPES)
    body = await body_of(request)
    model = gateway.intake.update(key, body)
    return await _write(gateway, client, key, updates=[body], models=[model])


@delete(
    "/items/{item_id:str}",
    status_code=202,
    summary="Delete an item",
    description="It leaves index and answers, and so do attributes that were sent alone. An item that is not there is "
    "deleted all the same.",
    responses=problems(**_REFUSALS),
)
async def delete_item(request: AnyRequest, item_id: ItemId) -> Response[Accepted]:
    gateway, client, key = _begin(request, item_id)
    return await _write(gateway, client, key, updates=[None], attributes=[None])


@patch(
    "/items/{item_id:str}/attributes",
    status_code=202,
    summary="Change attributes of an item without sending its embedding again",
    description="The body is a JSON object of fields. They go over those of the item's own update, which stay; **and they are in "
    "the place of all that was sent here before**: a field that is to stay is sent again. The item may come later.",
    responses=problems(**_REFUSALS),
)
async def patch_attributes(request: AnyRequest, item_id: ItemId) -> Response[Accepted]:
    gateway, client, key = _begin(request, item_id)
    require_type(request, JSON_TYPES[:1])
    value = _record(await body_of(request))
    gateway.intake.attributes(key, value)
    return await _write(gateway, client, key, attributes=[value])


@delete(
    "/items/{item_id:str}/attributes",
    status_code=202,
    summary="Take away the attributes that were sent alone",
    description="Those of the item's own update stay.",
    responses=problems(**_REFUSALS),
)
async def delete_attributes(request: AnyRequest, item_id: ItemId) -> Response[Accepted]:
    gateway, client, key = _begin(request, item_id)
    return await _write(gateway, client, key, attributes=[None])


@post(
    "/items",
    status_code=200,
    summary="Write many items, a line each",
    description="Newline-delimited JSON: each line is the record of `item-updates` with the item's `id`, or "
    '`{"id": …, "delete": true}`. Answered line by line, in order and while the body still comes; the last line counts them '
    "and has the token of all that were accepted. A line that is refused takes no other with it.",
    responses=problems(**{status: why for status, why in _REFUSALS.items() if status not in ("s413", "s504")}),
)
async def post_items(request: AnyRequest) -> ASGIApp:
    gateway = gateway_of(request)
    client = gateway.access.admit(request, "write")
    require_type(request, LINES_TYPES)
    require_broker(request)
    return Lines(gateway, client)


def _begin(request: AnyRequest, item_id: str) -> tuple[Gateway, ClientRecord, bytes]:
    """Lets the client in, and looks at the id."""
    gateway = gateway_of(request)
    client = gateway.access.admit(request, "write")
    key = gateway.intake.item_id(id_of_path(item_id))
    require_broker(request)
    return gateway, client, key


def _record(body: bytes) -> bytes:
    """The record of ``item-attributes`` of bare fields; what is no object of fields goes on as it is, and is refused as such."""
    try:
        fields = _ATTRIBUTES.decode(body)
    except UNDECODABLE:
        return body
    if fields.keys() == {"attributes"} and bytes(fields["attributes"])[:1] == b"{":  # the record itself
        return body
    return msgspec.json.encode(ItemAttributes(attributes=msgspec.Raw(body)))


async def _write(
    gateway: Gateway,
    client: ClientRecord,
    key: bytes,
    *,
    updates: Sequence[bytes | None] = (),
    attributes: Sequence[bytes | None] = (),
    models: Sequence[str | None] = (),
) -> Response[Any]:
    """Sends records of an item, and answers once the broker has all of them."""
    topics, writes = gateway.settings.topics, gateway.writes
    letters = (
        writes.letters[topics.item_updates_dead_letters],
        writes.letters[topics.item_attributes_dead_letters],
    )
    seconds = gateway.settings.gateway.wait_seconds
    with gateway.access.waiting(client):
        sent = [writes.send(topics.item_updates, key, value) for value in updates]
        sent += [writes.send(topics.item_attributes, key, value) for value in attributes]
        _, late = await asyncio.wait(sent, timeout=seconds)
    if late:
        raise Problem(
            504,
            "NotWritten",
            f"the broker has not confirmed the write within {seconds:g} s: it may be written all the same. Send it again: the "
            "same state of an item twice changes nothing",
            again_seconds=1,
        )
    places: list[Place] = [one.result() for one in sent]
    token = gateway.tokens.of(places[: len(updates)], places[len(updates) :], letters, models)
    accepted = Accepted(id=key.decode(), token=token)
    return Response(
        msgspec.json.encode(accepted), status_code=202, media_type="application/json", headers={TOKEN_HEADER: token}
    )
