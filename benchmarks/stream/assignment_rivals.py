"""What assignment is held against: bare GEMMs of the same FLOPs, and faiss with the same codes. Threads are the caller's."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from models.codebooks.codebook import Codebook
from models.codebooks.onnx_nodes import Nodes, model_bytes

BLOCK_ROWS = 256
FAISS_BLOCK_ROWS = 4096  # faiss makes its own blocks of this size; more rows would only write residuals to memory


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

    session = _onnxruntime_products(weights)

    def onnxruntime_blocks() -> None:
        for start in range(0, len(embeddings), BLOCK_ROWS):
            rows = embeddings[start : start + BLOCK_ROWS]
            binding = session.io_binding()
            binding.bind_cpu_input("rows", rows)
            for number in range(len(weights)):
                out = scores[: len(rows)]
                binding.bind_output(f"scores_{number}", "cpu", 0, np.float32, list(out.shape), out.ctypes.data)
            session.run_with_iobinding(binding)

    return {
        "ONNX Runtime, blocks": onnxruntime_blocks,
        "NumPy": numpy_whole,
        "NumPy, blocks": numpy_blocks,
        "torch": torch_whole,
        "torch, blocks": torch_blocks,
    }


def _onnxruntime_products(weights: list[NDArray[np.float32]]) -> onnxruntime.InferenceSession:
    """A session of the products alone."""
    from onnx import TensorProto, helper

    nodes = Nodes()
    outputs = []
    for number, weight in enumerate(weights):
        product = nodes.add("MatMul", ["rows", nodes.constant(f"weight_{number}", weight)], f"scores_{number}")
        outputs.append(helper.make_tensor_value_info(product, TensorProto.FLOAT, ["n", weight.shape[1]]))
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", len(weights[0])])
    graph = helper.make_graph(nodes.nodes, "products", [rows], outputs, list(nodes.constants.values()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model_bytes(graph, {}), options, providers=["CPUExecutionProvider"])


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
