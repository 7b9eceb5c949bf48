"""ONNX graphs, node by node: names are made here, so that the same graph gives the same bytes; needs the package onnx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.codebooks.onnx_format import METADATA_PREFIX

OPSET: Final = 17  # ONNX Runtime reads it since 1.12
CODEBOOK_OPSET: Final = 18  # since 1.14; has ScatterElements with a maximum
RUNTIME_DOMAIN: Final = "com.microsoft"
_INTERMEDIATE_REPRESENTATION: Final = 8  # the file format that belongs to both


class Nodes:
    """Nodes and constants in the order in which they were added. ``branch_of``: these are of a branch (``If``) inside those,
    whose constants they share; ``prefix`` keeps their names apart.
    """

    def __init__(self, branch_of: Nodes | None = None, prefix: str = "") -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {} if branch_of is None else branch_of.constants
        self._prefix = prefix

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Adds it under its name, once; returns the name."""
        from onnx import numpy_helper

        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def number(self, name: str, value: int | float, kind: type[np.generic] = np.int64) -> str:
        """A constant of one number."""
        return self.constant(name, np.array(value, dtype=kind))

    def numbers(self, name: str, values: Sequence[int]) -> str:
        """A constant int64 (n,): axes, shapes."""
        return self.constant(name, np.array(values, dtype=np.int64))

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name, which is made if none is given."""
        from onnx import helper

        output = output or f"{self._prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output


def model_bytes(graph: Any, metadata: Mapping[str, object], opset: int = OPSET) -> bytes:
    """A graph with our metadata as an ONNX model; the same graph gives the same bytes.

    With ``CODEBOOK_OPSET`` it may have operators of ONNX Runtime's own.
    """
    from onnx import helper

    own = [helper.make_opsetid(RUNTIME_DOMAIN, 1)] if opset > OPSET else []
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), *own],
        ir_version=_INTERMEDIATE_REPRESENTATION,
        producer_name="sidstream",
    )
    helper.set_model_props(model, {METADATA_PREFIX + name: str(value) for name, value in metadata.items()})
    content: bytes = model.SerializeToString(deterministic=True)
    return content
