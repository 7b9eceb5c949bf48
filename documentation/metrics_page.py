"""The page of all Prometheus metrics, made from the objects that count them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from documentation.markdown import anchor, code, plain, table, unbroken

PAGE: Final = "reference/metrics.md"
_ROOT: Final = Path(__file__).resolve().parent.parent
_PARTS: Final = ("streamer", "retriever", "gateway")
_BEGINNING: Final = """\
# Metrics

Made from the code. A process answers `/metrics` where `metrics.port` is set; a counter's name ends in `_total`
there, a histogram has `_bucket`, `_sum` and `_count`. What to look at and what to do about it: [Watch
it](../watching.md), and the [runbook](../runbook.md) for the alerts.
"""


def modules_with_metrics() -> Iterator[tuple[ModuleType, list[MetricWrapperBase]]]:
    """Each module that counts something, and its metrics in the order in which they are written."""
    for part in _PARTS:
        for path in sorted((_ROOT / part).rglob("*.py")):
            source = path.read_text()
            if "from prometheus_client import" not in source:
                continue
            module = importlib.import_module(".".join(path.relative_to(_ROOT).with_suffix("").parts))
            counting = [one for one in vars(module).values() if isinstance(one, MetricWrapperBase)]
            own = [one for one in counting if f'"{one._name}"' in source]  # others it has imported
            if own:
                yield module, own


def metrics_page() -> str:
    """The page, in Markdown."""
    lines = [_BEGINNING]
    for module, metrics in modules_with_metrics():
        lines += [f"## {module.__name__.replace('.', ' / ').removesuffix(' / metrics')}", ""]
        rows = [
            (
                anchor(one._name) + unbroken(one._name + ("_total" if one._type == "counter" else "")),
                one._type or "",
                ", ".join(map(code, one._labelnames)),
                plain(one._documentation),
            )
            for one in metrics
        ]
        lines += [*table(("metric", "kind", "labels", "meaning"), rows), ""]
    return "\n".join(lines)
