"""An answer of the application on its way out, for what stands around the application."""

from __future__ import annotations

from collections.abc import Callable

from litestar.types import HTTPResponseStartEvent, Message, Send


def when_it_starts(send: Send, started: Callable[[HTTPResponseStartEvent], None]) -> Send:
    """``send``, before which ``started`` sees status and headers of the answer, and may change them."""

    async def answering(message: Message) -> None:
        if message["type"] == "http.response.start":
            started(message)
        await send(message)

    return answering
