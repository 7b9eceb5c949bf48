"""Assignment: embeddings to codes, against a bare GEMM of the same FLOPs and against faiss, one thread each.

    python -m benchmarks.assignment [--json PATH] [--quick]

The floor per item, L = 3, M = 256, D = 384: 2·L·M·D = 590 kFLOP, and 1,536 bytes of embedding read, 6 bytes of codes
written; the codebook (1.2 MB) stays in the processor's cache. At 100 GFLOP/s, what this kind of core gives to float32,
that is 5.9 µs of arithmetic, while the bytes take 0.15 µs at 10 GB/s: arithmetic decides, so a GEMM of the same FLOPs
is the bar, and what the encoder adds to it (arg-max over 768 scores, gather and subtract of 384 numbers, calls) is
overhead. M = 1024 and 4096 cost 4 and 16 times as much per item.

The bar is the fastest GEMM found here: NumPy's and torch's, whole and in blocks whose scores stay in the cache. The
candidates run in turns and each keeps the median of its processor time: on one thread that is the wall time of an idle
machine, and waiting for a core that others use counts for nobody.
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
from collections.abc import Callable, Mapping
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.reporting import Result, Target, benchmark_arguments, report
from models.codebooks.codebook import Codebook
from models.codebooks.onnx_encoder import OnnxEncoder
from models.codebooks.onnx_export import export_onnx

LAYERS, DIMENSION = 3, 384
ITEMS_BY_SIZE = {256: 100_000, 1024: 25_000, 4096: 6_400}
BLOCK_ROWS = 256
FAISS_BLOCK_ROWS = 4096  # faiss makes its own blocks of this size; more rows would only write residuals to memory


def main() -> int:
    parser = benchmark_arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the items, three rounds: for a first look")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as directory:
        for size, items in ITEMS_BY_SIZE.items():
            items, rounds = (items // 10, 3) if arguments.quick else (items, 5)
            results += measure(size, items, rounds, Path(directory) / f"{size}.onnx")
    return report("Assignment: embeddings to codes, one thread, 384 dimensions, 3 layers", results, arguments.json)


def measure(size: int, items: int, rounds: int, path: Path) -> list[Result]:
    """The rows of the table for codebooks of ``size`` codewords per layer."""
    random = np.random.default_rng(size)
    codewords = random.standard_normal((LAYERS, size, DIMENSION)).astype(np.float32)
    # Norms as fitted codebooks have them: about 0.7 in the first layer, less in each later one.
    codebook = Codebook(codewords * (0.7 / np.sqrt(DIMENSION) / np.arange(1, LAYERS + 1))[:, None, None].astype("f4"))
    embeddings = random.standard_normal((items, DIMENSION)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    export_onnx(codebook, path)
    encoder = OnnxEncoder(path, threads=1)
    gemms = bare_gemms(codebook, embeddings)
    rivals = faiss_encoders(codebook, embeddings)
    seconds = interleaved_medians({"encoder": lambda: encoder.encode(embeddings), **gemms, **rivals}, rounds)
    fastest_gemm = min(gemms, key=seconds.__getitem__)
    rate = items / seconds["encoder"]
    rows = [
        Result(
            f"M={size}: encode {items:,} items",
            rate,
            "items/s",
            f"bare GEMM ({fastest_gemm})",
            items / seconds[fastest_gemm],
            Target.ratio_at_least(0.8),
        )
    ]
    rows += [Result(f"M={size}: encode", rate, "items/s", name, items / seconds[name]) for name in rivals]
    for batch in (1, 16, 64):
        microseconds = 1e6 * statistics.median(timed(lambda: encoder.encode(embeddings[:batch])) for _ in range(50))  # noqa: B023
        rows.append(Result(f"M={size}: one call with {batch} item{'s' * (batch > 1)}", microseconds, "µs"))
    return rows


def bare_gemms(codebook: Codebook, embeddings: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """Ways to compute only embeddings x codewords of every layer, into memory that is already there."""
    weights = [np.ascontiguousarray(layer.T) for layer in codebook.codewords]
    scores = np.empty((len(embeddings), codebook.size), dtype=np.float32)
    tensor, tensor_scores = torch.from_numpy(embeddings), torch.from_numpy(scores)
    tensor_weights = [torch.from_numpy(weight) for weight in weights]

    def numpy_whole() -> None:
        for weight in weights:
            np.matmul(embeddings, weight, out=scores)

    def numpy_blocks() -> None:
        for start in range(0, len(embeddings), BLOCK_ROWS):
            rows = embeddings[start : start + BLOCK_ROWS]
            for weight in weights:
                np.matmul(rows, weight, out=scores[: len(rows)])

    def torch_whole() -> None:
        for weight in tensor_weights:
            torch.mm(tensor, weight, out=tensor_scores)

    def torch_blocks() -> None:
        for start in range(0, len(embeddings), BLOCK_ROWS):
            rows = tensor[start : start + BLOCK_ROWS]
            for weight in tensor_weights:
                torch.mm(rows, weight, out=tensor_scores[: len(rows)])

    return {
        "NumPy": numpy_whole,
        "NumPy, blocks": numpy_blocks,
        "torch": torch_whole,
        "torch, blocks": torch_blocks,
    }


def faiss_encoders(codebook: Codebook, embeddings: NDArray[np.float32]) -> dict[str, Callable[[], object]]:
    """Two ways in which faiss gives the same codes, checked here."""
    indexes = []
    for layer in codebook.codewords:
        index = faiss.IndexFlatL2(codebook.dimension)
        index.add(layer)
        indexes.append(index)
    quantizer = faiss.ResidualQuantizer(codebook.dimension, codebook.layers, codebook.size.bit_length() - 1)
    quantizer.max_beam_size = 1
    faiss.copy_array_to_vector(codebook.codewords.ravel(), quantizer.codebooks)
    quantizer.is_trained = True

    def flat_indexes() -> NDArray[np.int64]:
        codes = np.empty((len(embeddings), codebook.layers), dtype=np.int64)
        for start in range(0, len(embeddings), FAISS_BLOCK_ROWS):
            residual = embeddings[start : start + FAISS_BLOCK_ROWS]
            for layer_index, index in enumerate(indexes):
                chosen = index.search(residual, 1)[1][:, 0]
                residual = residual - codebook.codewords[layer_index, chosen]
                codes[start : start + len(residual), layer_index] = chosen
        return codes

    # Rivals that did other work would prove nothing: all must reconstruct the sample alike, but for near-ties.
    sample, expected = embeddings[:1000], codebook.reconstruct(codebook.encode(embeddings[:1000]))
    for name, found in (
        ("IndexFlatL2", codebook.reconstruct(flat_indexes()[: len(sample)])),
        ("ResidualQuantizer", quantizer.decode(quantizer.compute_codes(sample))),
    ):
        alike = np.isclose(found, expected, atol=1e-5).all(axis=1).mean()
        if alike < 0.99:
            raise RuntimeError(f"faiss {name} codes only {alike:.1%} of the sample as sidstream does: no fair baseline")

    return {
        "faiss IndexFlatL2 per layer": flat_indexes,
        "faiss ResidualQuantizer": lambda: quantizer.compute_codes(embeddings),
    }


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
