"""Writes a codebook as an ONNX graph that turns embeddings into codes; needs the package onnx.

The dense layers of the codebook's encoder, if it has one. Then per layer: scores = x·Cᵀ − ½‖c‖² (arg-max of it =
arg-min of the distance, paper eq. 1), arg-max with ties to the lowest number, gather, subtract (eq. 2). With a screen
(``models.codebooks.onnx_screen``) both ways are in the graph, as branches: the screened one, and this one for what it leaves.

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
    EXACT_NAME,
    FORMAT_VERSION,
    INPUT_NAME,
    NO_SCREEN,
    OUTPUT_NAME,
    ROWS,
    SCORES_NAME,
    SCREEN,
    UNSURE_NAME,
    EncoderError,
)
from models.codebooks.onnx_nodes import CODEBOOK_OPSET, Nodes, model_bytes
from models.codebooks.onnx_screen import ALIGNMENT, ScreenRanges, padded, screened_layer

_LARGEST_GRAPH_BYTES: Final = 2**31 - 2**20  # a protobuf message ends at 2 GiB
_GROUP: Final = 64  # codewords whose maximum is taken at once: of 16 to 128 the fastest at M = 256 to 4,096


def export_onnx(codebook: Codebook, path: str | Path, screen: ScreenRanges | None = None) -> None:
    """Writes the graph: input ``embeddings`` float32 (rows, D), output ``codes`` uint16 (rows, L), and ``scores`` float32
    (rows, L) of the chosen codewords, for any number of rows.

    With a screen there is an input more, ``exact`` bool (): whether to do without it; and an output more, ``unsure`` bool
    (rows, 1): the codes of such a row are to be computed again, exactly. Scores are then exact with ``exact`` alone.
    The same codebook and ranges give the same bytes. The metadata say which codebook it is, in what
    shape, and if it has a screen.
    Raises ``EncoderError`` for a codebook that does not fit into one file, and for a screen of a codebook with an encoder.
    """
    layers = () if codebook.encoder is None else codebook.encoder.layers
    numbers = codebook.codewords.nbytes + sum(weight.nbytes + bias.nbytes for weight, bias in layers)
    if screen is not None:
        numbers += codebook.codewords.nbytes // 4
    if numbers > _LARGEST_GRAPH_BYTES:
        raise EncoderError(
            f"a codebook of {codebook.layers} x {codebook.size} codewords of {codebook.codewords.shape[2]} dimensions takes "
            f"{numbers:,} bytes, but an ONNX file holds 2 GiB; fit a smaller one"
        )
    if screen is not None and codebook.encoder is not None:
        raise EncoderError(
            "a codebook with an encoder (RQ-VAE) cannot be screened: its products are few; leave the screen out"
        )
    metadata = {
        "format_version": FORMAT_VERSION,
        "codebook_id": codebook.id,
        "layers": codebook.layers,
        "size": codebook.size,
        "dimension": codebook.dimension,
        "screen": NO_SCREEN if screen is None else SCREEN,
    }
    graph = _quantisation(codebook) if screen is None else _screened_quantisation(codebook, screen)
    Path(path).write_bytes(model_bytes(graph, metadata, CODEBOOK_OPSET))


def _quantisation(codebook: Codebook) -> Any:
    """The graph: codes and scores of every layer."""
    nodes = Nodes()
    # Three operators, as ONNX Runtime's Pad takes four times as long.
    column = nodes.add(
        "Concat", [nodes.add("Shape", [INPUT_NAME], start=0, end=1), nodes.numbers("columns", [1])], axis=0
    )
    ones = nodes.add("Expand", [nodes.constant("one", np.ones((1, 1), dtype=np.float32)), column])
    residual = nodes.add("Concat", [_through_encoder(nodes, codebook), ones], axis=1)
    # Norms stand in the residual's column of ones and are not subtracted. Both factors are constants: multiplied at the load.
    mask = nodes.constant("without_norms", np.append(np.ones(codebook.codewords.shape[2], "f4"), np.float32(0)))
    chosen, best = [], []
    for layer_index in range(codebook.layers):
        codewords = nodes.constant(f"codewords_{layer_index}", _with_norms(codebook, layer_index))
        number, score = _best(nodes, nodes.add("Gemm", [residual, codewords], transB=1), codebook.size)
        chosen.append(number)
        best.append(score)
        if layer_index + 1 < codebook.layers:
            residual = _less_nearest(nodes, residual, nodes.add("Mul", [codewords, mask]), number)
    _outputs(nodes, chosen, best)
    return _graph(nodes, [_embeddings(codebook)], _results(codebook))


def _screened_quantisation(codebook: Codebook, screen: ScreenRanges) -> Any:
    """The graph with two branches: screened, and exact."""
    from onnx import TensorProto, helper

    nodes = Nodes()
    dimension = codebook.codewords.shape[2]
    residual = INPUT_NAME
    if dimension % ALIGNMENT:
        pads = nodes.numbers("columns_behind", [0, 0, 0, padded(dimension, ALIGNMENT) - dimension])
        residual = nodes.add("Pad", [INPUT_NAME, pads])
    for layer_index in range(codebook.layers):
        rows = _with_norms(codebook, layer_index)
        codewords = np.zeros((len(rows), padded(dimension, ALIGNMENT)), dtype=np.float32)
        codewords[:, :dimension] = rows[:, :-1]
        nodes.constant(f"codewords_{layer_index}", codewords)
        nodes.constant(f"minus_half_norms_{layer_index}", np.ascontiguousarray(rows[:, -1]))
    results = [*_results(codebook), helper.make_tensor_value_info(UNSURE_NAME, TensorProto.BOOL, [ROWS, 1])]

    branches = []
    for name, branch in (("exact", _exact_branch), ("screened", _screened_branch)):
        inner = Nodes(branch_of=nodes, prefix=f"{name}_")
        outputs = branch(inner, residual, codebook, screen)
        values = [
            helper.make_tensor_value_info(output, value.type.tensor_type.elem_type, None)
            for output, value in zip(outputs, results, strict=True)
        ]
        branches.append(helper.make_graph(inner.nodes, name, [], values))
    nodes.nodes.append(
        helper.make_node(
            "If",
            [EXACT_NAME],
            [value.name for value in results],
            then_branch=branches[0],
            else_branch=branches[1],
        )
    )
    inputs = [_embeddings(codebook), helper.make_tensor_value_info(EXACT_NAME, TensorProto.BOOL, [])]
    return _graph(nodes, inputs, results)


def _exact_branch(nodes: Nodes, residual: str, codebook: Codebook, screen: ScreenRanges) -> list[str]:
    """Names of codes, scores and unsure (nothing is)."""
    chosen, best = [], []
    for layer_index in range(codebook.layers):
        codewords = f"codewords_{layer_index}"
        scores = nodes.add("Gemm", [residual, codewords, f"minus_half_norms_{layer_index}"], transB=1)
        number, score = _best(nodes, scores, codebook.size)
        chosen.append(number)
        best.append(score)
        if layer_index + 1 < codebook.layers:
            residual = _less_nearest(nodes, residual, codewords, number)
    never = nodes.add("Less", [best[0], best[0]])
    return [*_outputs(nodes, chosen, best, prefix="exact_"), never]


def _screened_branch(nodes: Nodes, residual: str, codebook: Codebook, screen: ScreenRanges) -> list[str]:
    """Names of codes, scores (bounds of them) and unsure."""
    squares = nodes.add("Mul", [residual, residual])
    squared_length = nodes.add("ReduceSum", [squares, nodes.numbers("columns", [1])], keepdims=1)
    chosen, best, unsure = [], [], ""
    for layer_index in range(codebook.layers):
        layer = screened_layer(nodes, residual, squared_length, codebook, layer_index, screen)
        chosen.append(layer.numbers)
        best.append(layer.raised_score)
        unsure = nodes.add("Or", [unsure, layer.unsure]) if unsure else layer.unsure
        if layer_index + 1 < codebook.layers:
            residual = _less_nearest(nodes, residual, f"codewords_{layer_index}", layer.numbers)
            # ‖r − c‖² = ‖r‖² − 2 (r·c − ½‖c‖²): at most this, as the score is a lower bound
            twice = nodes.add("Add", [layer.lowered_score, layer.lowered_score])
            squared_length = nodes.add("Sub", [squared_length, twice])
    return [*_outputs(nodes, chosen, best, prefix="screened_"), unsure]


def _embeddings(codebook: Codebook) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, [ROWS, codebook.dimension])


def _results(codebook: Codebook) -> list[Any]:
    from onnx import TensorProto, helper

    return [
        helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.UINT16, [ROWS, codebook.layers]),
        helper.make_tensor_value_info(SCORES_NAME, TensorProto.FLOAT, [ROWS, codebook.layers]),
    ]


def _graph(nodes: Nodes, inputs: list[Any], outputs: list[Any]) -> Any:
    from onnx import helper

    return helper.make_graph(nodes.nodes, "residual_quantisation", inputs, outputs, list(nodes.constants.values()))


def _outputs(nodes: Nodes, chosen: list[str], best: list[str], prefix: str = "") -> list[str]:
    """Codes and scores of all layers, from numbers int64 (rows, 1) and scores float32 (rows, 1) of each."""
    from onnx import TensorProto

    numbers = nodes.add("Concat", chosen, axis=1)
    codes = nodes.add("Cast", [numbers], prefix + OUTPUT_NAME, to=TensorProto.UINT16)
    return [codes, nodes.add("Concat", best, prefix + SCORES_NAME, axis=1)]


def _less_nearest(nodes: Nodes, residual: str, codewords: str, number: str) -> str:
    """The residual of the next layer; number int64 (rows, 1)."""
    flat = nodes.add("Reshape", [number, nodes.numbers("flat", [-1])])
    return nodes.add("Sub", [residual, nodes.add("Gather", [codewords, flat], axis=0)])


def _through_encoder(nodes: Nodes, codebook: Codebook) -> str:
    """The embeddings in the space of the codewords."""
    rows = INPUT_NAME
    layers = () if codebook.encoder is None else codebook.encoder.layers
    for number, (weight, bias) in enumerate(layers):
        parameters = [
            nodes.constant(f"encoder_weight_{number}", weight),
            nodes.constant(f"encoder_bias_{number}", bias),
        ]
        rows = nodes.add("Gemm", [rows, *parameters], transB=1)
        if number + 1 < len(layers):
            rows = nodes.add("Relu", [rows])
    return rows


def _with_norms(codebook: Codebook, layer_index: int) -> NDArray[np.float32]:
    """Codewords and -½‖c‖², float32 (M', d + 1), filled up to whole groups with codewords that nothing is near to."""
    rows = np.zeros((_whole_groups(codebook.size), codebook.codewords.shape[2] + 1), dtype=np.float32)
    rows[: codebook.size, :-1] = codebook.codewords[layer_index]
    rows[: codebook.size, -1] = -codebook.half_squared_norms[layer_index]
    rows[codebook.size :, -1] = np.finfo(np.float32).min
    return rows


def _whole_groups(size: int) -> int:
    """M': M, or more where its last group is not full."""
    return padded(size, min(_GROUP, size))


def _best(nodes: Nodes, scores: str, size: int) -> tuple[str, str]:
    """Of scores float32 (rows, M'): number int64 (rows, 1) of the greatest, the lowest of equal ones, and its score."""
    group = min(_GROUP, size)
    grouped = nodes.add("Reshape", [scores, nodes.numbers("groups", [0, -1, group])])
    maxima = nodes.add("ReduceMax", [grouped, nodes.numbers("last_axis", [2])], keepdims=0)
    best_group = nodes.add("ArgMax", [maxima], axis=1, keepdims=1, select_last_index=0)
    members = nodes.add("GatherND", [grouped, best_group], batch_dims=1)
    within = nodes.add("ArgMax", [members], axis=1, keepdims=1, select_last_index=0)
    number = nodes.add("Add", [nodes.add("Mul", [best_group, nodes.number("group", group)]), within])
    if _whole_groups(size) > size:
        # Scores that overflow float32 are as low as those of what fills up the last group.
        number = nodes.add("Min", [number, nodes.number("last_number", size - 1)])
    return number, nodes.add("ReduceMax", [maxima, nodes.numbers("columns", [1])], keepdims=1)
