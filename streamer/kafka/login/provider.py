"""``kafka.oauth_token_provider``: a Python function of the user's own that gives tokens (AWS MSK's signer, Google's, any other).

It is called as confluent-kafka calls its ``oauth_cb``, so that a function written for that will do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from streamer.kafka.login.tokens import Token, TokenRefusedError, TokenSourceAwayError


def token_function(name: str) -> Callable[[str], Any]:
    """The function that ``package.module:function`` names.

    Raises:
        TokenRefusedError: there is no such module or function, or it cannot be imported.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever a module of somebody else's raises
        raise TokenRefusedError(
            f"kafka.oauth_token_provider {name} cannot be loaded ({type(error).__name__}: {error}): it is "
            "package.module:function, of a module that Python finds (PYTHONPATH)"
        ) from None
    if not callable(found):
        raise TokenRefusedError(f"kafka.oauth_token_provider {name} is no function")
    return found  # type: ignore[no-any-return]


def provided_token(name: str, function: Callable[[str], Any], configuration: str) -> Token:
    """What ``function`` returns: ``(token, expires at[, principal[, extensions]])``, in seconds since the epoch.

    Raises:
        TokenSourceAwayError: it raised an ``OSError``, as where the network is away.
        TokenRefusedError: it raised another exception, or returned something else.
    """
    try:
        given = function(configuration)
    except OSError as error:
        raise TokenSourceAwayError(f"{name} gives no token for now: {type(error).__name__}: {error}") from None
    except Exception as error:
        raise TokenRefusedError(f"{name} gives no token: {type(error).__name__}: {error}") from None
    match given:
        case (str(value), int() | float() as expires_at, *rest) if value and len(rest) <= 2:
            principal = rest[0] if rest else ""
            extensions = rest[1] if len(rest) == 2 else {}
            if isinstance(principal, str) and isinstance(extensions, Mapping):
                texts = {str(key): str(text) for key, text in extensions.items()}
                return Token(value, float(expires_at), principal, texts)
    raise TokenRefusedError(
        f"{name} returned {type(given).__name__} instead of (token, seconds since the epoch at which it expires)"
    )
