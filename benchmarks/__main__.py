"""All benchmarks, one after the other, each in a process of its own: tables here, JSON under `.sidstream/benchmarks`.

    python -m benchmarks [NAME …]
    python -m benchmarks NAME --help             what one benchmark can be told, given after its name

The exit status is 1 if a target is missed or a benchmark fails, and 2 if one cannot run here.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from rich.console import Console

RESULTS: Final = Path(".sidstream/benchmarks")
COULD_NOT_RUN: Final = 2  # without a card, or told what it does not know
BENCHMARKS: Final = {
    "assignment": "embeddings → codes, against a bare GEMM and faiss",
    "store": "writing and reading the index at a million items, against bare LMDB",
    "attributes": "attributes that come alone, columns and new filters at a million items, against bare LMDB and NumPy",
    "training": "whole histories, against one example a target",
    "training-data": "examples larger than memory: peak memory of dividing, tables and first steps",
    "training-memory": "memory and time of training 0.1 billion parameters: bf16, accumulation, checkpointing, LoRA",
    "decode": "constrained beam search, against transformers' generate",
    "gpu": "serving on a card, against the floor of its memory, bare passes and generate; left out of all where there is no card",
    "generations": "freshness while a candidate pipeline catches up beside the one that answers, by its share; minutes",
    "deploying": "queries while another bundle is loaded beside the one that answers, against queries alone",
    "scale": "queries at 20 thousand, 1 million and 10 million items, with updates and without; ten minutes and more",
    "dense": "a query against the vectors of a catalogue, screened by the leading directions, against a scan of all",
    "filters": "filters and attributes at a million items, against queries without",
    "fm-index": "the constraint as an FM-index, against the prefix tree",
    "start": "a retriever is killed and asked: seconds until it answers again, on a real broker; minutes",
    "switch": "queries at a steady rate while models and codebooks are switched on a real broker; minutes",
    "gateway": "asking over HTTP against asking through Kafka directly, with nothing of a retriever; a minute",
    "ingest": "writing into an index of ten million items: catching up and live; ten minutes, 5 GB of disk",
    "freshness": "update → retrievable at several rates on a real broker, against a bare round trip; minutes",
    "warm-start": "recall after a share of a cold training's steps, from nothing and from an older bundle; an hour",
    "sizing": "what a catalogue of any size needs, from measured constants",
    "sizing-constants": "the constants of this machine, for sizing",
    "tracing": "what traces cost an item of the assigner's and the indexer's work, with headers and without",
    "pipeline": "item updates → retrievable on a real broker, against a plain copy; minutes",
}

BY_NAME_ALONE: Final = ("warm-start", "sizing", "sizing-constants")  # no measurement against a target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    asked, own = sys.argv[1:], []
    if len(asked) > 1 and asked[0] in BENCHMARKS and asked[1].startswith("-"):
        asked, own = asked[:1], asked[1:]
    names = parser.parse_args(asked).names or [
        name for name in BENCHMARKS if name not in BY_NAME_ALONE and (name != "gpu" or _has_card())
    ]
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {', '.join(unknown)}: choose of {', '.join(BENCHMARKS)}")
    console = Console()
    failed, could_not_run = [], False
    for number, name in enumerate(names, 1):
        console.print(f"[bold]{number}/{len(names)} {name}[/]: {BENCHMARKS[name]} …")
        since = time.monotonic()
        command = [
            sys.executable,
            "-m",
            _module(name),
            "--json",
            str(RESULTS / f"{name}.json"),
            *own,
        ]
        status = subprocess.run(command, check=False).returncode
        if status == COULD_NOT_RUN:
            could_not_run = True  # it has said why
        elif status != 0:
            failed.append(name)
        console.print(f"[dim]{name} took {time.monotonic() - since:.0f} s[/]\n")
    if failed:
        console.print(
            f"[red]target missed or failed: {', '.join(failed)}[/]; a busy machine is the first thing to check"
        )
    elif not could_not_run:
        console.print(f"[green]every target reached[/]; figures in {RESULTS}")
    return COULD_NOT_RUN if could_not_run and not failed else int(bool(failed))


def _module(name: str) -> str:
    """Of a benchmark: its file is in one of the rooms."""
    here = Path(__file__).parent
    (file,) = here.glob(f"*/{name.replace('-', '_')}.py")
    return f"benchmarks.{file.parent.name}.{file.stem}"


def _has_card() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    raise SystemExit(main())
