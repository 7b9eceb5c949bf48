"""Text → embedding on ONNX Runtime: trained text towers, as a producer that publishes text alone runs them; needs
nothing but onnxruntime and NumPy, because features are hashed (``models.towers.text_features``) and no tokenizer is shipped.

An embedding does not depend on the texts embedded with it: every call of the graph has the same number of rows, and as
many features a row as the text's own length asks for (a power of two), the rest filled up with features that weigh
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.bundles.manifest import (
    MANIFEST_FILE,
    BundleError,
    FileRecord,
    inside,
    read_manifest_bytes,
    require_place,
    verify_file,
)
from models.catalogue import CatalogueItem
from models.codebooks.onnx_format import METADATA_PREFIX
from models.errors import SidstreamError
from models.towers.text_features import PADDING_GROUP, Bags, FeatureHasher

if TYPE_CHECKING:
    from models.bundles.bundle import BundleManifest

FORMAT_VERSION: Final = 1
INPUT_NAMES: Final = ("features", "groups", "shares")
OUTPUT_NAME: Final = "embeddings"
SHORTEST_NORM: Final = 1e-12  # a row is divided by its length, or by this
BLOCK_ROWS: Final = 16
_FEWEST_FEATURES: Final = 32  # a row of the graph is never shorter
_TEXTS_AT_A_TIME: Final = 2_048  # bounds the hashed features in memory

Side = Literal["query", "item"]
TOWER_FILES: Final[dict[Side, str]] = {"query": "query_tower.onnx", "item": "item_tower.onnx"}
_MAKE_AGAIN: Final = "train them again with `sidstream towers`"


class TextEncoderError(SidstreamError):
    """A text that has no embedding, or a graph that is no tower."""


class TowersManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a towers' directory holds. ``training``: figures for people (pairs, loss, recall, seconds, …)."""

    format: int
    id: str
    dimension: int
    training: dict[str, Any]
    files: dict[str, FileRecord]


class TextEncoder:
    """One tower's graph, loaded and checked. ``encode`` may be called from one thread at a time.

    path: a file of a towers' directory; ``Towers.open`` verifies it first. threads: ONNX Runtime's within one call.
    Raises ``TextEncoderError`` for a missing file and for any other graph, saying what to do.
    """

    towers_id: str
    side: Side
    dimension: int

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        path = Path(path)
        if not path.is_file():
            raise TextEncoderError(f"no tower {path}; make it with `sidstream towers`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Inputs of many lengths would each keep memory of their own.
        options.enable_mem_pattern = False
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions have no common base but Exception
            raise TextEncoderError(f"ONNX Runtime cannot load {path}: {str(error).strip()}; {_MAKE_AGAIN}") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        metadata = {
            name.removeprefix(METADATA_PREFIX): value
            for name, value in properties.items()
            if name.startswith(METADATA_PREFIX)
        }
        if metadata.get("format_version") != str(FORMAT_VERSION) or metadata.get("side") not in get_args(Side):
            raise TextEncoderError(
                f"{path} is no tower of format {FORMAT_VERSION} (its metadata: {metadata or 'none'}); "
                f"update sidstream, or {_MAKE_AGAIN}"
            )
        self.towers_id = metadata["towers_id"]
        self.side = "query" if metadata["side"] == "query" else "item"
        self.dimension = int(metadata["dimension"])
        self._block_rows = int(metadata["block_rows"])
        self._hasher = FeatureHasher(int(metadata["rows"]))

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts → float32 (N, D), rows of length 1; N may be 0. The item tower reads each text as a title.

        Raises ``TextEncoderError`` for a text of white space alone, naming its place.
        """
        if self.side == "item":
            return self.encode_items([CatalogueItem(id="", title=text) for text in texts])
        embeddings = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(texts), _TEXTS_AT_A_TIME):
            block = slice(start, start + _TEXTS_AT_A_TIME)
            bags = self._hasher.queries(texts[block])
            self._require_features(bags, start, len(texts))
            embeddings[block] = self._encode_bags(bags)
        return embeddings

    def encode_items(self, items: Sequence[CatalogueItem]) -> NDArray[np.float32]:
        """Items → float32 (N, D), rows of length 1, from title, brand, type and description.

        Raises ``TextEncoderError`` for an item without any text, and if this is the query tower.
        """
        if self.side != "item":
            raise TextEncoderError("the query tower embeds no items; take the item tower (Towers.item_encoder)")
        embeddings = np.empty((len(items), self.dimension), dtype=np.float32)
        for start in range(0, len(items), _TEXTS_AT_A_TIME):
            block = slice(start, start + _TEXTS_AT_A_TIME)
            require_text(items[block])
            bags = self._hasher.items(items[block])
            self._require_features(bags, start, len(items))
            embeddings[block] = self._encode_bags(bags)
        return embeddings

    def _encode_bags(self, bags: Bags) -> NDArray[np.float32]:
        embeddings = np.empty((len(bags), self.dimension), dtype=np.float32)
        widths = 2 ** np.ceil(np.log2(np.maximum(bags.lengths, _FEWEST_FEATURES))).astype(np.int64)
        for width in np.unique(widths):
            alike = np.flatnonzero(widths == width)
            for start in range(0, len(alike), self._block_rows):
                chosen = alike[start : start + self._block_rows]
                embeddings[chosen] = self._encode_block(bags.take(chosen), int(width))
        return embeddings

    def _encode_block(self, bags: Bags, width: int) -> NDArray[np.float32]:
        shape = (self._block_rows, width)
        features, groups = np.zeros(shape, dtype=np.int64), np.full(shape, PADDING_GROUP, dtype=np.int64)
        shares = np.zeros(shape, dtype=np.float32)
        filled = np.arange(width) < np.pad(bags.lengths, (0, self._block_rows - len(bags)))[:, None]
        features[filled], groups[filled], shares[filled] = bags.features, bags.groups, bags.shares
        inputs = dict(zip(INPUT_NAMES, (features, groups, shares), strict=True))
        found: NDArray[np.float32] = self._session.run([OUTPUT_NAME], inputs)[0]
        return found[: len(bags)]

    def _require_features(self, bags: Bags, start: int, count: int) -> None:
        empty = np.flatnonzero(bags.lengths == 0)
        if len(empty):
            raise TextEncoderError(
                f"text {start + int(empty[0]) + 1} of {count} is empty: there is nothing to embed; give it words or leave it out"
            )


class Towers:
    """A verified directory of towers; get one by ``Towers.open``."""

    def __init__(self, directory: Path, manifest: TowersManifest) -> None:
        self.directory = directory
        self.manifest = manifest

    @classmethod
    def open(cls, directory: str | Path) -> Towers:
        """Reads the manifest and verifies the files; raises ``BundleError`` with what to do."""
        root = Path(directory)
        raw = read_manifest_bytes(
            root,
            missing=f"{root} holds no text towers (no {MANIFEST_FILE}): train some with `sidstream towers`, "
            "or wait until it has finished",
        )
        path = root / MANIFEST_FILE
        try:
            manifest = msgspec.json.decode(raw, type=TowersManifest)
        except msgspec.DecodeError as error:
            raise BundleError(f"{path} is not the manifest of text towers ({error}): {_MAKE_AGAIN}") from error
        if manifest.format > FORMAT_VERSION:
            raise BundleError(
                f"{path} has format {manifest.format}, this sidstream reads up to {FORMAT_VERSION}: update sidstream, or "
                f"{_MAKE_AGAIN}"
            )
        for name in TOWER_FILES.values():
            if name not in manifest.files:
                raise BundleError(f"{path} names no {name}: {_MAKE_AGAIN}")
        for name, record in manifest.files.items():
            verify_file(root, name, record, of="towers", make_again=_MAKE_AGAIN)
        return cls(root, manifest)

    @property
    def id(self) -> str:
        """Of the weights; what a bundle that was fitted on these towers' embeddings names."""
        return self.manifest.id

    @property
    def dimension(self) -> int:
        """D, of the embeddings."""
        return self.manifest.dimension

    def path(self, side: Side) -> Path:
        """The ONNX graph of one tower."""
        return inside(self.directory, TOWER_FILES[side])

    def query_encoder(self, threads: int = 1) -> TextEncoder:
        """Query text → embedding."""
        return self._encoder("query", threads)

    def item_encoder(self, threads: int = 1) -> TextEncoder:
        """Item text → embedding."""
        return self._encoder("item", threads)

    def require_fit(self, bundle: BundleManifest, where: str | Path) -> None:
        """Refuses a bundle that was fitted on other embeddings: its codes would mean nothing. Raises ``TextEncoderError``."""
        if bundle.dimension != self.dimension:
            raise TextEncoderError(
                f"the towers {self.directory} make {self.dimension} numbers, but the bundle {where} was fitted on "
                f"{bundle.dimension}: give the towers that it was fitted with, or fit a bundle with `sidstream fit --embed`"
            )
        if bundle.towers != self.id:
            other = f"towers {bundle.towers}" if bundle.towers else "embeddings that no towers made"
            raise TextEncoderError(
                f"the bundle {where} was fitted on {other}, not on the towers {self.id} in {self.directory}: "
                "give the towers that it was fitted with, or fit a bundle with `sidstream fit --embed`"
            )

    def _encoder(self, side: Side, threads: int) -> TextEncoder:
        encoder = TextEncoder(self.path(side), threads)
        if (encoder.towers_id, encoder.side, encoder.dimension) != (self.id, side, self.dimension):
            raise TextEncoderError(
                f"{TOWER_FILES[side]} in {self.directory} belongs to the {encoder.side} side of towers {encoder.towers_id}, "
                f"not to {self.id}: copy the towers again, whole, or {_MAKE_AGAIN}"
            )
        return encoder


def require_free(directory: str | Path, *, replace: bool) -> None:
    """Refuses a directory in which no towers can or may be written; ask before minutes of training, not after.

    Raises:
        BundleError: it holds towers and ``replace`` is not given, or it holds something else.
        SidstreamError: it cannot be made or written to.
    """
    path = Path(directory) / MANIFEST_FILE
    require_place(path.parent, tuple(TOWER_FILES.values()), of="towers")
    if not path.exists():
        return
    if not replace:
        raise BundleError(
            f"{directory} holds towers or a bundle already: choose another directory, or replace towers with --replace"
        )
    try:
        msgspec.json.decode(path.read_bytes(), type=TowersManifest)
    except (msgspec.DecodeError, OSError) as error:
        raise BundleError(
            f"{directory} holds something else than towers ({error}): choose another directory"
        ) from error


def require_text(items: Sequence[CatalogueItem]) -> None:
    """Raises ``TextEncoderError`` naming the first item without any text."""
    for item in items:
        if not any(field.strip() for field in (item.title, item.brand, item.type, item.description)):
            raise TextEncoderError(
                f"item {item.id!r} has no text: there is nothing to embed; give it a title, brand, type or description"
            )
