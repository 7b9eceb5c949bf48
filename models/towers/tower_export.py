"""Writes trained text towers as a directory: one ONNX graph a tower, and a manifest last; needs the package onnx.

A graph: rows of the feature table, weighted and summed (DSSM's bag), scaled to length 1; plus two dense layers of it
(a correction: zero at the start of training); scaled to length 1 again. The table holds float16, everything is
computed in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundles.manifest import MANIFEST_FILE, record_file, write_manifest
from models.codebooks.dense_network import DenseNetwork
from models.codebooks.onnx_nodes import model_bytes
from models.directories import make_directory
from models.errors import SidstreamError
from models.towers.text_encoder import (
    BLOCK_ROWS,
    FORMAT_VERSION,
    INPUT_NAMES,
    OUTPUT_NAME,
    SHORTEST_NORM,
    TOWER_FILES,
    Side,
    Towers,
    TowersManifest,
    require_free,
)
from models.towers.text_features import GROUPS


@dataclass(frozen=True, eq=False)
class TowerWeights:
    """table: float16 (R, D), a row for each hashed feature, shared by both towers; group_weights: float32 (GROUPS,);
    query, item: D → D, one hidden layer. Raises ``SidstreamError`` for shapes that do not belong together.
    """

    table: NDArray[np.float16]
    group_weights: NDArray[np.float32]
    query: DenseNetwork
    item: DenseNetwork

    def __post_init__(self) -> None:
        through = {self.query.inputs, self.query.outputs, self.item.inputs, self.item.outputs}
        if self.table.ndim != 2 or through != {self.dimension} or self.group_weights.shape != (GROUPS,):
            raise SidstreamError(
                f"towers of a table {self.table.shape}, group weights {self.group_weights.shape} and dense layers over "
                f"{sorted(through)} numbers do not belong together; train them with `sidstream towers`"
            )
        if not (np.isfinite(self.table).all() and np.isfinite(self.group_weights).all()):
            raise SidstreamError("the towers have NaN or infinite weights; train again with a smaller learning rate")

    @property
    def rows(self) -> int:
        """R, the numbers that features are hashed into."""
        return int(self.table.shape[0])

    @property
    def dimension(self) -> int:
        """D, of the embeddings."""
        return int(self.table.shape[-1])

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: the beginning of the SHA-256 of shapes and numbers, the same on every machine."""
        digest = hashlib.sha256(f"sidstream towers format={FORMAT_VERSION} table={self.table.shape}\n".encode())
        digest.update(self.table.astype("<f2", copy=False).tobytes())
        digest.update(self.group_weights.astype("<f4", copy=False).tobytes())
        for side, network in (("query", self.query), ("item", self.item)):
            for name, tensor in network.tensors(side):
                digest.update(f"\n{name} {tensor.shape}\n".encode())
                digest.update(tensor.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()[:16]


def write_towers(
    weights: TowerWeights, directory: str | Path, *, training: Mapping[str, Any], replace: bool = False
) -> Towers:
    """Writes both graphs and then the manifest; ``training``: figures for people. Raises ``BundleError`` for a directory
    that holds towers, unless ``replace``, and for one that holds something else.
    """
    root = Path(directory)
    require_free(root, replace=replace)
    make_directory(root)
    # The manifest goes first and comes back last: what lies between is visibly incomplete.
    (root / MANIFEST_FILE).unlink(missing_ok=True)
    for side, name in TOWER_FILES.items():
        (root / name).write_bytes(tower_graph(weights, side))
    manifest = TowersManifest(
        format=FORMAT_VERSION,
        id=weights.id,
        dimension=weights.dimension,
        training=dict(training),
        files={name: record_file(root, name) for name in TOWER_FILES.values()},
    )
    write_manifest(root, manifest)
    return Towers.open(root)


def tower_graph(weights: TowerWeights, side: Side, *, block_rows: int = BLOCK_ROWS) -> bytes:
    """One tower as an ONNX file's bytes: features int64, groups int64, shares float32, all (block_rows, S) →
    embeddings float32 (block_rows, D). The same weights give the same bytes.
    """
    from onnx import TensorProto, helper, numpy_helper

    network = weights.query if side == "query" else weights.item
    constants = [
        numpy_helper.from_array(weights.table, "table"),
        # One more: the group of padding weighs nothing.
        numpy_helper.from_array(np.append(weights.group_weights, np.float32(0)), "group_weights"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "middle"),
        numpy_helper.from_array(np.array([SHORTEST_NORM], dtype=np.float32), "shortest_norm"),
    ]
    features, groups, shares = INPUT_NAMES
    nodes = [
        helper.make_node("Gather", ["group_weights", groups], ["weights_of_groups"]),
        helper.make_node("Mul", ["weights_of_groups", shares], ["weights"]),
        helper.make_node("Unsqueeze", ["weights", "middle"], ["weights_as_rows"]),
        helper.make_node("Gather", ["table", features], ["half_vectors"]),
        helper.make_node("Cast", ["half_vectors"], ["vectors"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["weights_as_rows", "vectors"], ["sums_as_rows"]),
        helper.make_node("Squeeze", ["sums_as_rows", "middle"], ["sums"]),
    ]

    def scaled(name: str, output: str) -> None:
        nodes.append(helper.make_node("ReduceL2", [name], [f"{name}_norm"], axes=[1], keepdims=1))
        nodes.append(helper.make_node("Max", [f"{name}_norm", "shortest_norm"], [f"{name}_divisor"]))
        nodes.append(helper.make_node("Div", [name, f"{name}_divisor"], [output]))

    scaled("sums", "bags")
    values = "bags"
    for number, (weight, bias) in enumerate(network.layers):
        constants.append(numpy_helper.from_array(weight, f"weight_{number}"))
        constants.append(numpy_helper.from_array(bias, f"bias_{number}"))
        if number:
            nodes.append(helper.make_node("Relu", [values], [f"relu_{number}"]))
            values = f"relu_{number}"
        nodes.append(
            helper.make_node("Gemm", [values, f"weight_{number}", f"bias_{number}"], [f"dense_{number}"], transB=1)
        )
        values = f"dense_{number}"
    nodes.append(helper.make_node("Add", ["bags", values], ["corrected"]))
    scaled("corrected", OUTPUT_NAME)
    types = (TensorProto.INT64, TensorProto.INT64, TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        f"{side}_tower",
        [
            helper.make_tensor_value_info(name, kind, [block_rows, "features"])
            for name, kind in zip(INPUT_NAMES, types, strict=True)
        ],
        [helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, [block_rows, weights.dimension])],
        constants,
    )
    metadata = {
        "format_version": FORMAT_VERSION,
        "towers_id": weights.id,
        "side": side,
        "rows": weights.rows,
        "dimension": weights.dimension,
        "block_rows": block_rows,
    }
    return model_bytes(graph, metadata)
