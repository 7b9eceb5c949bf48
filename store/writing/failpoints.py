"""Failpoints: named places in the commit paths where a test ends the process as ``kill -9`` would.

What must hold: without ``SIDSTREAM_FAILPOINT`` in the environment passing one costs a comparison, and nothing ever happens.
``SIDSTREAM_FAILPOINT=outputs-sent=3`` ends the process when it passes ``outputs-sent`` for the third time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from models.errors import SidstreamError

FAILPOINT_VARIABLE: Final = "SIDSTREAM_FAILPOINT"


class FailpointError(SidstreamError):
    """The variable names no failpoint."""


class Failpoint(StrEnum):
    """Every place, in the order of the data's way; its comment says what is done and what is not."""

    TRANSACTION_BEGUN = "transaction-begun"  # assigner, retriever, a look at interactions: it holds nothing
    OFFSETS_SENT = "offsets-sent"  # the batch's offsets are in the transaction, its outputs are not
    OUTPUTS_SENT = "outputs-sent"  # outputs lie in the log, uncommitted; a query is answered for nobody yet
    TRANSACTION_COMMITTED = "transaction-committed"  # all of it is visible, and the process does not know yet
    BATCH_WRITTEN = "batch-written"  # indexer: inside of the LMDB transaction
    BATCH_COMMITTED = "batch-committed"  # in the index, its counts not published
    ATTRIBUTES_WRITTEN = "attributes-written"  # indexer: inside of the LMDB transaction of attributes that came alone
    ATTRIBUTES_COMMITTED = "attributes-committed"  # in the index, and the indexer does not know yet
    COUNTS_SENT = "counts-sent"  # counts are handed to the client, which may not have sent them
    UPGRADE_WRITTEN = "upgrade-written"  # indexer, at its start: inside of a transaction of the index's upgrade
    UPGRADE_COMMITTED = "upgrade-committed"  # a part of the upgrade is safe, or all of it
    LAYOUT_WRITTEN = "layout-written"  # in the middle of a layout switch: inside of the LMDB transaction
    LAYOUT_COMMITTED = "layout-committed"  # live for readers, and the indexer does not know yet
    JOURNAL_SENT = "journal-sent"  # monitor: layout, alerts and drift lie in the log, uncommitted
    JOURNAL_COMMITTED = "journal-committed"  # visible, and the monitor does not remember yet
    BUNDLE_STORED = "bundle-stored"  # `deploy`, `up`: the bundle is in the store, and the record does not name it
    CODES_TOPIC_CREATED = (
        "codes-topic-created"  # `deploy`: there is a topic for the codes, and the record has no pipeline
    )
    GROUP_DELETED = "group-deleted"  # `retire`: the record has no pipeline any more, its topic and index are there
    CODES_TOPIC_DELETED = "codes-topic-deleted"  # its index is there
    INDEX_DELETED = "index-deleted"  # its bundle is there
    SERVING_SENT = "serving-sent"  # a command: what answers is changed in the log, uncommitted
    SERVING_COMMITTED = "serving-committed"  # it is visible, and the command does not know yet
    CHANGELOG_WRITTEN = (
        "changelog-written"  # the table's changes are safe, the offsets of their events are not committed
    )
    COUNTS_COMMITTED = "counts-committed"  # both are


def _armed(text: str) -> tuple[Failpoint | None, int]:
    """The failpoint and at which passing it ends the process."""
    if not text:
        return None, 0
    name, _, passing = text.partition("=")
    if name not in list(Failpoint) or not (passing or "1").isdigit():
        raise FailpointError(
            f"{FAILPOINT_VARIABLE}={text!r} is not a failpoint and a number, such as outputs-sent=3; there are "
            f"{', '.join(Failpoint)}. Unset it: it is for tests"
        )
    return Failpoint(name), int(passing or 1)


def arm() -> None:
    """Takes the failpoint from the environment: at the import, and again in a forked process that was given another one.

    Raises:
        FailpointError: the variable names none.
    """
    global _point, _left
    _point, _left = _armed(os.environ.get(FAILPOINT_VARIABLE, ""))


_point: Failpoint | None
_left: int
arm()


def reach(point: Failpoint, before: Callable[[], Any] = lambda: None) -> None:
    """Pass a failpoint. ``before``: done before the process ends here, so that the fault hits hard (a flush)."""
    global _left
    if point is not _point:
        return
    _left -= 1
    if _left == 0:
        before()
        os.kill(os.getpid(), signal.SIGKILL)
