"""Writes a codebook as an ONNX graph that turns embeddings into codes; needs the package onnx.

The dense layers of the codebook's encoder, if it has one. Then per layer: scores = x·Cᵀ − ½‖c‖² (arg-max of it =
arg-min of the distance, paper eq. 1), arg-max with ties to the lowest number, gather, subtract (eq. 2).

Beside the products little time may go. −½‖c‖² is one more dimension of every codeword, and 1 one more of every embedding: a
bias would cost a pass over the scores. ONNX Runtime's ArgMax takes a nanosecond a score and its ReduceMax a tenth: so the
maximum of each 64 codewords first, then the arg-max over the maxima and within the 64 that have it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.codebooks.codebook import Codebook
from models.codebooks.onnx_format import (
    FORMAT_VERSION,
    INPUT_NAME,
    OUTPUT_NAME,
    ROWS,
    SCORES_NAME,
    EncoderError,
)
from models.codebooks.onnx_nodes import Nodes, model_bytes

_LARGEST_GRAPH_BYTES: Final = 2**31 - 2**20  # a protobuf message ends at 2 GiB
GROUP: Final = 64  # codewords whose maximum is taken at once: of 16 to 128 the fastest at M = 256 to 4,096


def export_onnx(codebook: Codebook, path: str | Path) -> None:
    """Writes the graph: input ``embeddings`` float32 (rows, D), output ``codes`` uint16 (rows, L), and ``scores`` float32
    (rows, L) of the chosen codewords, for any number of rows.

    The same codebook gives the same bytes. Its metadata say which codebook it is and in what shape.
    Raises ``EncoderError`` for a codebook that does not fit into one file.
    """
    layers = () if codebook.encoder is None else codebook.encoder.layers
    numbers = codebook.codewords.nbytes + sum(weight.nbytes + bias.nbytes for weight, bias in layers)
    if numbers > _LARGEST_GRAPH_BYTES:
        raise EncoderError(
            f"a codebook of {codebook.layers} x {codebook.size} codewords of {codebook.codewords.shape[2]} dimensions takes "
            f"{numbers:,} bytes, but an ONNX file holds 2 GiB; fit a smaller one"
        )
    metadata = {
        "format_version": FORMAT_VERSION,
        "codebook_id": codebook.id,
        "layers": codebook.layers,
        "size": codebook.size,
        "dimension": codebook.dimension,
    }
    Path(path).write_bytes(model_bytes(_quantisation(codebook), metadata))


def _quantisation(codebook: Codebook) -> Any:
    """The graph: codes and scores of every layer."""
    from onnx import TensorProto, helper

    dimension = codebook.codewords.shape[2]
    nodes = Nodes()
    residual = _with_one(nodes, _through_encoder(nodes, codebook))
    chosen, best = [], []
    for layer_index in range(codebook.layers):
        codewords = nodes.constant(f"codewords_{layer_index}", _with_norms(codebook, layer_index))
        scores = nodes.add("Gemm", [residual, codewords], f"scores_{layer_index}", transB=1)
        number, score = _best(nodes, scores, codebook.size, layer_index)
        chosen.append(number)
        best.append(score)
        if layer_index + 1 < codebook.layers:
            # Without the norms, which stand in the residual's column of ones. Both are constants: it is multiplied at the load.
            mask = nodes.constant("without_norms", np.append(np.ones(dimension, np.float32), np.float32(0)))
            vectors = nodes.add("Mul", [codewords, mask], f"vectors_{layer_index}")
            flat = nodes.add(
                "Squeeze", [number, nodes.constant("columns", np.array([1], dtype=np.int64))], f"flat_{layer_index}"
            )
            nearest = nodes.add("Gather", [vectors, flat], f"nearest_{layer_index}", axis=0)
            residual = nodes.add("Sub", [residual, nearest], f"residual_{layer_index + 1}")
    numbers = nodes.add("Concat", chosen, "codes_as_int64", axis=1)
    nodes.add("Cast", [numbers], OUTPUT_NAME, to=TensorProto.UINT16)
    nodes.add("Concat", best, SCORES_NAME, axis=1)
    return helper.make_graph(
        nodes.nodes,
        "residual_quantisation",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [ROWS, codebook.dimension])],
        [
            helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.UINT16, [ROWS, codebook.layers]),
            helper.make_tensor_value_info(SCORES_NAME, TensorProto.FLOAT, [ROWS, codebook.layers]),
        ],
        list(nodes.constants.values()),
    )


def _through_encoder(nodes: Nodes, codebook: Codebook) -> str:
    """The embeddings in the space of the codewords."""
    rows = INPUT_NAME
    layers = () if codebook.encoder is None else codebook.encoder.layers
    for number, (weight, bias) in enumerate(layers):
        parameters = [
            nodes.constant(f"encoder_weight_{number}", weight),
            nodes.constant(f"encoder_bias_{number}", bias),
        ]
        rows = nodes.add("Gemm", [rows, *parameters], f"encoder_{number}", transB=1)
        if number + 1 < len(layers):
            rows = nodes.add("Relu", [rows], f"encoder_relu_{number}")
    return rows


def _with_one(nodes: Nodes, rows: str) -> str:
    """A column of ones behind them, (rows, d + 1)."""
    pads = nodes.constant("one_column_behind", np.array([0, 0, 0, 1], dtype=np.int64))
    return nodes.add("Pad", [rows, pads, nodes.constant("one", np.array(1, dtype=np.float32))], "residual_0")


def _with_norms(codebook: Codebook, layer_index: int) -> NDArray[np.float32]:
    """Codewords and -½‖c‖², float32 (M', d + 1), filled up to whole groups with codewords that nothing is near to."""
    rows = np.zeros((_whole_groups(codebook.size), codebook.codewords.shape[2] + 1), dtype=np.float32)
    rows[: codebook.size, :-1] = codebook.codewords[layer_index]
    rows[: codebook.size, -1] = -codebook.half_squared_norms[layer_index]
    rows[codebook.size :, -1] = np.finfo(np.float32).min
    return rows


def _whole_groups(size: int) -> int:
    """M': M, or more where its last group is not full."""
    group = min(GROUP, size)
    return -(-size // group) * group


def _best(nodes: Nodes, scores: str, size: int, layer: int) -> tuple[str, str]:
    """Of scores float32 (rows, M'): number int64 (rows, 1) of the greatest, the lowest of equal ones, and its score."""
    group = min(GROUP, size)
    grouped = nodes.add(
        "Reshape",
        [scores, nodes.constant("groups", np.array([0, -1, group], dtype=np.int64))],
        f"grouped_{layer}",
    )
    maxima = nodes.add("ReduceMax", [grouped], f"maxima_{layer}", axes=[2], keepdims=0)
    best_group = nodes.add("ArgMax", [maxima], f"best_group_{layer}", axis=1, keepdims=1, select_last_index=0)
    members = nodes.add("GatherND", [grouped, best_group], f"members_{layer}", batch_dims=1)
    within = nodes.add("ArgMax", [members], f"within_{layer}", axis=1, keepdims=1, select_last_index=0)
    width = nodes.constant("group", np.array(group, dtype=np.int64))
    first = nodes.add("Mul", [best_group, width], f"first_of_group_{layer}")
    number = nodes.add("Add", [first, within], f"number_{layer}")
    if (
        _whole_groups(size) > size
    ):  # only scores that overflow float32 are as low as those of what fills up the last group
        last = nodes.constant("last_number", np.array(size - 1, dtype=np.int64))
        number = nodes.add("Min", [number, last], f"chosen_{layer}")
    return number, nodes.add("ReduceMax", [maxima], f"best_score_{layer}", axes=[1], keepdims=1)
