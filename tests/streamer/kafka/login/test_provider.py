"""A function of somebody else's: how it is found, and what becomes of whatever it returns or raises."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.kafka.login.provider import provided_token, token_function
from streamer.kafka.login.tokens import TokenRefusedError, TokenSourceAwayError


def test_function_is_found_by_its_module_and_name() -> None:
    assert token_function("os.path:join") is __import__("os").path.join
    assert token_function("pathlib:Path.cwd").__name__ == "cwd"


@pytest.mark.parametrize("name", ["no_such_module:token", "os.path:no_such_function", "os.path:sep"])
def test_what_is_no_function_is_named(name: str) -> None:
    with pytest.raises(TokenRefusedError, match=f"kafka.oauth_token_provider {name}"):
        token_function(name)


@pytest.mark.parametrize("more", [(), ("me",), ("me", {"tenant": "shop"})])
def test_tuple_is_as_confluent_kafka_takes_it(more: tuple[Any, ...]) -> None:
    token = provided_token("a:b", lambda configuration: (f"for {configuration}", 5, *more), "shop")
    assert (token.value, token.expires_at) == ("for shop", 5.0)
    assert (token.principal, token.extensions) == (
        "me" if more else "",
        {"tenant": "shop"} if len(more) == 2 else {},
    )


@pytest.mark.parametrize("given", [None, "token", ("token",), ("", 5.0), ("token", "5"), ("token", 5.0, "me", {}, 1)])
def test_anything_else_is_refused_without_showing_it(given: object) -> None:
    with pytest.raises(TokenRefusedError, match="a:b returned") as refused:
        provided_token("a:b", lambda _configuration: given, "")
    assert "'token'" not in str(refused.value)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [(ConnectionRefusedError("no route"), TokenSourceAwayError), (KeyError("AWS_REGION"), TokenRefusedError)],
)
def test_what_it_raises_is_told_with_its_name(raised: Exception, kind: type[Exception]) -> None:
    def fail(_configuration: str) -> None:
        raise raised

    with pytest.raises(kind, match=f"a:b gives no token.*{type(raised).__name__}"):
        provided_token("a:b", fail, "")
