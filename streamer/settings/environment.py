"""Which variables of the environment are ours: a name that is no setting is a fault, not a setting that nobody reads.

Not read as settings are those of tests and of tools (``OTHERS``), and what Kubernetes puts into every container for a Service
that is called ``sidstream…`` (``SIDSTREAM_GATEWAY_PORT=tcp://10.0.0.7:8080``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from pydantic import BaseModel

from streamer.settings.section import Section

PREFIX: Final = "SIDSTREAM_"
DELIMITER: Final = "__"
OTHERS: Final = frozenset(
    PREFIX + name
    for name in (
        "CONFIG",  # the settings' file
        "CACHE",  # Kafka's jars
        "FAILPOINT",
        "SUPERVISOR_PID",
        "SHARED_DATA",  # of the tests
        "VERSION",  # of docker-compose.yml, as the next two
        "BUNDLE_DIRECTORY",
        "GATEWAY_CLIENTS",
    )
)
_OTHER_BEGINNINGS: Final = (PREFIX + "CHAOS_", PREFIX + "TESTS_")
_SERVICE: Final = re.compile(r"_SERVICE_(HOST|PORT(_.+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")


def unknown_variables(settings: type[BaseModel], environment: Mapping[str, str]) -> list[str]:
    """A line for each variable that would be a setting and is none, with the one that looks like it."""
    known = {name.upper() for name in settings.model_fields}
    faults = []
    for name, value in environment.items():
        upper = name.upper()
        section = upper.removeprefix(PREFIX).split(DELIMITER)[0]
        if not upper.startswith(PREFIX) or section in known or _is_others(upper, value):
            continue
        similar = get_close_matches(upper, _variables(settings), n=1)
        faults.append(f"  {name}: there is no such setting" + (f"; is {similar[0]} meant?" if similar else ""))
    return faults


def broken_json(settings: type[BaseModel], environment: Mapping[str, str]) -> list[str]:
    """A line for each variable whose value begins like JSON and is none. No value is told: it may be a secret."""
    beginnings = tuple(PREFIX + name.upper() for name in settings.model_fields)
    return [
        f"  {name}: its value is no JSON, which lists and tables are there ({fault})"
        for name, value in environment.items()
        if name.upper().startswith(beginnings) and (fault := _json_fault(value))
    ]


def _json_fault(value: str) -> str:
    if not value.lstrip().startswith(("{", "[")):
        return ""
    try:
        json.loads(value)
    except json.JSONDecodeError as error:
        return f"{error.msg} at character {error.pos}"
    return ""


def _is_others(name: str, value: str) -> bool:
    if name in OTHERS or name.startswith(_OTHER_BEGINNINGS) or _SERVICE.search(name):
        return True
    return name.endswith("_PORT") and _SERVICE_ADDRESS.match(value) is not None


def _variables(settings: type[BaseModel]) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        yield PREFIX + name.upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for inner in field.annotation.model_fields:
                yield f"{PREFIX}{name.upper()}{DELIMITER}{inner.upper()}"
