"""Residual-quantisation codebooks: embedding → codes and back (paper § 2.1, eq. 1-3).

A codebook's content decides its id, so codes can name the codebook that they belong to. The arithmetic here is the
reference in NumPy float32 that other encoders are held to; ties go to the lowest codeword number. The codewords lie in
the embeddings' own space, or (RQ-VAE, ``models.codebooks.rq_vae``) in a latent space that the codebook's encoder leads into.
faiss is imported only to fit, safetensors only to save and load.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.codebooks.dense_network import DenseNetwork, DenseNetworkError
from models.errors import SidstreamError
from models.sids.layout import MAXIMUM_LAYERS, MAXIMUM_SIZE, MINIMUM_LAYERS

FORMAT_VERSION: Final = 1  # codewords alone
LATENT_FORMAT_VERSION: Final = 2  # with encoder and decoder: a reader of format 1 must refuse it, not leave them out
_TENSOR: Final = "codewords"
LONGEST_ROW: Final = 1e15  # squared distances of such rows, and their sums, are far from float32's 3e38
SHORTEST_LONGEST_ROW: Final = 1e-15  # squared, 1e-30: float32 ends at 1e-38
_BLOCK_ROWS: Final = 256  # scores of a block (256 x M float32) stay in the processor's cache

FitProgress = Callable[[int, int, float], None]
"""Called after each iteration with layer_index (0-based), iteration (1-based) and the objective: the mean squared
distance of an embedding's residual to its codeword before that iteration's update."""


class CodebookError(SidstreamError):
    """A codebook, its file, or embeddings and codes that do not fit it."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """L layers of M codewords, for embeddings of D dimensions.

    codewords: float32 (L, M, D), finite, made read-only. L is 3 to 26, M at most 65,536.
    encoder, decoder: both or neither. With them the codewords are (L, M, d) in the latent space of d dimensions that
    the encoder (D → d) leads into and the decoder (d → D) out of.
    Raises ``CodebookError`` naming the field and its value.
    """

    codewords: NDArray[np.float32]
    encoder: DenseNetwork | None = None
    decoder: DenseNetwork | None = None

    def __post_init__(self) -> None:
        given = self.codewords
        if not isinstance(given, np.ndarray) or given.dtype != np.float32 or given.ndim != 3:
            shape = f"{given.dtype} of shape {given.shape}" if isinstance(given, np.ndarray) else type(given).__name__
            raise CodebookError(f"codebook: codewords must be float32 (layers, size, dimension), not {shape}")
        layers, size, dimension = given.shape
        if not MINIMUM_LAYERS <= layers <= MAXIMUM_LAYERS:
            raise CodebookError(f"codebook: layers must be {MINIMUM_LAYERS} to {MAXIMUM_LAYERS}, not {layers}")
        if not 1 <= size <= MAXIMUM_SIZE:
            raise CodebookError(f"codebook: size must be 1 to {MAXIMUM_SIZE} codewords per layer, not {size}")
        if dimension < 1:
            raise CodebookError("codebook: dimension must be at least 1, not 0")
        if (self.encoder is None) != (self.decoder is None):
            raise CodebookError("codebook: encoder and decoder belong together; give both or neither")
        if self.encoder is not None and self.decoder is not None:
            through = (self.encoder.inputs, self.encoder.outputs, self.decoder.inputs, self.decoder.outputs)
            if through != (self.encoder.inputs, dimension, dimension, self.encoder.inputs):
                raise CodebookError(
                    f"codebook: encoder {through[0]} → {through[1]} and decoder {through[2]} → {through[3]} do not lead "
                    f"to codewords of {dimension} dimensions and back"
                )
        # A copy: whoever holds the given array must not be able to change what the id was computed from.
        codewords = np.array(given, dtype=np.float32, order="C", copy=True)
        codewords.flags.writeable = False
        object.__setattr__(self, "codewords", codewords)
        if not np.isfinite(self.half_squared_norms).all():
            layer, number = np.argwhere(~np.isfinite(self.half_squared_norms))[0]
            raise CodebookError(
                f"codebook: codeword {number} of layer index {layer} has NaN, infinite or far too large numbers"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codebook) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def layers(self) -> int:
        """L."""
        return int(self.codewords.shape[0])

    @property
    def size(self) -> int:
        """M, the codewords per layer."""
        return int(self.codewords.shape[1])

    @property
    def dimension(self) -> int:
        """D, of the embeddings that ``encode`` takes and ``reconstruct`` gives."""
        return int(self.codewords.shape[2]) if self.encoder is None else self.encoder.inputs

    @cached_property
    def id(self) -> str:
        """16 hexadecimal digits: the beginning of the SHA-256 of shape and numbers, the same on every machine.

        Encoder and decoder are part of it. A codebook without them has the id that it had before there were any.
        """
        layers, size, dimension = self.codewords.shape
        digest = hashlib.sha256(
            f"sidstream codebook float32 layers={layers} size={size} dimension={dimension}\n".encode()
        )
        digest.update(self.codewords.astype("<f4", copy=False).tobytes())
        for name, tensor in self._network_tensors():
            digest.update(f"\n{name} {tensor.shape}\n".encode())
            digest.update(tensor.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def half_squared_norms(self) -> NDArray[np.float32]:
        """float32 (L, M), read-only: ½‖c‖² of each codeword."""
        norms = half_squared_norms(self.codewords)
        norms.flags.writeable = False
        return norms

    def encode(self, embeddings: ArrayLike) -> NDArray[np.uint16]:
        """Embeddings float32 (N, D) → codes uint16 (N, L) (eq. 1-2). Raises ``CodebookError`` on shape, dtype, NaN."""
        return self._encode(self.latent(embeddings))[0]

    def latent(self, embeddings: ArrayLike) -> NDArray[np.float32]:
        """Embeddings float32 (N, D) → what is quantised, float32 (N, d): without an encoder the embeddings themselves."""
        rows = checked_embeddings(embeddings, self.dimension)
        return rows if self.encoder is None else self.encoder(rows)

    def reconstruct(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Codes (N, L) → the embeddings that they stand for, float32 (N, D): the sums of their codewords (eq. 3), led
        through the decoder if there is one.
        """
        rows = self._checked_codes(codes)
        sums = np.zeros((len(rows), self.codewords.shape[2]), dtype=np.float32)
        for layer_index in range(self.layers):
            sums += self.codewords[layer_index, rows[:, layer_index]]
        return sums if self.decoder is None else self.decoder(sums)

    def residual_norms(self, embeddings: ArrayLike) -> NDArray[np.float32]:
        """Embeddings float32 (N, D) → float32 (N, L + 1): ‖x‖, then ‖residual‖ after each layer (paper fig. 4), all in
        the space of the codewords.
        """
        rows = self.latent(embeddings)
        _, residual_norms = self._encode(rows)
        return np.column_stack([np.linalg.norm(rows, axis=1), residual_norms]).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with the id in its metadata; the same codebook gives the same bytes."""
        import safetensors.numpy

        version = FORMAT_VERSION if self.encoder is None else LATENT_FORMAT_VERSION
        content = safetensors.numpy.save(
            {_TENSOR: self.codewords, **dict(self._network_tensors())},
            metadata={"sidstream": f"codebook {version} {self.id}"},
        )
        Path(path).write_bytes(content)

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Reads what ``save`` wrote; raises ``CodebookError`` when it is something else or its content was changed."""
        import safetensors

        path = Path(path)
        if not path.is_file():
            raise CodebookError(f"no codebook file {path}; make one with `sidstream fit`")
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                mark = (file.metadata() or {}).get("sidstream", "").split()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise CodebookError(
                f"{path} is no readable safetensors file ({error}); make it again with `sidstream fit`"
            ) from error
        if len(mark) != 3 or mark[0] != "codebook" or _TENSOR not in tensors:
            raise CodebookError(f"{path} was not written as a sidstream codebook; make one with `sidstream fit`")
        if mark[1] not in (str(FORMAT_VERSION), str(LATENT_FORMAT_VERSION)):
            raise CodebookError(
                f"{path} has codebook format {mark[1]}, but this sidstream reads {FORMAT_VERSION} and "
                f"{LATENT_FORMAT_VERSION}; update sidstream or fit again"
            )
        try:
            codebook = cls(tensors[_TENSOR], _network(tensors, "encoder"), _network(tensors, "decoder"))
        except DenseNetworkError as error:
            raise CodebookError(f"{path}: {error}; the file is damaged or was edited: fit again") from error
        if codebook.id != mark[2]:
            raise CodebookError(
                f"the content of {path} has id {codebook.id} but was saved as {mark[2]}: the file is damaged or was "
                "edited; restore it or fit again"
            )
        return codebook

    def _encode(self, rows: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
        """Codes uint16 (N, L) and ‖residual‖ after each layer, float32 (N, L)."""
        codes = np.empty((len(rows), self.layers), dtype=np.uint16)
        norms = np.empty((len(rows), self.layers), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            residual = rows[start : start + _BLOCK_ROWS]
            block = slice(start, start + len(residual))
            for layer_index in range(self.layers):
                codewords = self.codewords[layer_index]
                chosen = nearest_codewords(residual, codewords, self.half_squared_norms[layer_index])
                residual = residual - codewords[chosen]
                codes[block, layer_index] = chosen
                norms[block, layer_index] = np.linalg.norm(residual, axis=1)
        return codes, norms

    def _network_tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        if self.encoder is not None and self.decoder is not None:
            yield from self.encoder.tensors("encoder")
            yield from self.decoder.tensors("decoder")

    def _checked_codes(self, codes: ArrayLike) -> NDArray[Any]:
        rows = np.asarray(codes)
        if rows.ndim != 2 or rows.shape[1] != self.layers or not np.issubdtype(rows.dtype, np.integer):
            raise CodebookError(f"codes must be integers (N, {self.layers}), not {rows.dtype} of shape {rows.shape}")
        if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < self.size):
            raise CodebookError(f"codes must lie in [0, {self.size}), but run from {rows.min()} to {rows.max()}")
        return rows


def _network(tensors: Mapping[str, NDArray[np.float32]], prefix: str) -> DenseNetwork | None:
    """The network whose tensors are named so (see ``DenseNetwork.tensors``), None if there are none."""
    count = sum(name.startswith(f"{prefix}.") for name in tensors)
    names = [f"{prefix}.{number // 2}.{('weight', 'bias')[number % 2]}" for number in range(count)]
    if count % 2 or not set(names) <= set(tensors):
        raise DenseNetworkError(f"the {prefix} lacks a layer's weight or bias")
    return DenseNetwork.from_tensors([tensors[name] for name in names]) if names else None


def fit_residual_kmeans(
    embeddings: ArrayLike,
    *,
    layers: int,
    size: int,
    iterations: int = 20,
    seed: int = 0,
    shared_start: bool = True,
    progress: FitProgress | None = None,
) -> Codebook:
    """A codebook of ``layers`` × ``size`` codewords from embeddings float32 (N, D), N ≥ ``size``.

    Layer by layer k-means by faiss on what the layers before leave over. Every embedding takes part in every
    iteration; a codeword that nothing falls to is moved into a crowded cluster. The same embeddings, seed and number
    of threads give the same codebook. ``shared_start``: every layer starts from the residuals of the same random items,
    otherwise of new ones.
    Raises ``CodebookError`` for embeddings or parameters that no codebook can be fitted with.
    """
    given = np.asarray(embeddings)
    if given.ndim != 2 or given.shape[1] < 1:
        raise CodebookError(f"embeddings must be float32 (N, dimension), not of shape {given.shape}")
    residual = checked_embeddings(given, given.shape[1])
    if not MINIMUM_LAYERS <= layers <= MAXIMUM_LAYERS:
        raise CodebookError(f"layers must be {MINIMUM_LAYERS} to {MAXIMUM_LAYERS}, not {layers}")
    if not 1 <= size <= MAXIMUM_SIZE:
        raise CodebookError(f"size must be 1 to {MAXIMUM_SIZE} codewords per layer, not {size}")
    if iterations < 1:
        raise CodebookError(f"iterations must be at least 1, not {iterations}")
    require_fittable(residual, size)
    # A shared start is the default: measured over 4 seeds, new items for each layer lower the
    # error by 0 to 1.5 %, but layer 3 is more crowded (Gini .75 instead of .68 on amazon_games, .72 instead of .63 on
    # chorus_icecat) and there are 1 to 7 % fewer distinct short SIDs.
    random = np.random.default_rng(seed)
    chosen = np.sort(random.choice(len(residual), size, replace=False))
    codewords = np.empty((layers, size, residual.shape[1]), dtype=np.float32)
    for layer_index in range(layers):
        if layer_index > 0 and not shared_start:
            chosen = np.sort(random.choice(len(residual), size, replace=False))
        codewords[layer_index] = _kmeans(residual, residual[chosen], iterations, layer_index, progress)
        norms = half_squared_norms(codewords[layer_index])
        residual = residual - codewords[layer_index, nearest_codewords(residual, codewords[layer_index], norms)]
    return Codebook(codewords)


def require_fittable(rows: NDArray[np.float32], size: int) -> None:
    """Refuses embeddings float32 (N, D) that are fewer than ``size``, or whose squared distances overflow float32 or vanish
    in it.
    """
    if len(rows) < size:
        raise CodebookError(
            f"{len(rows)} embeddings cannot make {size} codewords per layer; "
            f"give at least {size} embeddings or fit a smaller size"
        )
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    longest = float(lengths.max(initial=0.0))
    if longest > LONGEST_ROW:
        raise CodebookError(
            f"row {int(lengths.argmax())} of the embeddings has the length {longest:.3g}: distances of more than "
            f"{LONGEST_ROW:.0e} cannot be squared in float32; scale the embeddings, such as to length 1, or leave that row out"
        )
    if len(rows) and longest < SHORTEST_LONGEST_ROW:
        what = "are all zero" if longest == 0 else f"have no row longer than {longest:.3g}"
        raise CodebookError(
            f"the embeddings {what}, too little to tell them apart in float32; compute them again, or scale them to length 1"
        )


def _kmeans(
    points: NDArray[np.float32],
    start: NDArray[np.float32],
    iterations: int,
    layer_index: int,
    progress: FitProgress | None,
) -> NDArray[np.float32]:
    """Lloyd's k-means from the codewords ``start`` (M, D)."""
    import faiss

    count, dimension = points.shape
    size = len(start)
    # With one point a codeword faiss copies the points and skips the iterations, so there would be no objective.
    if count == size:
        if progress is not None:
            for iteration in range(1, iterations + 1):
                progress(layer_index, iteration, 0.0)
        return points.copy()
    codewords: NDArray[np.float32] = start
    for iteration in range(1, iterations + 1):
        # One iteration a call, as faiss reports nothing in between; it only costs a look over the points for NaN.
        kmeans = faiss.Kmeans(
            dimension,
            size,
            niter=1,
            seed=1 + iteration,
            min_points_per_centroid=1,  # the caller has checked; faiss would print its warning for each call
            max_points_per_centroid=count // size + 1,  # faiss draws a sample beyond this; we use every point
        )
        try:
            kmeans.train(points, init_centroids=codewords)
        except RuntimeError as error:  # faiss' own exceptions
            reason = str(error).strip().splitlines()[-1]
            raise CodebookError(
                f"k-means failed in layer {layer_index + 1}: {reason}; look for rows that are unlike all others"
            ) from error
        codewords = np.asarray(kmeans.centroids, dtype=np.float32)
        if progress is not None:
            progress(layer_index, iteration, float(np.asarray(kmeans.obj)[-1]) / count)
    return codewords


def checked_embeddings(embeddings: ArrayLike, dimension: int) -> NDArray[np.float32]:
    """The embeddings as a C-contiguous array float32 (N, D), not copied when they are one already.

    Raises ``CodebookError`` for another dtype, another shape, NaN or infinite numbers.
    """
    rows: NDArray[Any] = np.asarray(embeddings)
    if rows.dtype != np.float32:
        raise CodebookError(f"embeddings must be float32, not {rows.dtype}; convert them with .astype(np.float32)")
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise CodebookError(
            f"embeddings have shape {rows.shape}, but the codebook needs (N, {dimension}); "
            "use the embedding model that the codebook was fitted on"
        )
    # One sum shows NaN and infinity in a pass without a temporary; only if it does look for the row, as a sum of finite
    # numbers may overflow as well.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(rows.sum(dtype=np.float32))
    if suspicious:
        broken = ~np.isfinite(rows).all(axis=1)
        if broken.any():
            raise CodebookError(f"row {int(np.argmax(broken))} of the embeddings has NaN or infinite numbers")
    return np.ascontiguousarray(rows)


def half_squared_norms(codewords: NDArray[np.float32]) -> NDArray[np.float32]:
    """Codewords float32 (…, D) → ½‖c‖² float32 (…), computed in float64."""
    exact = codewords.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(0.5 * np.einsum("...d,...d->...", exact, exact), dtype=np.float32)


def nearest_codewords(
    points: NDArray[np.float32], codewords: NDArray[np.float32], half_norms: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Points float32 (N, D) → number of the nearest of the codewords float32 (M, D), the lowest of equally near ones.

    arg min ‖r − c‖² = arg max r·c − ½‖c‖² (eq. 1): ‖r‖² is the same for every codeword. half_norms: ½‖c‖² (M,).
    """
    chosen = np.empty(len(points), dtype=np.intp)
    for start in range(0, len(points), _BLOCK_ROWS):
        scores = points[start : start + _BLOCK_ROWS] @ codewords.T
        scores -= half_norms
        chosen[start : start + _BLOCK_ROWS] = np.argmax(scores, axis=1)
    return chosen
