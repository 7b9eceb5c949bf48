"""Where the processor time of an item goes, stage by stage: from a profiler (`profiled.py`), and it adds up to the whole.

A stage is a function with all that it calls, less the stages inside of it. Beside it stands its floor, measured here and now:
what the same bytes cost to be copied once, the same products as bare matrix products. The profiler's own cost is in the figures:
the whole stands beside that of the same process without it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from benchmarks.common.own_process import in_process_of_its_own
from benchmarks.common.reporting import Result
from benchmarks.stream.profiled import Profile, name_of
from benchmarks.stream.running_pipeline import DIMENSION, LAYERS, SIZE
from models.codebooks.codebook import Codebook


@dataclass(frozen=True)
class Stage:
    """``function``: `module:qualified name`; ``floor``: which floor is its own, by name."""

    label: str
    function: str
    floor: str | None = None
    inside: tuple[Stage, ...] = ()

    def resolved(self) -> Any:
        """The function itself. Raises ``AttributeError`` when there is none of that name any more."""
        module, _, path = self.function.partition(":")
        found: Any = import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        return found

    def all(self) -> Iterator[Stage]:
        yield self
        for stage in self.inside:
            yield from stage.all()


_TAKE: Final = "streamer.kafka.gather:drain"
STAGES: Final[Mapping[str, Stage]] = {
    "assigner": Stage(
        "the loop itself",
        "streamer.exactly_once.loop:TransactionalLoop._one_batch",
        inside=(
            Stage("take records from the client", _TAKE, "update"),
            Stage(
                "choose what is sent, and its timestamps",
                "streamer.assigner.assign_batch:AssignBatch.__call__",
                inside=(
                    Stage("decode and check", "streamer.events.updates.reading:UpdateIntake.read_batch", "update"),
                    Stage(
                        "one matrix, norms", "streamer.events.updates.batch:UpdateBatch.checked_embeddings", "embedding"
                    ),
                    Stage(
                        "encode item-codes",
                        "streamer.assigner.assign_batch:AssignBatch._encoded",
                        "codes",
                        inside=(
                            Stage("the codebook's graph", "models.bundles.item_encoder:ItemEncoder.encode", "GEMM"),
                            Stage("vectors in int8", "models.dense.vectors:quantise", "embedding"),
                            Stage("bytes of the vectors", "models.dense.vectors:QuantisedVectors.encode", "vector"),
                        ),
                    ),
                ),
            ),
        ),
    ),
    "indexer": Stage(
        "the loop itself",
        "streamer.indexer.process:Indexer._one_batch",
        inside=(
            Stage("take records from the client", _TAKE, "codes"),
            Stage("decode into columns", "streamer.indexer.codes:codes_batch", "codes"),
            Stage(
                "begin, commit, sync",
                "store.writing.writer:IndexWriter.apply",
                inside=(Stage("write the batch", "store.writing.writer:IndexWriter._apply", "codes"),),
            ),
            Stage("publish the census", "streamer.indexer.census_publisher:CensusPublisher.publish_if_due"),
        ),
    ),
}
# What another thread does for the assigner, beside the next batch when batches come full. It is seen whenever the main thread
# takes a sample, which the interpreter never lets it do in the middle of the other's calls: so not divided any further.
COMMIT: Final = Stage(
    "begin, offsets, outputs, commit", "streamer.exactly_once.loop:TransactionalLoop._transact", "codes"
)


def stage_rows(
    process: str, profile: Profile, items: int, alone_us: float, floors: Mapping[str, float]
) -> list[Result]:
    """A row a stage, and the whole beside ``alone_us``: the same process' without the profiler. ``floors``: µs by name."""

    def row(label: str, seconds: float, floor: str | None = None) -> Result:
        name = None if floor is None else "bare GEMM" if floor == "GEMM" else f"{floor}, copied once"
        return Result(f"{process}: {label}", 1e6 * seconds / items, "µs/item", name, floors.get(floor or ""))

    trees = [STAGES[process], COMMIT] if process == "assigner" else [STAGES[process]]
    rows, found = [], 0.0
    for tree in trees:
        found += _seconds(tree, profile)
        for stage in tree.all():
            own = _seconds(stage, profile) - sum(_seconds(inside, profile) for inside in stage.inside)
            rows.append(row(stage.label, own, stage.floor))
    for thread, seconds in sorted(profile.threads.items()):
        found += seconds
        if seconds:
            rows.append(row(f"the client's threads {thread}", seconds))
    rows.append(row("all else: the metrics' server, the profiler itself", profile.whole - found))
    whole = Result(f"{process}: the whole", 1e6 * profile.whole / items, "µs/item", "without the profiler", alone_us)
    return [*rows, whole]


def _seconds(stage: Stage, profile: Profile) -> float:
    return profile.functions.get(name_of(stage.resolved()), 0.0)


def floors_us(update_bytes: int, codes_bytes: int) -> dict[str, float]:
    """The least that an item can cost, by name: one copy of the bytes in question, and the codebook's products, in µs. On one
    thread, in a process of its own.
    """
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    found, _ = in_process_of_its_own(_floors, update_bytes, codes_bytes)
    return dict(found)


def _floors(update_bytes: int, codes_bytes: int) -> dict[str, float]:
    import torch  # heavy, as is what comes with it: in this process alone

    from benchmarks.stream.assignment import bare_gemms

    torch.set_num_threads(1)
    random = np.random.default_rng(3)
    rows = random.standard_normal((4_096, DIMENSION)).astype(np.float32)
    gemms = bare_gemms(Codebook(random.standard_normal((LAYERS, SIZE, DIMENSION)).astype(np.float32)), rows)
    source = np.ones(64 << 20, np.uint8)
    target = np.empty_like(source)
    a_byte = _fastest(lambda: np.copyto(target, source)) / len(source)
    sizes = {"update": update_bytes, "codes": codes_bytes, "embedding": 4 * DIMENSION, "vector": DIMENSION + 4}
    found = {name: 1e6 * a_byte * size for name, size in sizes.items()}
    return found | {"GEMM": 1e6 * min(map(_fastest, gemms.values())) / len(rows)}


def _fastest(work: Callable[[], object], times: int = 9) -> float:
    """Seconds of processor time of the fastest of some runs."""
    taken = []
    for _ in range(times):
        since = time.thread_time()
        work()
        taken.append(time.thread_time() - since)
    return min(taken)
