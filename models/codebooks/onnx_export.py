"""Writes a codebook as an ONNX graph that turns a block of embeddings into codes; needs the package onnx.

The dense layers of the codebook's encoder, if it has one. Then per layer: scores = x·Cᵀ − ½‖c‖² (arg-max of it =
arg-min of the distance, paper eq. 1), arg-max with ties to the lowest number, gather, subtract (eq. 2). The number of
rows is fixed in the graph: one shape means one arithmetic, so codes cannot depend on how many items happened to arrive
together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from models.codebooks.codebook import Codebook
from models.codebooks.onnx_format import (
    BLOCK_ROWS,
    FORMAT_VERSION,
    INPUT_NAME,
    METADATA_PREFIX,
    OUTPUT_NAME,
    EncoderError,
)

_OPSET: Final = 17  # every operator here is older; ONNX Runtime reads it since 1.12
_INTERMEDIATE_REPRESENTATION: Final = 8  # the file format that belongs to this opset
_LARGEST_GRAPH_BYTES: Final = 2**31 - 2**20  # a protobuf message ends at 2 GiB


def export_onnx(codebook: Codebook, path: str | Path, *, block_rows: int = BLOCK_ROWS) -> None:
    """Writes the graph: input ``embeddings`` float32 (block_rows, D), output ``codes`` uint16 (block_rows, L).

    The same codebook gives the same bytes. Its metadata say which codebook it is and in what shape.
    Raises ``EncoderError`` for a codebook that does not fit into one file.
    """
    from onnx import TensorProto, helper, numpy_helper

    layers = () if codebook.encoder is None else codebook.encoder.layers
    numbers = codebook.codewords.nbytes + sum(weight.nbytes + bias.nbytes for weight, bias in layers)
    if numbers > _LARGEST_GRAPH_BYTES:
        raise EncoderError(
            f"a codebook of {codebook.layers} x {codebook.size} codewords of {codebook.codewords.shape[2]} dimensions takes "
            f"{numbers:,} bytes, but an ONNX file holds 2 GiB; fit a smaller one"
        )
    nodes, constants = [], []
    residual = INPUT_NAME
    for number, (weight, bias) in enumerate(layers):
        constants.append(numpy_helper.from_array(weight, f"encoder_weight_{number}"))
        constants.append(numpy_helper.from_array(bias, f"encoder_bias_{number}"))
        parameters, dense = [f"encoder_weight_{number}", f"encoder_bias_{number}"], f"encoder_{number}"
        nodes.append(helper.make_node("Gemm", [residual, *parameters], [dense], transB=1))
        residual = dense
        if number + 1 < len(layers):
            nodes.append(helper.make_node("Relu", [dense], [f"encoder_relu_{number}"]))
            residual = f"encoder_relu_{number}"
    for layer_index in range(codebook.layers):
        codewords, norms = f"codewords_{layer_index}", f"minus_half_norms_{layer_index}"
        constants.append(numpy_helper.from_array(codebook.codewords[layer_index], codewords))
        constants.append(numpy_helper.from_array(-codebook.half_squared_norms[layer_index], norms))
        scores, chosen = f"scores_{layer_index}", f"chosen_{layer_index}"
        nodes.append(helper.make_node("Gemm", [residual, codewords, norms], [scores], transB=1))
        nodes.append(helper.make_node("ArgMax", [scores], [chosen], axis=1, keepdims=1, select_last_index=0))
        if layer_index + 1 < codebook.layers:
            flat, nearest, after = f"flat_{layer_index}", f"nearest_{layer_index}", f"residual_{layer_index + 1}"
            nodes.append(helper.make_node("Squeeze", [chosen, "columns"], [flat]))
            nodes.append(helper.make_node("Gather", [codewords, flat], [nearest], axis=0))
            nodes.append(helper.make_node("Sub", [residual, nearest], [after]))
            residual = after
    constants.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "columns"))
    chosen_columns = [f"chosen_{layer_index}" for layer_index in range(codebook.layers)]
    nodes.append(helper.make_node("Concat", chosen_columns, ["codes_as_int64"], axis=1))
    nodes.append(helper.make_node("Cast", ["codes_as_int64"], [OUTPUT_NAME], to=TensorProto.UINT16))
    shapes = [block_rows, codebook.dimension], [block_rows, codebook.layers]
    graph = helper.make_graph(
        nodes,
        "residual_quantisation",
        [helper.make_tensor_value_info(INPUT_NAME, TensorProto.FLOAT, shapes[0])],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.UINT16, shapes[1])],
        constants,
    )
    metadata = {
        "format_version": FORMAT_VERSION,
        "codebook_id": codebook.id,
        "layers": codebook.layers,
        "size": codebook.size,
        "dimension": codebook.dimension,
        "block_rows": block_rows,
    }
    Path(path).write_bytes(model_bytes(graph, metadata))


def model_bytes(graph: Any, metadata: Mapping[str, object]) -> bytes:
    """A graph with our metadata as an ONNX model; the same graph gives the same bytes."""
    from onnx import helper

    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_INTERMEDIATE_REPRESENTATION,
        producer_name="sidstream",
    )
    helper.set_model_props(model, {METADATA_PREFIX + name: str(value) for name, value in metadata.items()})
    content: bytes = model.SerializeToString(deterministic=True)
    return content
