"""The report of a chaos run: what was done, how long it took until it was over, and what was compared; as Markdown."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from chaos.faults import BrokerPause, KillAt, Pause
from chaos.world import Occurrence, World


def figures(world: World, *, seed: int, seconds: float, aborted: Mapping[str, int], compared: Mapping[str, int]) -> str:
    """Two tables and a line on each process that ended by itself."""
    times: dict[str, list[float]] = defaultdict(list)
    counts: Counter[str] = Counter()
    never: Counter[str] = Counter()
    for occurrence in world.occurrences:
        fault = occurrence.fault
        label = type(fault).__name__ + (f" {fault.process}" if hasattr(fault, "process") else "")
        if isinstance(fault, Pause | BrokerPause):
            label += f" {fault.seconds:g} s"
        counts[label] += 1
        recovery = world.recovery(occurrence)
        if recovery is None:
            never[label] += 1
        else:
            times[label].append(recovery)
    kills = sum(occurrence.kills for occurrence in world.occurrences)
    at = Counter(death for occurrence in world.occurrences for death in _deaths_at_failpoints(occurrence))
    lines = [
        f"Seed {seed}: {seconds / 60:.1f} minutes, **{kills} kills** ({at.total()} of them at a failpoint), "
        f"{len(world.occurrences)} faults, {world.producers.truth.events.total():,} events published, index on "
        f"{'a file system of 512 MiB' if world.disk.mounted else 'a limit on file sizes'}.",
        "",
        f"Records of aborted transactions in the log: {sum(aborted.values()):,} "
        f"({', '.join(f'{topic} {count:,}' for topic, count in aborted.items() if count)}).",
        f"Compared after draining: {', '.join(f'{name} {count:,}' for name, count in compared.items())}.",
        "",
        "| fault | times | recovery p50 | p99 | longest |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for label in sorted(counts):
        seen = sorted(times[label])
        cells = [f"{_quantile(seen, q):.2f} s" if seen else "–" for q in (0.5, 0.99, 1.0)]
        lines.append(f"| {label} | {counts[label]} | {' | '.join(cells)} |")
    if never.total():
        lines += ["", f"Not seen to recover before the next event came in time: {dict(never)}."]
    alone = Counter((name, status) for name, status, _ in world.supervisor.ended_by_themselves)
    lines += [
        "",
        "Processes that ended by themselves and were started again: "
        + (", ".join(f"{name} with status {status}: {count}" for (name, status), count in alone.items()) or "none")
        + ".",
        "",
        "Deaths at failpoints: " + ", ".join(f"{name} {count}" for name, count in sorted(at.items())) + ".",
    ]
    return "\n".join(lines) + "\n"


def _deaths_at_failpoints(occurrence: Occurrence) -> list[str]:
    match occurrence.fault:
        case KillAt(process, visits):  # the first kill is at no failpoint
            return [f"{process} {failpoint}" for failpoint, _ in visits[: occurrence.kills - 1]]
    return []


def _quantile(rising: list[float], share: float) -> float:
    return rising[min(len(rising) - 1, math.ceil(share * len(rising)) - 1 if share < 1 else len(rising) - 1)]
