"""A bundle: one directory with codebook, ONNX encoder, language model, and a manifest that is written last.

What must hold: a directory without a manifest is no bundle; every file that the manifest names has the size and
SHA-256 that it states; weights are safetensors only, and no code comes out of a bundle. This module needs no torch.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.bundles.manifest import (
    MANIFEST_FILE,
    BundleError,
    FileRecord,
    inside,
    read_manifest_bytes,
    record_file,
    require_place,
    verify_file,
    write_manifest,
)
from models.dense.codebook_input import CodebookInput, CodebookInputRecord
from models.dense.part import DenseRecord, save_space, space_facts
from models.directories import make_directory
from models.language.prompts import PromptSettings
from models.sids.layout import Layout
from models.sids.vocabulary import SidVocabulary

if TYPE_CHECKING:
    from models.codebooks.codebook import Codebook
    from models.codebooks.onnx_screen import ScreenRanges

FORMAT_VERSION: Final = 3
_PLAIN_FORMAT: Final = 1  # of a bundle that an older sidstream reads rightly, too
_CODES_FORMAT: Final = 2  # reads codebook inputs and query codes, and not the words of a prompt
CODEBOOK_FILE: Final = "codebook.safetensors"
ENCODER_FILE: Final = "encoder.onnx"
CODEBOOK_INPUT_FILE: Final = "codebook_input.safetensors"
MODEL_PREFIX: Final = "language_model-"
DENSE_PREFIX: Final = "dense-"
_STAGING_PREFIX: Final = ".staging-"
_TRAINING_SUFFIX: Final = ".training"
_MAKE_AGAIN: Final = "fit and train it again with `sidstream fit` and `sidstream train`"


class BaseCheckpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model was fine-tuned from: the directory as it was ``given``, the ``id`` of its weights, made as that of a model of
    ours, and its ``model_type`` by transformers' name. ``bundle``: id of the bundle whose model it was (a warm start), None for a
    checkpoint; ``pretrained``: the checkpoint that this bundle's model came from at first, None if it began from random weights.
    """

    given: str
    id: str
    model_type: str
    bundle: str | None = None
    pretrained: str | None = None

    @classmethod
    def of(cls, directory: Path, model_type: str) -> BaseCheckpoint:
        """Reads all weights of the checkpoint once."""
        digests = []
        for path in sorted(directory.rglob("*.safetensors")):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        return cls(str(directory), _weights_id(digests), model_type)


class LanguageModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The language model of a bundle.

    ``id``: first 16 hex digits of the SHA-256 of its weights; ``layer2_dropout``: share of layer-2 tokens left out in
    training (above 0 the model may follow the live layout); ``training``: figures for people (examples, epochs, loss,
    seconds, …); ``base``: None for a model that began from random weights, and in a bundle of an older sidstream.
    """

    id: str
    directory: str
    vocabulary: SidVocabulary
    prompt: PromptSettings
    layer2_dropout: float = 0.0
    training: dict[str, Any] = {}
    base: BaseCheckpoint | None = None


class BundleManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle holds. ``census``: L × M counts of the items it was fitted on, the baseline that drift is
    measured against. ``towers``: id of the text towers whose embeddings it was fitted on, None for other embeddings.
    ``embedding_norms``: their norms at 0, 1, 50, 99 and 100 % of the items; ``dense``: what the dense leg needs; both None in
    a bundle of an older sidstream. ``codebook_input``: what the codebook was fitted on, None for the embeddings alone.
    ``dimension``: D of the embeddings. ``embedding_model``: the name of what makes them: only updates of that name are for
    this codebook; None: those without one.
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
    towers: str | None = None
    embedding_norms: tuple[float, float, float, float, float] | None = None
    files: dict[str, FileRecord] = {}
    language_model: LanguageModelRecord | None = None
    dense: DenseRecord | None = None
    codebook_input: CodebookInputRecord | None = None
    embedding_model: str | None = None

    @property
    def layer2_dropout(self) -> float:
        """The language model's layer-2 dropout; 0 without a model."""
        return self.language_model.layer2_dropout if self.language_model else 0.0

    @property
    def model_id(self) -> str | None:
        """Id of the language model, None without one."""
        return self.language_model.id if self.language_model else None


class Bundle:
    """A verified bundle directory; get one by ``Bundle.open``.

    ``id``: first 16 hexadecimal digits of the SHA-256 of its manifest, which has the SHA-256 of every file: a copy has the same.
    """

    def __init__(self, directory: Path, manifest: BundleManifest, bundle_id: str) -> None:
        self.directory = directory
        self.manifest = manifest
        self.id = bundle_id
        self.layout = Layout.from_dict(manifest.layout)

    @classmethod
    def open(cls, directory: Path | str, *, need_model: bool = False) -> Bundle:
        """Reads the manifest and verifies the files; raises ``BundleError`` with what to do.

        The language model's files are hashed only if ``need_model`` (they are big, and the assigner does not read
        them).
        """
        root = Path(directory)
        manifest, bundle_id = _read_manifest(root)
        bundle = cls(root, manifest, bundle_id)
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
            hashed = need_model or not name.startswith(MODEL_PREFIX)
            verify_file(root, name, record, of="bundle", make_again=_MAKE_AGAIN, hashed=hashed)
        return bundle

    def path(self, name: str) -> Path:
        """Path of a file that the manifest names."""
        if name not in self.manifest.files:
            raise BundleError(
                f"the bundle {self.directory} has no file {name!r}; it has {', '.join(sorted(self.manifest.files))}"
            )
        return inside(self.directory, name)

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
        return inside(self.directory, self.manifest.language_model.directory)


def require_free(directory: Path | str, *, replace: bool) -> None:
    """Refuses a directory in which no bundle can or may be written; ask before hours of fitting, not after.

    Raises:
        BundleError: it holds a bundle and ``replace`` is not given, or it holds something else.
        SidstreamError: it cannot be made or written to.
    """
    root = Path(directory)
    files = (CODEBOOK_FILE, ENCODER_FILE, CODEBOOK_INPUT_FILE)
    require_place(root, files, of="bundle", prefixes=(MODEL_PREFIX, DENSE_PREFIX))
    if not (root / MANIFEST_FILE).exists():
        return
    if not _has_manifest_of_a_bundle(root):
        raise BundleError(
            f"the {MANIFEST_FILE} in {directory} is not of a bundle, and nothing there is replaced: choose another directory"
        )
    if not replace:
        raise BundleError(f"{directory} holds a bundle already: choose another directory, or replace it with --replace")


def _has_manifest_of_a_bundle(root: Path) -> bool:
    """Also for the manifest of another version, and for a damaged one beside a codebook: a bundle to be fitted again."""
    try:
        return "codebook_id" in msgspec.json.decode((root / MANIFEST_FILE).read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, OSError, RecursionError):
        return (root / CODEBOOK_FILE).exists()


def create_bundle(
    directory: Path | str,
    codebook: Codebook,
    layout: Layout,
    *,
    census: npt.NDArray[np.integer],
    embedding: str = "",
    towers: str | None = None,
    embedding_norms: tuple[float, float, float, float, float] | None = None,
    codebook_input: CodebookInput | None = None,
    embedding_model: str | None = None,
    screen: ScreenRanges | None = None,
    replace: bool = False,
) -> Bundle:
    """Writes codebook, ONNX encoder and manifest; no language model yet.

    ``census``: (L, M) counts of the items that the codebook was fitted on; ``embedding``: a sentence on how
    embeddings are made; ``towers``: id of the text towers that make them; ``embedding_norms``: see
    ``BundleManifest``, and ``embedding_model`` too; ``codebook_input``: what the codebook was fitted on, if that is more than the
    embeddings; ``screen``: of the encoder's graph, see ``models.codebooks.onnx_screen``;
    ``replace``: a bundle that is there already is removed first, model included.
    """
    from models.codebooks.onnx_export import export_onnx

    root = Path(directory)
    require_free(root, replace=replace)
    if census.shape != (codebook.layers, codebook.size):
        raise BundleError(f"the census has shape {census.shape}, the codebook needs {(codebook.layers, codebook.size)}")
    make_directory(root)
    # The manifest goes first and comes back last: what lies between is visibly no bundle.
    (root / MANIFEST_FILE).unlink(missing_ok=True)
    _remove_models(root, keep=None)
    remove_dense_files(root, keep=())
    shutil.rmtree(checkpoint_directory(root), ignore_errors=True)  # of a model for another codebook
    codebook.save(root / CODEBOOK_FILE)
    export_onnx(codebook, root / ENCODER_FILE, screen)
    files = [CODEBOOK_FILE, ENCODER_FILE]
    (root / CODEBOOK_INPUT_FILE).unlink(missing_ok=True)
    input_record = None
    if codebook_input is not None:
        save_space(codebook_input.space, root / CODEBOOK_INPUT_FILE)
        (root / CODEBOOK_INPUT_FILE).chmod(0o644)  # safetensors writes files for the owner alone
        facts = space_facts(codebook_input.space, CODEBOOK_INPUT_FILE)
        input_record = CodebookInputRecord(**facts, weight=codebook_input.weight)
        files.append(CODEBOOK_INPUT_FILE)
    manifest = BundleManifest(
        format=_format(input_record, None, embedding_model),
        codebook_id=codebook.id,
        layers=codebook.layers,
        size=codebook.size,
        dimension=codebook.dimension if codebook_input is None else codebook_input.space.dimension,
        layout=layout.to_dict(),
        items=int(census[0].sum()),
        census=census.astype(np.int64).tolist(),
        embedding=embedding,
        towers=towers,
        embedding_norms=embedding_norms,
        files={name: record_file(root, name) for name in files},
        codebook_input=input_record,
        embedding_model=embedding_model,
    )
    write_manifest(root, manifest)
    return Bundle.open(root)


def checkpoint_directory(bundle: Path | str) -> Path:
    """Where a training that is under way for a bundle keeps its checkpoints: beside it, never in it."""
    root = Path(bundle).resolve()
    return root.with_name(f"{root.name}{_TRAINING_SUFFIX}")


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
    base: BaseCheckpoint | None = None,
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
        name: record_file(staged, name) for name in names
    }  # refuses what must not be in a bundle, before anything moves
    model_id = _weights_id([bytes.fromhex(records[name].sha256) for name in weights])
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
        format=_format(bundle.manifest.codebook_input, prompt, bundle.manifest.embedding_model),
        files=files,
        language_model=LanguageModelRecord(
            id=model_id,
            directory=target,
            vocabulary=vocabulary,
            prompt=prompt,
            layer2_dropout=layer2_dropout,
            training=training or {},
            base=base,
        ),
    )
    write_manifest(bundle.directory, manifest)
    _remove_models(bundle.directory, keep=target)
    return Bundle.open(bundle.directory, need_model=True)


def _weights_id(digests: Sequence[bytes]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the files' own, in the order of their names."""
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _format(
    codebook_input: CodebookInputRecord | None, prompt: PromptSettings | None, embedding_model: str | None
) -> int:
    """The oldest that says all that a reader must know."""
    if prompt is not None and (prompt.history_text or prompt.instruction):
        return FORMAT_VERSION
    plain = codebook_input is None and embedding_model is None and (prompt is None or not prompt.query_codes)
    return _PLAIN_FORMAT if plain else _CODES_FORMAT


def _read_manifest(root: Path) -> tuple[BundleManifest, str]:
    path = root / MANIFEST_FILE
    raw = read_manifest_bytes(
        root,
        missing=f"{root} is no bundle (no {MANIFEST_FILE}): create one with `sidstream fit`, or wait until it has finished",
    )
    try:
        version = msgspec.json.decode(raw, type=_FormatOnly).format
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{path} has format {version}, this sidstream reads up to {FORMAT_VERSION}: update sidstream, "
                "or fit the bundle again"
            )
        return msgspec.json.decode(raw, type=BundleManifest), hashlib.sha256(raw).hexdigest()[:16]
    except msgspec.DecodeError as error:
        raise BundleError(f"{path} is damaged ({error}): fit the bundle again with `sidstream fit`") from error


class _FormatOnly(msgspec.Struct):
    format: int


def remove_dense_files(root: Path, keep: Collection[str]) -> None:
    """Removes files of dense parts that no manifest names any more."""
    for path in root.iterdir():
        if path.name not in keep and path.name.lstrip(".").startswith(DENSE_PREFIX) and path.is_file():
            path.unlink(missing_ok=True)


def _remove_models(root: Path, keep: str | None) -> None:
    for path in root.iterdir():
        if path.name != keep and path.name.startswith(MODEL_PREFIX) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
