"""A bundle: one directory with codebook, ONNX encoder, language model, and a manifest that is written last.

What must hold: a directory without a manifest is no bundle; every file that the manifest names has the size and
SHA-256 that it states; weights are safetensors only, and no code comes out of a bundle. This module needs no torch.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.layout import Layout
from models.prompts import PromptSettings
from models.vocabulary import SidVocabulary

if TYPE_CHECKING:
    from models.codebook import Codebook

FORMAT_VERSION: Final = 1
MANIFEST_FILE: Final = "manifest.json"
CODEBOOK_FILE: Final = "codebook.safetensors"
ENCODER_FILE: Final = "encoder.onnx"
MODEL_PREFIX: Final = "language_model-"
_STAGING_PREFIX: Final = ".staging-"
# Formats that can carry code (pickle) or that we never write: refused by name, before anything reads them.
_FORBIDDEN_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".joblib", ".npy"})


class BundleError(SidstreamError):
    """A bundle that is missing, incomplete, changed since it was written, or of another version."""


class FileRecord(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    size: int
    sha256: str


class LanguageModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The language model of a bundle.

    ``id``: first 16 hex digits of the SHA-256 of its weights; ``layer2_dropout``: share of layer-2 tokens left out in
    training (above 0 the model may follow the live layout); ``training``: figures for people (examples, epochs, loss,
    seconds, …).
    """

    id: str
    directory: str
    vocabulary: SidVocabulary
    prompt: PromptSettings
    layer2_dropout: float = 0.0
    training: dict[str, Any] = {}


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle holds. ``census``: L × M counts of the items it was fitted on, the baseline that drift is
    measured against.
    """

    format: int
    codebook_id: str
    layers: int
    size: int
    dimension: int
    layout: dict[str, Any]
    items: int
    census: list[list[int]]
    embedding: str = ""
    files: dict[str, FileRecord] = {}
    language_model: LanguageModelRecord | None = None

    @property
    def layer2_dropout(self) -> float:
        """The language model's layer-2 dropout; 0 without a model."""
        return self.language_model.layer2_dropout if self.language_model else 0.0

    @property
    def model_id(self) -> str | None:
        """Id of the language model, None without one."""
        return self.language_model.id if self.language_model else None


class Bundle:
    """A verified bundle directory; get one by ``Bundle.open``."""

    def __init__(self, directory: Path, manifest: BundleManifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self.layout = Layout.from_dict(manifest.layout)

    @classmethod
    def open(cls, directory: Path | str, *, need_model: bool = False) -> Bundle:
        """Reads the manifest and verifies the files; raises ``BundleError`` with what to do.

        The language model's files are hashed only if ``need_model`` (they are big, and the assigner does not read
        them).
        """
        root = Path(directory)
        manifest = _read_manifest(root)
        bundle = cls(root, manifest)
        if (bundle.layout.codebook_id, bundle.layout.layers, bundle.layout.size) != (
            manifest.codebook_id,
            manifest.layers,
            manifest.size,
        ):
            raise BundleError(
                f"the layout in {root / MANIFEST_FILE} belongs to another codebook: fit the bundle again with `sidstream fit`"
            )
        for required in (CODEBOOK_FILE, ENCODER_FILE):
            if required not in manifest.files:
                raise BundleError(
                    f"{root / MANIFEST_FILE} names no {required}: fit the bundle again with `sidstream fit`"
                )
        if need_model and manifest.language_model is None:
            raise BundleError(f"the bundle {root} has no language model yet: run `sidstream train` on it")
        for name, record in manifest.files.items():
            _verify(root, name, record, hashed=need_model or not name.startswith(MODEL_PREFIX))
        return bundle

    def path(self, name: str) -> Path:
        """Path of a file that the manifest names."""
        if name not in self.manifest.files:
            raise BundleError(
                f"the bundle {self.directory} has no file {name!r}; it has {', '.join(sorted(self.manifest.files))}"
            )
        return _inside(self.directory, name)

    @property
    def encoder_path(self) -> Path:
        """The ONNX graph that turns embeddings into codes."""
        return self.path(ENCODER_FILE)

    @property
    def codebook_path(self) -> Path:
        """The codebook's safetensors file."""
        return self.path(CODEBOOK_FILE)

    @property
    def model_directory(self) -> Path:
        """Directory of the language model."""
        if self.manifest.language_model is None:
            raise BundleError(f"the bundle {self.directory} has no language model yet: run `sidstream train` on it")
        return _inside(self.directory, self.manifest.language_model.directory)


def require_free(directory: Path | str, *, replace: bool) -> None:
    """Refuses a directory that holds a bundle; ask before hours of fitting, not after. Raises ``BundleError``."""
    if (Path(directory) / MANIFEST_FILE).exists() and not replace:
        raise BundleError(f"{directory} holds a bundle already: choose another directory, or replace it with --replace")


def create_bundle(
    directory: Path | str,
    codebook: Codebook,
    layout: Layout,
    *,
    census: npt.NDArray[np.integer],
    embedding: str = "",
    replace: bool = False,
) -> Bundle:
    """Writes codebook, ONNX encoder and manifest; no language model yet.

    ``census``: (L, M) counts of the items that the codebook was fitted on; ``embedding``: a sentence on how
    embeddings are made; ``replace``: a bundle that is there already is removed first, model included.
    """
    from models.onnx_encoder import export_onnx

    root = Path(directory)
    require_free(root, replace=replace)
    if census.shape != (codebook.layers, codebook.size):
        raise BundleError(f"the census has shape {census.shape}, the codebook needs {(codebook.layers, codebook.size)}")
    root.mkdir(parents=True, exist_ok=True)
    # The manifest goes first and comes back last: what lies between is visibly no bundle.
    (root / MANIFEST_FILE).unlink(missing_ok=True)
    _remove_models(root, keep=None)
    codebook.save(root / CODEBOOK_FILE)
    export_onnx(codebook, root / ENCODER_FILE)
    manifest = BundleManifest(
        format=FORMAT_VERSION,
        codebook_id=codebook.id,
        layers=codebook.layers,
        size=codebook.size,
        dimension=codebook.dimension,
        layout=layout.to_dict(),
        items=int(census[0].sum()),
        census=census.astype(np.int64).tolist(),
        embedding=embedding,
        files={name: _record(root, name) for name in (CODEBOOK_FILE, ENCODER_FILE)},
    )
    _write_manifest(root, manifest)
    return Bundle.open(root)


@contextmanager
def staging_directory(bundle: Bundle) -> Iterator[Path]:
    """An empty directory inside the bundle in which a new language model is saved; removed if it was not added."""
    path = bundle.directory / f"{_STAGING_PREFIX}{secrets.token_hex(4)}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def add_language_model(
    bundle: Bundle,
    staged: Path,
    *,
    vocabulary: SidVocabulary,
    prompt: PromptSettings,
    layer2_dropout: float = 0.0,
    training: dict[str, Any] | None = None,
) -> Bundle:
    """Moves the model saved in ``staged`` (see ``staging_directory``) into the bundle and replaces the manifest; the
    old model goes last.

    A reader that opens the bundle meanwhile sees the old model or the new one, whole.
    """
    names = sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())
    weights = [name for name in names if name.endswith(".safetensors")]
    if not weights:
        raise BundleError(f"no safetensors weights in {staged}: only safetensors models can be added to a bundle")
    records = {
        name: _record(staged, name) for name in names
    }  # refuses what must not be in a bundle, before anything moves
    digest = hashlib.sha256()
    for name in weights:
        digest.update(bytes.fromhex(records[name].sha256))
    model_id = digest.hexdigest()[:16]
    target = f"{MODEL_PREFIX}{model_id}"
    while (bundle.directory / target).exists():  # the same weights again: a reader may be in the middle of them
        target += "+"
    for name in names:  # safetensors writes files for the owner alone; the retriever may be another user
        (staged / name).chmod(0o644)
    os.replace(staged, bundle.directory / target)
    files = {name: record for name, record in bundle.manifest.files.items() if not name.startswith(MODEL_PREFIX)}
    files |= {f"{target}/{name}": record for name, record in records.items()}
    manifest = msgspec.structs.replace(
        bundle.manifest,
        files=files,
        language_model=LanguageModelRecord(
            id=model_id,
            directory=target,
            vocabulary=vocabulary,
            prompt=prompt,
            layer2_dropout=layer2_dropout,
            training=training or {},
        ),
    )
    _write_manifest(bundle.directory, manifest)
    _remove_models(bundle.directory, keep=target)
    return Bundle.open(bundle.directory, need_model=True)


def _read_manifest(root: Path) -> BundleManifest:
    path = root / MANIFEST_FILE
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(
            f"{root} is no bundle (no {MANIFEST_FILE}): create one with `sidstream fit`, or wait until it has finished"
        ) from None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    try:
        version = msgspec.json.decode(raw, type=_FormatOnly).format
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{path} has format {version}, this sidstream reads up to {FORMAT_VERSION}: update sidstream, "
                "or fit the bundle again"
            )
        return msgspec.json.decode(raw, type=BundleManifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{path} is damaged ({error}): fit the bundle again with `sidstream fit`") from error


class _FormatOnly(msgspec.Struct):
    format: int


def _write_manifest(root: Path, manifest: BundleManifest) -> None:
    """Makes every file durable, then the manifest, by an atomic replacement."""
    directories = {root}
    for name in manifest.files:
        path = _inside(root, name)
        _sync(path)
        directories.add(path.parent)
    temporary = root / f".{MANIFEST_FILE}-{secrets.token_hex(4)}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    _sync(temporary)
    for directory in directories:
        _sync(directory)
    os.replace(temporary, root / MANIFEST_FILE)
    _sync(root)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _inside(root: Path, name: str) -> Path:
    """Path of a manifest's file name; a name that leads out of the bundle is refused."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or ":" in name:
        raise BundleError(
            f"the manifest of {root} names {name!r}, which leads out of the bundle: do not use this bundle"
        )
    if pure.suffix.lower() in _FORBIDDEN_SUFFIXES:
        raise BundleError(
            f"the manifest of {root} names {name!r}: only safetensors weights are accepted; convert the model first"
        )
    path = root / pure
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path} is a link out of the bundle: do not use this bundle")
    return path


def _record(root: Path, name: str) -> FileRecord:
    path = _inside(root, name)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)


def _verify(root: Path, name: str, record: FileRecord, *, hashed: bool) -> None:
    path = _inside(root, name)
    if not path.is_file():
        raise BundleError(f"{path} is missing: copy the bundle again, whole, or fit it again with `sidstream fit`")
    size = path.stat().st_size
    if size != record.size:
        raise BundleError(
            f"{path} has {size} bytes, the manifest says {record.size}: copy the bundle again, or fit and train it again"
        )
    if hashed and _record(root, name).sha256 != record.sha256:
        raise BundleError(
            f"{path} has changed since the bundle was written (SHA-256): copy the bundle again, or fit and train it again"
        )


def _remove_models(root: Path, keep: str | None) -> None:
    for path in root.iterdir():
        if path.name != keep and path.name.startswith(MODEL_PREFIX) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
