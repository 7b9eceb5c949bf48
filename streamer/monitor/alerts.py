"""Alerts: which conditions hold now, and what to tell about them, given what was told already. Pure; the clock is given.

What must hold: a condition has one stable key; it is told when it begins, when its severity changes, when it ends, and
again after a long while, never on every look; it ends only well below the threshold at which it began (hysteresis).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from streamer.events.records import Alert
from streamer.monitor.conditions import RESHORTENED_PREFIX, Condition, Severity
from streamer.settings.monitor import MonitorSettings


def step(
    settings: MonitorSettings,
    firing: Mapping[str, Alert],
    conditions: Iterable[Condition],
    *,
    codebook: str,
    generation: int,
    now: int,
) -> list[Alert]:
    """The alerts to send. ``firing``: the newest alert of each key that fires; update it with ``after``.

    A firing alert whose condition is absent is resolved.
    """
    by_key = {condition.key: condition for condition in conditions}
    alerts: list[Alert] = []
    for key, condition in sorted(by_key.items()):
        known = firing.get(key)
        if condition.ratio < (1.0 if known is None else settings.clear_factor):
            continue
        severity = condition.severity or _severity(settings, condition.ratio, known)
        if known is not None and not _worth_repeating(settings, known, condition, severity, now):
            continue
        alerts.append(
            Alert(
                key=key,
                state="firing",
                severity=severity,
                cause=condition.cause,
                summary=condition.summary,
                figures=condition.figures,
                codebook=codebook,
                generation=generation,
                first_at=now if known is None else known.first_at,
                at=now,
            )
        )
    for key, known in sorted(firing.items()):
        last = by_key.get(key)
        if last is not None and last.ratio >= settings.clear_factor:
            continue
        alerts.append(
            msgspec.structs.replace(
                known,
                state="resolved",
                summary=f"{_ending(known)} after {_duration(now - known.first_at)}: {known.summary}",
                figures=known.figures if last is None else last.figures,
                generation=generation,
                at=now,
            )
        )
    return alerts


def after(firing: Mapping[str, Alert], sent: Iterable[Alert]) -> dict[str, Alert]:
    """The firing alerts once ``sent`` are out: also how the state is learned again from the topic."""
    result = dict(firing)
    for alert in sent:
        if alert.state == "firing":
            result[alert.key] = alert
        else:
            result.pop(alert.key, None)
    return result


def _severity(settings: MonitorSettings, ratio: float, known: Alert | None) -> Severity:
    critical = settings.critical_factor
    if known is not None and known.severity == "critical":
        critical *= settings.clear_factor
    return "critical" if ratio >= critical else "warning"


def _worth_repeating(
    settings: MonitorSettings, known: Alert, condition: Condition, severity: Severity, now: int
) -> bool:
    return (
        severity != known.severity
        or condition.figures.get("generation") != known.figures.get("generation")
        or (now - known.at >= settings.repeat_seconds * 1000 and condition.severity != "info")
    )


def _ending(alert: Alert) -> str:
    """A new layout stays: what is over is the news of it."""
    return "no longer news" if alert.key.startswith(RESHORTENED_PREFIX) else "over"


def _duration(milliseconds: int) -> str:
    seconds = max(0, milliseconds) // 1000
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7_200 else f"{seconds // 3_600} h"
