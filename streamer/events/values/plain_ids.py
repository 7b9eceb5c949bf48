"""Whether a key is an item id at first sight; what is none, or is looked at twice, is ``foreign_formats``' to name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from models.catalogue import MAXIMUM_ID_BYTES

# An id that begins with one of these, or is not wholly printable, is looked at twice.
_SUSPICIOUS_FIRST: Final = frozenset('"{[ ')
_SUSPICIOUS_FIRST_BYTES: Final = np.isin(np.arange(256), list("".join(_SUSPICIOUS_FIRST).encode()))
_LINE_BREAK: Final = ord("\n")
_SPACE: Final = ord(" ")


def is_plain_id(key: bytes) -> bool:
    """Whether a key that is not empty is an id at first sight; False: ask ``foreign_key``."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return False
    return text.isprintable() and text[0] not in _SUSPICIOUS_FIRST and text[-1] != " "


def are_plain_ids(keys: Sequence[bytes | None]) -> bool:
    """Whether every key is an id of ``MAXIMUM_ID_BYTES`` at most and ``is_plain_id``, seen all at once; False: look at each."""
    if not all(keys):
        return not keys
    present: Sequence[bytes] = keys  # type: ignore[assignment]
    joined = b"\n".join(present)
    try:
        text = joined.decode()
    except UnicodeDecodeError:
        return False
    if not text.replace("\n", "").isprintable():
        return False
    numbers = np.frombuffer(joined, np.uint8)
    breaks = np.flatnonzero(numbers == _LINE_BREAK)
    if len(breaks) != len(keys) - 1:
        return False
    starts, ends = np.append(0, breaks + 1), np.append(breaks, len(numbers))
    return bool(
        (ends - starts).max() <= MAXIMUM_ID_BYTES
        and not _SUSPICIOUS_FIRST_BYTES[numbers[starts]].any()
        and not (numbers[ends - 1] == _SPACE).any()
    )
