"""How long a token is handed out, and that its text is nowhere to be seen."""

from __future__ import annotations

import pytest

from streamer.kafka.login.tokens import Token, TokenRefusedError, TokenSource, TokenSourceAwayError


class Issuer:
    """Tokens of a hundred seconds, numbered; ``now`` is the time."""

    def __init__(self) -> None:
        self.now, self.issued, self.life = 1_000.0, 0, 100.0

    def issue(self) -> Token:
        self.issued += 1
        return Token(f"token-{self.issued}", self.now + self.life)


def test_token_is_handed_out_until_half_of_its_life_has_passed() -> None:
    issuer = Issuer()
    source = TokenSource(issuer.issue, clock=lambda: issuer.now)
    found = []
    for issuer.now in (1_000.0, 1_049.0, 1_050.0, 1_099.0, 1_100.0):
        found.append(source.token().value)
    assert found == ["token-1", "token-1", "token-2", "token-2", "token-3"]


def test_token_that_is_over_as_it_comes_is_refused_and_not_kept() -> None:
    issuer = Issuer()
    issuer.life = -7.0
    source = TokenSource(issuer.issue, clock=lambda: issuer.now)
    with pytest.raises(TokenRefusedError, match="expired 7 s ago: compare the clocks"):
        source.token()
    issuer.life = 100.0
    issuer.now += 1
    assert source.token().value == "token-2"


def test_whoever_fails_is_asked_once_a_second_however_often_a_client_tries() -> None:
    issuer = Issuer()
    asked = []

    def away() -> Token:
        asked.append(issuer.now)
        raise TokenSourceAwayError("nobody answers")

    source = TokenSource(away, clock=lambda: issuer.now)
    for issuer.now in (1_000.0, 1_000.3, 1_000.9, 1_001.1):
        with pytest.raises(TokenSourceAwayError, match="nobody answers"):
            source.token()
    assert asked == [1_000.0, 1_001.1]


def test_token_is_in_no_repr() -> None:
    assert "secret" not in repr(Token("secret", 1.0))
