"""Embeddings → codes on ONNX Runtime: what the assigner runs; needs nothing but onnxruntime and NumPy.

An item's codes do not depend on the items encoded with it: a call of the graph has one of a few numbers of rows, filled up
with zeros, that have been seen to give a row the same bits (``models.codebooks.onnx_rows``).
(Another processor or release of ONNX Runtime may round near-ties differently; codes are stored, not computed again.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from models.codebooks.codebook import CodebookError, checked_embeddings
from models.codebooks.onnx_format import (
    EXACT_NAME,
    FIXED_ROWS_FORMAT_VERSION,
    FORMAT_VERSION,
    INPUT_NAME,
    METADATA_PREFIX,
    NO_SCREEN,
    OUTPUT_NAME,
    ROWS,
    SCORES_NAME,
    SCREEN,
    SCREENED_ROWS,
    SCREENED_SCORES,
    UNSURE_NAME,
    EncoderError,
)
from models.codebooks.onnx_rows import blocks, row_counts_of
from models.sids.layout import MAXIMUM_LAYERS, MAXIMUM_SIZE, MINIMUM_LAYERS

_EXACT: Final = np.array(True)
_SCREENED: Final = np.array(False)


class OnnxEncoder:
    """A codebook's graph, loaded and checked.

    path: a file written by ``export_onnx``. threads: ONNX Runtime's threads within one call; one is the fastest per core.
    Raises ``EncoderError`` for a missing file and for any other graph, saying what to do. ``encode`` may be called
    from several threads.
    """

    codebook_id: str
    layers: int
    size: int
    dimension: int
    row_counts: tuple[int, ...]
    """Rows that an exact call of the graph may have, largest first; one number where this machine's kernels differ by it."""
    screen: str
    """``int8`` or ``none``."""

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        if threads < 1:
            raise EncoderError(f"threads must be at least 1, not {threads}")
        path = Path(path)
        if not path.is_file():
            raise EncoderError(f"no encoder file {path}; make a bundle with `sidstream fit`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no common base but Exception
            raise EncoderError(
                f"ONNX Runtime cannot load {path}: {str(error).strip()}; make the bundle again with `sidstream fit`"
            ) from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        version = _number(metadata, "format_version", path)
        if version not in (FIXED_ROWS_FORMAT_VERSION, FORMAT_VERSION):
            raise EncoderError(
                f"{path} has encoder format {version}, but this sidstream reads {FIXED_ROWS_FORMAT_VERSION} and "
                f"{FORMAT_VERSION}; update sidstream or make the bundle again with `sidstream fit`"
            )
        self.codebook_id = _text(metadata, "codebook_id", path)
        self.layers = _number(metadata, "layers", path)
        self.size = _number(metadata, "size", path)
        self.dimension = _number(metadata, "dimension", path)
        if not (MINIMUM_LAYERS <= self.layers <= MAXIMUM_LAYERS and 1 <= self.size <= MAXIMUM_SIZE):
            raise EncoderError(f"{path} says {self.layers} layers of {self.size} codewords, which no codebook has")
        # Graphs of version 1 say nothing of a screen.
        self.screen = metadata.get(METADATA_PREFIX + "screen", NO_SCREEN)
        if self.screen not in (NO_SCREEN, SCREEN):
            raise EncoderError(
                f"{path} has a screen {self.screen!r}, which this sidstream does not know: update sidstream"
            )
        fixed_rows = _number(metadata, "block_rows", path) if version == FIXED_ROWS_FORMAT_VERSION else None
        self._require_shapes(path, fixed_rows)
        self.row_counts = row_counts_of(self._scores, self.dimension) if fixed_rows is None else (fixed_rows,)

    def encode(self, embeddings: ArrayLike) -> NDArray[np.uint16]:
        """Embeddings float32 (N, D) → codes uint16 (N, L); N may be 0.

        Raises ``EncoderError`` for another dtype or shape and for NaN or infinite numbers.
        """
        try:
            rows = checked_embeddings(embeddings, self.dimension)
        except CodebookError as error:
            raise EncoderError(str(error)) from error
        if self.screen == NO_SCREEN:
            return self._exact_codes(rows)
        codes, unsure = self._screened_codes(rows)
        again = np.flatnonzero(unsure)
        if len(again):
            codes[again] = self._exact_codes(rows[again])
        return codes

    def unsure(self, embeddings: ArrayLike) -> NDArray[np.bool_]:
        """Of embeddings float32 (N, D), bool (N,): those that the screen leaves to be coded in float32; without one, all."""
        rows = checked_embeddings(embeddings, self.dimension)
        return np.ones(len(rows), np.bool_) if self.screen == NO_SCREEN else self._screened_codes(rows)[1]

    def _screened_codes(self, rows: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Codes uint16 (N, L), and bool (N,): those that are to be coded again. Any number of rows will do (see the screen)."""
        codes = np.empty((len(rows), self.layers), dtype=np.uint16)
        unsure = np.empty((len(rows), 1), dtype=np.bool_)
        step = min(SCREENED_ROWS, max(1, SCREENED_SCORES // self.size))
        for start in range(0, len(rows), step):
            block = slice(start, start + step)
            inputs = {INPUT_NAME: rows[block], EXACT_NAME: _SCREENED}
            codes[block], unsure[block] = self._session.run([OUTPUT_NAME, UNSURE_NAME], inputs)
        return codes, unsure[:, 0]

    def _exact_codes(self, rows: NDArray[np.float32]) -> NDArray[np.uint16]:
        codes = np.empty((len(rows), self.layers), dtype=np.uint16)
        for start, stop, count in blocks(len(rows), self.row_counts):
            block = rows[start:stop]
            if len(block) < count:
                block = np.zeros((count, self.dimension), dtype=np.float32)
                block[: stop - start] = rows[start:stop]
            codes[start:stop] = self._session.run([OUTPUT_NAME], self._exact_inputs(block))[0][: stop - start]
        return codes

    def _exact_inputs(self, block: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return {INPUT_NAME: block} if self.screen == NO_SCREEN else {INPUT_NAME: block, EXACT_NAME: _EXACT}

    def _scores(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scores of the chosen codewords, float32 (N, L)."""
        scores: NDArray[np.float32] = self._session.run([SCORES_NAME], self._exact_inputs(rows))[0]
        return scores

    def _require_shapes(self, path: Path, fixed_rows: int | None) -> None:
        """Raises ``EncoderError`` for inputs and outputs that are not what the metadata promise."""
        rows = ROWS if fixed_rows is None else fixed_rows
        given = [(i.name, i.type, i.shape) for i in (*self._session.get_inputs(), *self._session.get_outputs())]
        expected: list[tuple[str, str, list[int | str]]] = [(INPUT_NAME, "tensor(float)", [rows, self.dimension])]
        if self.screen != NO_SCREEN:
            expected.append((EXACT_NAME, "tensor(bool)", []))
        expected += [(OUTPUT_NAME, "tensor(uint16)", [rows, self.layers])]
        if fixed_rows is None:
            expected.append((SCORES_NAME, "tensor(float)", [rows, self.layers]))
        if self.screen != NO_SCREEN:
            expected.append((UNSURE_NAME, "tensor(bool)", [rows, 1]))
        if given != expected:
            raise EncoderError(
                f"the inputs and outputs of {path} are {given}, but its metadata promise {expected}; "
                "it was edited: make the bundle again with `sidstream fit`"
            )


def _text(metadata: Mapping[str, str], name: str, path: Path) -> str:
    value = metadata.get(METADATA_PREFIX + name, "")
    if not value:
        raise EncoderError(
            f"{path} has no metadata {METADATA_PREFIX + name!r}, so it does not say which codebook it belongs to; "
            "only graphs that sidstream exported can be used: make the bundle again with `sidstream fit`"
        )
    return value


def _number(metadata: Mapping[str, str], name: str, path: Path) -> int:
    value = _text(metadata, name, path)
    if not value.isdecimal() or int(value) < 1:
        raise EncoderError(f"{path}: metadata {METADATA_PREFIX + name!r} must be a positive number, not {value!r}")
    return int(value)
