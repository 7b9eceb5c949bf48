"""The record that says what answers: which bundle, which one beside it for a share of the queries, and whose pipelines run.

One record, so that no reader ever sees a half of a change. ``streamer/deployments`` reads, follows and writes it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta

from streamer.events.records import Codec, Version1

SERVING_KEY: Final = b"serving"
_HASHED_BITS: Final = 32


class Pipeline(msgspec.Struct, frozen=True, kw_only=True):
    """An assigner and an indexer for one codebook. ``bundle``: whose encoder they use; ``suffix``: ends the names of its codes
    topic and group, empty for the first one; ``since``: milliseconds since the epoch.
    """

    codebook: str
    bundle: str
    suffix: str = ""
    since: int


class Deployed(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that may answer, or has. ``codebook``: of its pipeline; ``since``: milliseconds since the epoch."""

    bundle: str
    codebook: str
    since: int


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """Topic ``serving``, key = ``serving``. What answers queries, and what is kept ready beside it.

    ``bundle`` answers; ``canary``, if there is one, answers ``share`` of the users (0 to 1) instead; ``previous`` is what a
    rollback goes back to. All of them are among ``deployed``, and each of these has its codebook among ``pipelines``.
    ``number`` counts the changes; ``since``: milliseconds since the epoch of this one; ``cause``: who asked for it, in words;
    ``adopted``: nobody has deployed anything yet, and ``sidstream up`` has written down what it found.
    """

    bundle: str
    canary: str | None = None
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    previous: str | None = None
    deployed: tuple[Deployed, ...] = ()
    pipelines: tuple[Pipeline, ...] = ()
    number: int = 0
    since: int = 0
    cause: str = ""
    adopted: bool = False
    record_version: Version1 = UNSET

    def codebook_of(self, bundle: str) -> str | None:
        """Codebook of a deployed bundle; None if it is not deployed."""
        return next((one.codebook for one in self.deployed if one.bundle == bundle), None)

    def pipeline_of(self, bundle: str) -> Pipeline | None:
        """The pipeline from which a deployed bundle answers; None if it is not deployed."""
        codebook = self.codebook_of(bundle)
        return next((one for one in self.pipelines if one.codebook == codebook), None)

    def answers(self, who: str) -> str:
        """The bundle that answers a user (or, without one, a query by its id): the same for all of a user's queries, and those
        that a small share has had stay with it when the share grows.
        """
        if self.canary is None:
            return self.bundle
        digest = hashlib.blake2b(who.encode(), digest_size=_HASHED_BITS // 8, key=self.canary.encode()).digest()
        place = int.from_bytes(digest, "big") / 2**_HASHED_BITS
        return self.canary if place < self.share else self.bundle


SERVING: Final = Codec(Serving, json=True)
