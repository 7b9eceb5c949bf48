"""Embeddings → codes on ONNX Runtime: what the assigner runs; needs nothing but onnxruntime and NumPy.

An item's codes do not depend on the items encoded with it: every call of the graph has the same number of rows, the
last block of a batch filled up with zeros, so each row goes through the same arithmetic whatever the batch.
(Another processor or release of ONNX Runtime may round near-ties differently; codes are stored, not computed again.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from models.codebooks.codebook import CodebookError, checked_embeddings
from models.codebooks.onnx_format import FORMAT_VERSION, INPUT_NAME, METADATA_PREFIX, OUTPUT_NAME, EncoderError
from models.sids.layout import MAXIMUM_LAYERS, MAXIMUM_SIZE, MINIMUM_LAYERS


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
    block_rows: int

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
        format_version = _number(metadata, "format_version", path)
        if format_version != FORMAT_VERSION:
            raise EncoderError(
                f"{path} has encoder format {format_version}, but this sidstream reads {FORMAT_VERSION}; "
                "update sidstream or make the bundle again with `sidstream fit`"
            )
        self.codebook_id = _text(metadata, "codebook_id", path)
        self.layers = _number(metadata, "layers", path)
        self.size = _number(metadata, "size", path)
        self.dimension = _number(metadata, "dimension", path)
        self.block_rows = _number(metadata, "block_rows", path)
        if not (MINIMUM_LAYERS <= self.layers <= MAXIMUM_LAYERS and 1 <= self.size <= MAXIMUM_SIZE):
            raise EncoderError(f"{path} says {self.layers} layers of {self.size} codewords, which no codebook has")
        given = [(i.name, i.type, i.shape) for i in (*self._session.get_inputs(), *self._session.get_outputs())]
        expected = [
            (INPUT_NAME, "tensor(float)", [self.block_rows, self.dimension]),
            (OUTPUT_NAME, "tensor(uint16)", [self.block_rows, self.layers]),
        ]
        if given != expected:
            raise EncoderError(
                f"the inputs and outputs of {path} are {given}, but its metadata promise {expected}; "
                "it was edited: make the bundle again with `sidstream fit`"
            )

    def encode(self, embeddings: ArrayLike) -> NDArray[np.uint16]:
        """Embeddings float32 (N, D) → codes uint16 (N, L); N may be 0.

        Raises ``EncoderError`` for another dtype or shape and for NaN or infinite numbers.
        """
        try:
            rows = checked_embeddings(embeddings, self.dimension)
        except CodebookError as error:
            raise EncoderError(str(error)) from error
        codes = np.empty((len(rows), self.layers), dtype=np.uint16)
        whole = len(rows) - len(rows) % self.block_rows
        for start in range(0, whole, self.block_rows):
            codes[start : start + self.block_rows] = self._encode_block(rows[start : start + self.block_rows])
        if whole < len(rows):
            last = np.zeros((self.block_rows, self.dimension), dtype=np.float32)
            last[: len(rows) - whole] = rows[whole:]
            codes[whole:] = self._encode_block(last)[: len(rows) - whole]
        return codes

    def _encode_block(self, block: NDArray[np.float32]) -> NDArray[np.uint16]:
        codes: NDArray[np.uint16] = self._session.run([OUTPUT_NAME], {INPUT_NAME: block})[0]
        return codes


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
