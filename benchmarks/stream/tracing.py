"""What traces cost: processor time an item of the assigner's and the indexer's work on a batch, Kafka and the disk left out.

Batches of records without headers, with a trace in all of them, and in one of a hundred; tracing off and on. All are held against
no headers and tracing off. In the place of a collector is a port that nobody listens on: spans are made, queued and dropped; to
send them costs the exporter's own thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from benchmarks.common.reporting import Result, benchmark_arguments, report
from models.sids.layout import Layout
from streamer.assigner.assign_batch import AssignBatch
from streamer.events.records import ITEM_CODES, ITEM_UPDATE, ItemCodes, ItemUpdate
from streamer.indexer.codes import codes_batch
from streamer.settings import load_settings
from streamer.settings.pipeline import AssignerSettings
from streamer.tracing.batches import PassedOn, Traces, traces_of
from streamer.tracing.start import tracing_started

BATCH, DIMENSION, LAYERS, SIZE = 8_000, 384, 3, 256
_TIMES = 15


class _Encoder:
    """No codebook: what an item costs beside the graph."""

    codebook_id = "cafe0123cafe0123"
    dimension = DIMENSION

    def __init__(self) -> None:
        self._codes = np.random.default_rng(2).integers(0, SIZE, (BATCH, LAYERS), dtype=np.uint16)

    def encode(self, embeddings: NDArray[np.float32], ids: Sequence[bytes]) -> NDArray[np.uint16]:
        return self._codes[: len(embeddings)]


def records(values: Sequence[bytes], traced_each: int) -> list[Message]:
    """A batch whose every so manyth record has a trace, none with 0."""
    at = time.time_ns() // 1_000_000
    return [
        Message(
            topic="t",
            partition=number % 4,
            offset=number,
            key=f"sku-{number:07d}".encode(),
            value=value,
            timestamp=(1, at),
            headers=[("traceparent", f"00-{number + 1:032x}-{number + 1:016x}-01".encode())]
            if traced_each and number % traced_each == 0
            else None,
        )
        for number, value in enumerate(values)
    ]


def assigner_work(traces: Traces) -> Callable[[list[Message]], object]:
    assign = AssignBatch(
        _Encoder(), codes_topic="codes", dead_letter_topic="dlq", limits=AssignerSettings(), traces=traces
    )

    def work(batch: list[Message]) -> None:
        trace = traces.begin(batch)
        with trace.current():
            assert len(assign(batch)) == len(batch)
        trace.end()

    return work


def indexer_work(traces: Traces) -> Callable[[list[Message]], object]:
    codebook = Layout(0, _Encoder.codebook_id, LAYERS, SIZE)

    def work(batch: list[Message]) -> None:
        trace = traces.begin(batch)
        with trace.current():
            codes_batch(batch, codebook)
        trace.end()

    return work


def us_an_item(work: Callable[[list[Message]], object], values: Sequence[bytes], traced_each: int) -> float:
    """Processor time of this thread, of the fastest of some batches; each is new, as a consumer's are."""
    taken = []
    for _ in range(_TIMES):
        batch = records(values, traced_each)
        since = time.thread_time()
        work(batch)
        taken.append(time.thread_time() - since)
    return 1e6 * min(taken) / BATCH


def main() -> int:
    options = benchmark_arguments(__doc__).parse_args()
    random = np.random.default_rng(1)
    updates = [
        ITEM_UPDATE.encode(
            ItemUpdate(embedding=row.tobytes(), title="a glass kettle with a handle of wood", weight=1.0)
        )
        for row in random.standard_normal((BATCH, DIMENSION)).astype(np.float32)
    ]
    codes = [
        ITEM_CODES.encode(
            ItemCodes(codebook=_Encoder.codebook_id, codes=(1, 2, 3), title="a glass kettle", weight=1.0, updated_at=0)
        )
        for _ in range(BATCH)
    ]
    settings = load_settings(tracing={"endpoint": "http://127.0.0.1:9", "ratio": 1})
    results: list[Result] = []
    for process, work_of, values in (("assigner", assigner_work, updates), ("indexer", indexer_work, codes)):
        found = {"no headers, tracing off": us_an_item(work_of(PassedOn()), values, 0)}
        found["a trace in each, tracing off"] = us_an_item(work_of(PassedOn()), values, 1)
        with tracing_started(settings, "benchmark"):
            work = work_of(traces_of("assign", "t", group="benchmark"))
            found["no headers, tracing on"] = us_an_item(work, values, 0)
            found["a trace in one of a hundred, tracing on"] = us_an_item(work, values, 100)
            found["a trace in each, tracing on (128 spans a batch)"] = us_an_item(work, values, 1)
        (bare, off), *others = found.items()
        results.append(Result(f"{process}: {bare}", off, "µs/item"))
        results += [Result(f"{process}: {label}", us, "µs/item", bare, off) for label, us in others]
    return report("tracing", results, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
