"""The int8 screen of a codebook's graph: products of 8-bit numbers say which codewords can be the nearest, and only where that
leaves several are their distances computed in float32; needs the package onnx to write it.

What must hold: a codeword that float32 would choose is never screened out. A score's error is a sum of D rounding errors of
known size: each codeword's score is raised by six standard deviations of its own error, and a codeword stays if its raised
score reaches the best one's lowered score. So two errors would have to differ by 8.5 standard deviations of their difference
(rounding errors are sub-Gaussian: 4 in 10^16). Where that does not hold, the graph says so of the row (``unsure``), which is
then coded in float32: numbers beyond the range that the scales were made for, or more codewords left than are worth comparing.

The scales are constants of the graph, and whatever is computed of a row is computed of it alone: codes cannot depend on what
an item is encoded with. What stays is compared by one arithmetic, whatever else stayed, so the screen decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.codebooks.codebook import Codebook
from models.codebooks.onnx_nodes import RUNTIME_DOMAIN, Nodes

GROUP: Final = 32  # codewords whose maximum is taken at once
ALIGNMENT: Final = 16  # dimensions, 64 bytes: rows that begin elsewhere would be added up in another order
_SAMPLE: Final = 20_000
_STANDARD_DEVIATIONS: Final = 6.0
_INPUT_LEVELS: Final = 127  # of 8 bits, about zero
_WEIGHT_LEVELS: Final = 63  # 7 bits: two products of 255 x 63 fit into the 16 bits in which AVX2 adds them
# What may stay of a row; they bound the time and memory of a block whose codewords are nearly the same.
_MOST_GROUPS: Final = 16
_MOST_LEFT: Final = 32  # beside the best
_FLOAT: Final = 1  # TensorProto.FLOAT
_FLOAT_ERROR: Final = 1e-6  # of the product of the lengths: what float32 sums of a few hundred numbers are off


@dataclass(frozen=True)
class ScreenRanges:
    """For each layer: the largest absolute number and the length of the residuals that the screen is for."""

    largest: tuple[float, ...]
    longest: tuple[float, ...]


def screen_ranges(codebook: Codebook, rows: NDArray[np.float32]) -> ScreenRanges:
    """Ranges that one row in a thousand of those float32 (N, D) exceeds at most, with a tenth to spare.

    Raises ``CodebookError`` for rows that the codebook does not take.
    """
    chosen = np.random.default_rng(0).permutation(len(rows))[:_SAMPLE]
    rows = rows[np.sort(chosen)]
    codes = codebook.encode(rows)
    residual = rows
    largest, longest = [], []
    for layer_index in range(codebook.layers):
        largest.append(1.1 * float(np.quantile(np.abs(residual).max(axis=1), 0.999)) or 1.0)
        longest.append(1.1 * float(np.quantile(np.linalg.norm(residual, axis=1), 0.999)) or 1.0)
        residual = residual - codebook.codewords[layer_index, codes[:, layer_index]]
    return ScreenRanges(tuple(largest), tuple(longest))


class ScreenedLayer(NamedTuple):
    """Names of what a layer gives: numbers int64 (rows, 1) of the nearest codewords; bounds of their scores float32
    (rows, 1), below and above; unsure bool (rows, 1).
    """

    numbers: str
    lowered_score: str
    raised_score: str
    unsure: str


def screened_layer(
    nodes: Nodes, residual: str, squared_length: str, codebook: Codebook, layer_index: int, ranges: ScreenRanges
) -> ScreenedLayer:
    """Of residuals float32 (rows, D') and bounds of their squared lengths float32 (rows, 1).

    The graph has constants ``codewords_N`` float32 (M', D') and ``minus_half_norms_N`` float32 (M',) of layer index N.
    """
    weights, scales, raised, margins = _quantised(codebook, layer_index, ranges)
    name = f"screen_{layer_index}_"
    group, columns = nodes.number("screen_group", GROUP), nodes.numbers("columns", [1])
    width = nodes.number("screen_width", len(raised))
    scale = nodes.number(name + "scale", ranges.largest[layer_index] / _INPUT_LEVELS, np.float32)
    zero = nodes.number("screen_zero", 128, np.uint8)

    small = nodes.add("QuantizeLinear", [residual, scale, zero])
    scores = nodes.add(
        "MatMulIntegerToFloat",
        [
            small,
            nodes.constant(name + "weights", weights),
            scale,
            nodes.constant(name + "scales", scales),
            zero,
            "",
            nodes.constant(name + "raised", raised),
        ],
        domain=RUNTIME_DOMAIN,
    )
    # The best of the raised scores; what stays must reach it, lowered.
    grouped = nodes.add("Reshape", [scores, nodes.numbers("screen_groups", [0, -1, GROUP])])
    maxima = nodes.add("ReduceMax", [grouped, nodes.numbers("last_axis", [2])], keepdims=0)
    best_group = nodes.add("ArgMax", [maxima], axis=1, keepdims=1, select_last_index=0)
    members = nodes.add("GatherND", [grouped, best_group], batch_dims=1)
    within = nodes.add("ArgMax", [members], axis=1, keepdims=1, select_last_index=0)
    best = nodes.add("Add", [nodes.add("Mul", [best_group, group]), within])
    best_raised = nodes.add("ReduceMax", [members, columns], keepdims=1)
    margin = nodes.add("Gather", [nodes.constant(name + "margins", margins), best])
    lowered = nodes.add("Sub", [best_raised, margin])
    # Of a row beyond the ranges nothing stays; it is coded again.
    extreme = nodes.add("ReduceMax", [nodes.add("Abs", [residual]), columns], keepdims=1)
    largest = nodes.number(name + "largest", ranges.largest[layer_index], np.float32)
    longest = nodes.number(name + "longest", ranges.longest[layer_index] ** 2, np.float32)
    inside = nodes.add(
        "And",
        [
            nodes.add("LessOrEqual", [extreme, largest]),
            nodes.add("LessOrEqual", [squared_length, longest]),
        ],
    )
    bar = nodes.add("Where", [inside, lowered, nodes.number("infinity", np.inf, np.float32)])
    # Groups that have such codewords, and the codewords: places in the matrix of scores, (rows · M',).
    flat = nodes.numbers("flat", [-1])
    reach = nodes.add("GreaterOrEqual", [maxima, bar])
    reaching = nodes.add("ReduceSum", [nodes.add("Cast", [reach], to=_FLOAT), columns], keepdims=1)
    few = nodes.add("LessOrEqual", [reaching, nodes.number("most_groups", _MOST_GROUPS, np.float32)])
    groups = _true_places(nodes, nodes.add("And", [reach, few]))
    per_row = nodes.number("screen_groups_a_row", len(raised) // GROUP)
    by_group = nodes.add("Reshape", [scores, nodes.numbers("screen_flat_groups", [-1, GROUP])])
    kept = nodes.add("Gather", [by_group, groups])
    bars = nodes.add("Gather", [bar, nodes.add("Div", [groups, per_row])])
    places = _true_places(nodes, nodes.add("GreaterOrEqual", [kept, bars]))
    which = nodes.add("Div", [places, group])
    whole = nodes.add("Mul", [nodes.add("Sub", [nodes.add("Gather", [groups, which]), which]), group])
    places = nodes.add("Add", [whole, places])
    row = nodes.add("Div", [places, width])
    number = nodes.add("Sub", [places, nodes.add("Mul", [row, width])])
    # How many stay of each row. One: the best, and nothing is to be compared.
    best_flat = nodes.add("Reshape", [best, flat])
    ones = nodes.add("Expand", [nodes.numbers("one_number", [1]), nodes.add("Shape", [row])])
    none = nodes.add("Mul", [best_flat, nodes.number("zero_number", 0)])
    counts = nodes.add("ScatterElements", [none, row, ones], axis=0, reduction="add")
    bearable = nodes.add("LessOrEqual", [counts, nodes.number("most_left", _MOST_LEFT + 1)])
    other = nodes.add("Not", [nodes.add("Equal", [number, nodes.add("Gather", [best_flat, row])])])
    compared = nodes.add("And", [other, nodes.add("Gather", [bearable, row])])
    row = nodes.add("Compress", [row, compared], axis=0)
    number = nodes.add("Compress", [number, compared], axis=0)
    chosen = _nearest_of(nodes, layer_index, residual, best_flat, row, number)
    sure = nodes.add("And", [nodes.add("And", [inside, few]), nodes.add("Unsqueeze", [bearable, columns])])
    numbers = nodes.add("Unsqueeze", [chosen, columns])
    return ScreenedLayer(numbers, lowered, best_raised, nodes.add("Not", [sure]))


def _nearest_of(nodes: Nodes, layer_index: int, residual: str, best: str, row: str, number: str) -> str:
    """``best`` int64 (rows,), or, for the rows of ``row`` int64 (n,), the nearest of it and the codewords ``number`` int64 (n,)
    in float32; of equally near ones the lowest number.
    """
    rivals = nodes.add("Gather", [residual, row])
    own = nodes.add("Gather", [best, row])
    scores = []
    for codeword in (number, own):
        product = nodes.add("Mul", [nodes.add("Gather", [f"codewords_{layer_index}", codeword]), rivals])
        total = nodes.add("ReduceSum", [product, nodes.numbers("columns", [1])], keepdims=0)
        scores.append(nodes.add("Add", [total, nodes.add("Gather", [f"minus_half_norms_{layer_index}", codeword])]))
    least = nodes.constant("least", np.array([np.finfo(np.float32).min], dtype=np.float32))
    greatest = nodes.add(
        "ScatterElements",
        [nodes.add("Expand", [least, nodes.add("Shape", [best])]), row, nodes.add("Max", scores)],
        axis=0,
        reduction="max",
    )
    greatest = nodes.add("Gather", [greatest, row])
    no_number = nodes.numbers("no_number", [2**40])
    winners = [
        nodes.add("Where", [nodes.add("GreaterOrEqual", [score, greatest]), codeword, no_number])
        for score, codeword in zip(scores, (number, own), strict=True)
    ]
    open_rows = nodes.add("Expand", [no_number, nodes.add("Shape", [row])])
    undecided = nodes.add("ScatterElements", [best, row, open_rows], axis=0)
    return nodes.add("ScatterElements", [undecided, row, nodes.add("Min", winners)], axis=0, reduction="min")


def _true_places(nodes: Nodes, matrix: str) -> str:
    """Of a bool matrix the places int64 (n,) that are true, as numbers in the flattened matrix."""
    flattened = nodes.add("Reshape", [matrix, nodes.numbers("flat", [-1])])
    return nodes.add("Reshape", [nodes.add("NonZero", [flattened]), nodes.numbers("flat", [-1])])


def _quantised(
    codebook: Codebook, layer_index: int, ranges: ScreenRanges
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Weights int8 (D', M'), their scales, biases of raised scores (−½‖c‖² + margin), and twice the margins, float32 (M',)."""
    codewords = codebook.codewords[layer_index]
    size, dimension = codewords.shape
    largest = np.abs(codewords).max(axis=1)
    scales = (np.where(largest > 0, largest, 1) / _WEIGHT_LEVELS).astype(np.float32)
    weights = np.zeros((padded(dimension, ALIGNMENT), padded(size, GROUP)), dtype=np.int8)
    weights[:dimension, :size] = np.rint(codewords / scales[:, None]).T
    lengths = np.linalg.norm(codewords.astype(np.float64), axis=1)
    longest = ranges.longest[layer_index]
    step = ranges.largest[layer_index] / _INPUT_LEVELS
    deviation = np.sqrt((step * lengths) ** 2 / 12 + (longest * scales.astype(np.float64)) ** 2 / 12)
    margin = _STANDARD_DEVIATIONS * deviation + _FLOAT_ERROR * longest * lengths
    norms = codebook.half_squared_norms[layer_index].astype(np.float64)
    # Of codewords that are equal the first is always chosen: the others need no comparison. Nor does what fills up a group.
    raised = np.full(weights.shape[1], np.finfo(np.float32).min, dtype=np.float32)
    first = np.unique(codewords, axis=0, return_index=True)[1]
    raised[first] = (margin - norms)[first]
    out = [np.ones(weights.shape[1], dtype=np.float32), np.zeros(weights.shape[1], dtype=np.float32)]
    out[0][:size], out[1][:size] = scales, 2 * margin
    return weights, out[0], raised, out[1]


def padded(count: int, step: int) -> int:
    """The next whole number of steps."""
    return -(-count // step) * step
