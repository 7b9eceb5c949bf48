"""ONNX graphs, node by node: names are made here, so that the same graph gives the same bytes; needs the package onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from models.codebooks.onnx_format import METADATA_PREFIX

OPSET: Final = 17  # ONNX Runtime reads it since 1.12
_INTERMEDIATE_REPRESENTATION: Final = 8  # the file format that belongs to this opset


class Nodes:
    """Nodes and constants in the order in which they were added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Adds it under its name, once; returns the name."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output


def model_bytes(graph: Any, metadata: Mapping[str, object]) -> bytes:
    """A graph with our metadata as an ONNX model; the same graph gives the same bytes."""
    from onnx import helper

    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_INTERMEDIATE_REPRESENTATION,
        producer_name="sidstream",
    )
    helper.set_model_props(model, {METADATA_PREFIX + name: str(value) for name, value in metadata.items()})
    content: bytes = model.SerializeToString(deterministic=True)
    return content
