"""The bytes of a record, made fit for a person's terminal (``models.terminal``).

Whoever publishes an event chooses its bytes, and the dead letters are where the worst of them end up.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import msgspec

from models.terminal import printable

_BYTES_A_LINE: Final = 16


def pretty(value: bytes) -> str:
    """A record's value for reading: a JSON or MessagePack object or list indented, anything else as a hex dump."""
    for name, decode in (("JSON", msgspec.json.decode), ("MessagePack", msgspec.msgpack.decode)):
        try:
            decoded = decode(value)
            if isinstance(decoded, dict | list):
                return f"{name}\n{_indented(decoded)}"
        except (msgspec.DecodeError, UnicodeError, ValueError, TypeError, OverflowError, RecursionError):
            continue
    return f"{len(value)} bytes\n{hex_dump(value)}"


def hex_dump(value: bytes) -> str:
    """Offset, sixteen bytes and their ASCII characters a line; ``*`` stands for further lines of the same bytes."""
    lines: list[str] = []
    before = b""
    for start in range(0, len(value), _BYTES_A_LINE):
        row = value[start : start + _BYTES_A_LINE]
        if row == before:
            if lines[-1] != "*":
                lines.append("*")
            continue
        before = row
        characters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' '):<{3 * _BYTES_A_LINE}} {characters}")
    return "\n".join(lines)


def ascii_json(value: Any, *, indent: int | None = None) -> str:
    """One JSON object, in ASCII: what a stranger wrote can be piped, and shown as it is. ``indent``: spaces a level."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=True, indent=indent).replace("\x7f", "\\u007f")


def _indented(decoded: Any) -> str:
    # Numbers of an embedding in one line each would fill hundreds of lines.
    text = json.dumps(_plain(decoded), indent=2, ensure_ascii=False)
    return "\n".join(printable(line) for line in _short_lists(text))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key if isinstance(key, str) else repr(key): _plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(content) for content in value]
    if isinstance(value, bytes):
        return f"{len(value)} bytes, base64 {base64.b64encode(value).decode()}"
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _short_lists(text: str) -> list[str]:
    """Lines of indented JSON, those that hold nothing but one number of a list joined."""
    lines: list[str] = []
    joining = False
    for line in text.split("\n"):
        number = line.strip().rstrip(",").lstrip("-")[:1].isdigit()
        if number and joining:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
        joining = number
    return lines
