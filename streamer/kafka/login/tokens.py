"""A token that logs a client in, and the source that keeps one until it is half used up.

What must hold: a token's text is in no repr, no message and no log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from models.errors import SidstreamError

# librdkafka asks again when four fifths of what was left have passed: it never gets the token that it has.
_REUSED_SHARE: Final = 0.5
# A client that cannot connect tries many times a second; whoever issues tokens is asked once.
_REFUSAL_SECONDS: Final = 1.0


class TokenRefusedError(SidstreamError):
    """Whoever issues tokens refuses us, or answers without one: other settings alone help."""


class TokenSourceAwayError(SidstreamError):
    """Whoever issues tokens does not answer now; that passes."""


@dataclass(frozen=True)
class Token:
    """``expires_at``: in seconds since the epoch; ``extensions``: of SASL, such as ``logicalCluster``."""

    value: str = field(repr=False)
    expires_at: float
    principal: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)


class TokenSource:
    """Tokens that ``fetch`` gets, each handed out until half of its life has passed; a failure for a second. For any thread."""

    def __init__(self, fetch: Callable[[], Token], clock: Callable[[], float] = time.time) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._held: Token | None = None
        self._failure: TokenRefusedError | TokenSourceAwayError | None = None
        self._reused_until = 0.0  # the token, or the failure

    def token(self) -> Token:
        """One with at least half of its life left, if it was issued as it was asked for.

        Raises:
            TokenRefusedError: we are not given one.
            TokenSourceAwayError: nobody answers for now.
        """
        with self._lock:
            if self._clock() < self._reused_until:
                if self._held is not None:
                    return self._held
                if self._failure is not None:
                    raise self._failure
            self._held = self._failure = None
            try:
                token = self._fetch()
                now = self._clock()
                if token.expires_at <= now:
                    ago = now - token.expires_at
                    raise TokenRefusedError(f"the token that was issued expired {ago:.0f} s ago: compare the clocks")
            except (TokenRefusedError, TokenSourceAwayError) as error:
                self._failure, self._reused_until = error, self._clock() + _REFUSAL_SECONDS
                raise
            self._held, self._reused_until = token, now + _REUSED_SHARE * (token.expires_at - now)
            return token
