"""Assignment: embeddings to codes, exact and screened in int8, against a bare GEMM of the same FLOPs and against faiss.

    python -m benchmarks assignment [--json PATH] [--quick] [--data FOLDER]

The floor per item, L = 3, M = 256, D = 384: 2·L·M·D = 590 kFLOP, and 1,536 bytes of embedding read, 6 bytes of codes
written; the codebook (1.2 MB) stays in the processor's cache. M = 1,024 and 4,096 cost 4 and 16 times as much. A GEMM of
the same FLOPs is the bar; what the encoder adds to it (arg-max over the scores, gather and subtract, calls) is overhead, and what
the screen saves (8-bit products) may be more. Everything on one thread.

The bar is the fastest GEMM found here, in the same turns: ONNX Runtime's own, NumPy's and torch's, whole and in blocks
whose scores stay in the cache. The candidates run in turns and each keeps the median of its processor time: on one thread that is
the wall time of an idle machine, and waiting for a core that others use counts for nobody.

Screened codes must be the exact ones but for float ties, which are counted and named; anything else ends the benchmark. Random
rows and codewords are the hardest data for a screen: all codewords are nearly as near. With ``--data`` (a folder of
``*/*.npy`` embeddings) codebooks are fitted on real ones as well, up to 4,096 codewords on mixtures of two items each.
"""

# ruff: noqa: E402 (threads are set before the first import that reads them)
from __future__ import annotations

import os

# Before NumPy is imported: BLAS reads these once.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common.reporting import Result, Target, benchmark_arguments, report
from benchmarks.stream.assignment_rivals import bare_gemms, faiss_encoders
from models.codebooks.codebook import Codebook, fit_residual_kmeans
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.onnx_export import export_onnx
from models.codebooks.onnx_screen import screen_ranges

LAYERS, DIMENSION = 3, 384
# Whole batches of the assigner, 8,000; fewer where they take seconds.
ITEMS_BY_SIZE = {256: 40_000, 1024: 16_000, 4096: 8_000}
LIVE_BATCHES = (1, 16, 64, 256)
ITEMS_A_CODEWORD = 12  # fewer, and many codewords are single items: no codebook that anybody would use
EXACT_TARGETS = {1024: Target.ratio_at_least(0.95), 4096: Target.ratio_at_least(0.95)}
SCREENED_TARGET = Target.ratio_at_least(1.8)
FLOAT_TIE = 2e-6  # of the squared length of the embedding: float32 sums of 384 products are not nearer


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer items, three rounds: for a first look")
    parser.add_argument("--data", type=Path, help="a folder with catalogues' embeddings, FOLDER/*/*.npy")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as directory:
        for size, items in ITEMS_BY_SIZE.items():
            items, rounds = (items // 4, 3) if arguments.quick else (items, 5)
            for name, codebook, embeddings in data_sets(size, items, arguments.data):
                results += measure(name, codebook, embeddings, rounds, Path(directory))
    return report("Assignment: embeddings to codes, one thread, 384 dimensions, 3 layers", results, arguments.json)


def data_sets(size: int, items: int, folder: Path | None) -> Iterator[tuple[str, Codebook, NDArray[np.float32]]]:
    """Name, a codebook of ``size`` codewords per layer, and embeddings (items, D) for it."""
    random = np.random.default_rng(size)
    codewords = random.standard_normal((LAYERS, size, DIMENSION)).astype(np.float32)
    embeddings = random.standard_normal((items, DIMENSION)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    # Norms as fitted codebooks have them: about 0.7 in the first layer, less in each later one.
    lengths = (0.7 / np.sqrt(DIMENSION) / np.arange(1, LAYERS + 1))[:, None, None].astype("f4")
    yield "random", Codebook(codewords * lengths), embeddings
    for path in sorted(folder.glob("*/items*.npy")) if folder else ():
        real = np.load(path).astype(np.float32)
        if real.shape[1] != DIMENSION:
            continue
        name = path.parent.name
        if len(real) < ITEMS_A_CODEWORD * size:
            pairs = random.integers(0, len(real), (2, ITEMS_A_CODEWORD * size))
            real, name = 0.7 * real[pairs[0]] + 0.3 * real[pairs[1]], f"{name}, mixed"
            real /= np.linalg.norm(real, axis=1, keepdims=True)
        codebook = fit_residual_kmeans(real, layers=LAYERS, size=size, iterations=2)
        yield name, codebook, real[random.permutation(len(real))[:items]]


def measure(
    name: str, codebook: Codebook, embeddings: NDArray[np.float32], rounds: int, directory: Path
) -> list[Result]:
    """The rows of the table for one codebook; the exact way depends on no data, so random ones alone have all rows of it."""
    items, size = len(embeddings), codebook.size
    export_onnx(codebook, directory / "exact.onnx")
    export_onnx(codebook, directory / "screened.onnx", screen_ranges(codebook, embeddings))
    encoders = {way: OnnxEncoder(directory / f"{way}.onnx") for way in ("exact", "screened")}
    unsure = float(encoders["screened"].unsure(embeddings).mean())
    ties = named_ties(codebook, embeddings, *(encoder.encode(embeddings) for encoder in encoders.values()))
    label = f"M={size}, {name}"
    print(f"{label}: {len(ties)} float ties in {items:,} items; {unsure:.2%} left to float32", *ties, sep="\n  ")
    gemms = bare_gemms(codebook, embeddings)
    rivals = faiss_encoders(codebook, embeddings) if name == "random" else {}
    ways = {way: lambda e=encoder: e.encode(embeddings) for way, encoder in encoders.items()}
    seconds = interleaved_medians({**ways, **gemms, **rivals}, rounds)
    bar = min(gemms, key=seconds.__getitem__)
    others = min((gemm for gemm in gemms if not gemm.startswith("ONNX")), key=seconds.__getitem__)
    floor = (
        f"{2 * codebook.codewords.size / 1e6:.3g} MFLOP an item, {codebook.codewords.nbytes / 1e6:.3g} MB of codewords"
    )
    targets = {"exact": EXACT_TARGETS.get(size), "screened": SCREENED_TARGET if size >= 1024 else None}
    rows = []
    for way in ways if name == "random" else ("screened",):
        rate = items / seconds[way]
        for gemm, target in ((bar, targets[way]), (others, None)) if others != bar else ((bar, targets[way]),):
            rows.append(
                Result(
                    f"{label}: {items:,} items, {way}",
                    rate,
                    "items/s",
                    f"GEMM ({gemm})",
                    items / seconds[gemm],
                    target,
                    floor,
                )
            )
    if name != "random":
        return rows
    rows += [
        Result(f"{label}: {items:,} items", items / seconds["exact"], "items/s", rival, items / seconds[rival])
        for rival in rivals
    ]
    for batch in LIVE_BATCHES:
        few = embeddings[:batch]
        small = bare_gemms(codebook, few)
        live = {way: lambda e=encoder, f=few: e.encode(f) for way, encoder in encoders.items()}
        seconds = interleaved_medians({**live, **small}, 40 if size < 4096 else 15)
        bar = min(small, key=seconds.__getitem__)
        floor = f"{2 * batch * codebook.codewords.size / 1e6:.3g} MFLOP"
        target = Target.value_at_most(250) if size == 256 and batch <= 16 else None
        plural = "s" * (batch > 1)
        rows += [
            Result(
                f"M={size}: one call with {batch} item{plural}, {way}",
                1e6 * seconds[way],
                "µs",
                f"GEMM ({bar})",
                1e6 * seconds[bar],
                target if way == "exact" else None,
                floor,
            )
            for way in live
        ]
    return rows


def named_ties(
    codebook: Codebook, embeddings: NDArray[np.float32], exact: NDArray[np.uint16], screened: NDArray[np.uint16]
) -> list[str]:
    """One line an item whose codes differ in a float tie. Raises ``RuntimeError`` for any other difference."""
    lines = []
    for item in np.flatnonzero((exact != screened).any(axis=1)):
        layer_index = int(np.argmax(exact[item] != screened[item]))
        residual = embeddings[item].astype(np.float64)
        bound = FLOAT_TIE * float((residual**2).sum())
        for earlier in range(layer_index):
            residual -= codebook.codewords[earlier, exact[item, earlier]]
        one, other = (
            float(((residual - codebook.codewords[layer_index, codes[item, layer_index]]) ** 2).sum())
            for codes in (exact, screened)
        )
        lines.append(f"item {item}, layer index {layer_index}: squared distances {one!r} and {other!r}")
        if abs(one - other) > bound:
            raise RuntimeError(f"the screen gave another code, and no tie: {lines[-1]}")
    return lines


def interleaved_medians(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds per candidate: the median of ``rounds`` runs, all candidates taking turns, after one run to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        candidate()
    for _ in range(rounds):
        for name, candidate in candidates.items():
            seconds[name].append(timed(candidate))
    return {name: statistics.median(values) for name, values in seconds.items()}


def timed(work: Callable[[], object]) -> float:
    """Seconds of processor time, of all threads, that the work took."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    raise SystemExit(main())
