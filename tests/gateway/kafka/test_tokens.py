"""Tokens of writes: what they say comes back, nobody else can make one, and their size has a bound."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest

from gateway.kafka.tokens import LONGEST, Tokens
from gateway.kafka.writes import Place
from gateway.problems import Problem


def places(*found: tuple[int, int]) -> list[Place]:
    return [Place(*one) for one in found]


def token_of(tokens: Tokens, updates: Sequence[Place] = (), attributes: Sequence[Place] = ()) -> str:
    return tokens.of(updates, attributes, ({0: 5}, {0: 7}), ["ours", None])


def test_delivery_of_several_tokens_is_that_of_all_their_writes() -> None:
    tokens = Tokens("secret")
    one = token_of(tokens, places((0, 4), (0, 5), (1, 9)))
    two = tokens.of(places((0, 6), (0, 8)), places((2, 1)), ({0: 3}, {0: 7}))
    delivery = tokens.read(f"{one}, {two}")
    assert delivery.ranges == {0: ((4, 7), (8, 9)), 1: ((9, 10),)}
    assert delivery.letters_from == {0: 3}, "letters are read from the earliest"
    assert delivery.attributes is not None
    assert delivery.attributes.ranges == {2: ((1, 2),)}
    assert delivery.models == {"ours", None}
    assert tokens.read(one).attributes is None


def test_token_of_another_secret_or_a_changed_one_is_refused() -> None:
    ours = token_of(Tokens("secret"), places((0, 4)))
    raw = bytearray(base64.urlsafe_b64decode(ours + "=" * (-len(ours) % 4)))
    raw[-1] ^= 1
    changed = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    for tokens, text in [
        (Tokens("other"), ours),
        (Tokens(None), ours),
        (Tokens("secret"), changed),
        (Tokens("secret"), "no token!"),
        (Tokens("secret"), ""),
        (Tokens("secret"), "x" * (LONGEST + 1)),
        (Tokens("secret"), ",".join([ours] * 33)),
    ]:
        with pytest.raises(Problem, match="token") as refused:
            tokens.read(text)
        assert refused.value.status == 400
    assert Tokens("secret").read(ours).ranges == {0: ((4, 5),)}


def test_token_of_very_many_scattered_writes_has_a_bound_and_names_all_of_them() -> None:
    tokens = Tokens("secret")
    scattered = places(*((partition, 2 * offset) for partition in range(16) for offset in range(10_000)))
    text = token_of(tokens, scattered)
    assert len(text) < LONGEST
    delivery = tokens.read(text)
    assert all(delivery.has(*place) for place in scattered)
