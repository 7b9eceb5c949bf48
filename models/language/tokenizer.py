"""Text tokens: one small interface, always read from a ``tokenizer.json`` file, whoever made the tokenizer.

What must hold: no network and no remote code; the same text gives the same ids in training and in serving.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from models.errors import SidstreamError, first_line

TOKENIZER_FILE: Final = "tokenizer.json"
BYTES: Final = 256  # ids of the smallest tokenizer: any text, a byte a token
_SETTINGS_FILE: Final = "sidstream_tokenizer.json"
_MESSAGE: Final = "sidstream-message"  # stands for a user's message while a chat template is applied


class _TokenizerSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    begin_id: int | None = None
    chat_frame: tuple[str, str] | None = None


class TextTokenizer:
    """A tokenizer of the `tokenizers` library, the id of its begin-of-sequence token if it has one, and its chat template's
    frame, or ``chat_fault``: why the template that there is cannot be applied.
    """

    def __init__(
        self,
        tokenizer: Any,
        begin_id: int | None = None,
        chat_frame: tuple[str, str] | None = None,
        chat_fault: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        # A checkpoint's tokenizer may pad or cut by itself; prompts do that here, in one place.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.begin_id = begin_id
        self._chat_frame = chat_frame
        self._chat_fault = chat_fault

    @property
    def chat_frame(self) -> tuple[str, str] | None:
        """What the chat template writes before and after a user's message, None without a template. Raises ``SidstreamError`` for
        one that cannot be applied: bare prompts need none, and train without a word of it.
        """
        if self._chat_fault is not None:
            raise SidstreamError(self._chat_fault)
        return self._chat_frame

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts; the same as ``encode`` on each, faster."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, for messages to people."""
        return str(self._tokenizer.decode(list(ids)))

    def save(self, directory: Path) -> None:
        """Writes ``tokenizer.json`` and our note of the begin token and the chat frame."""
        self._tokenizer.save(str(directory / TOKENIZER_FILE))
        (directory / _SETTINGS_FILE).write_bytes(
            msgspec.json.encode(_TokenizerSettings(self.begin_id, self._chat_frame))
        )

    @staticmethod
    def is_ours(directory: Path) -> bool:
        """Whether a directory holds what ``save`` wrote."""
        return (directory / _SETTINGS_FILE).is_file()

    @classmethod
    def load(cls, directory: Path) -> TextTokenizer:
        """Reads what ``save`` wrote."""
        from tokenizers import Tokenizer

        path = directory / TOKENIZER_FILE
        if not path.is_file():
            raise SidstreamError(
                f"no {TOKENIZER_FILE} in {directory}: the language model is incomplete; run `sidstream train` again"
            )
        settings = _TokenizerSettings()
        if (directory / _SETTINGS_FILE).is_file():
            settings = msgspec.json.decode((directory / _SETTINGS_FILE).read_bytes(), type=_TokenizerSettings)
        return cls(Tokenizer.from_file(str(path)), settings.begin_id, settings.chat_frame)

    @classmethod
    def from_checkpoint(cls, directory: Path) -> TextTokenizer:
        """The tokenizer of a local checkpoint directory; nothing is fetched and no code of the checkpoint is run."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False, use_fast=True
            )
            backend = tokenizer.backend_tokenizer
        except Exception as error:  # the tokenizers library raises nothing more particular for a damaged file
            raise SidstreamError(
                f"no usable tokenizer in {directory} ({first_line(error)}): put the checkpoint's tokenizer.json beside its "
                "weights"
            ) from error
        try:
            frame, fault = _chat_frame(tokenizer, directory), None
        except SidstreamError as error:  # a bare prompt needs none
            frame, fault = None, str(error)
        return cls(backend, tokenizer.bos_token_id, frame, fault)


def _chat_frame(tokenizer: Any, directory: Path) -> tuple[str, str] | None:
    """What the template writes around a user's message, up to where the assistant begins. Its begin-of-sequence token is left
    out: every prompt begins with one.
    """
    if not tokenizer.chat_template:
        return None
    try:
        # A template is text that jinja fills in its sandbox: no code of the checkpoint is run.
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MESSAGE}], tokenize=False, add_generation_prompt=True
        )
        before, after = text.split(_MESSAGE)
    except (
        Exception
    ) as error:  # whatever a foreign template makes jinja stumble over, or a message that is not there once
        raise SidstreamError(
            f"the chat template of {directory} cannot be applied to one message of a user ({first_line(error)}): remove it there "
            "(chat_template.jinja, or chat_template in tokenizer_config.json) for an instruction without it"
        ) from error
    return before.removeprefix(tokenizer.bos_token or ""), after


def train_tokenizer(texts: Iterable[str], *, size: int = 3000) -> TextTokenizer:
    """Trains a lower-casing byte-level BPE of at most ``size`` ids on a catalogue's texts; deterministic.

    Byte level, so that no text of any script is unknown to it.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # A space before the first word: a word is the same token wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return TextTokenizer(tokenizer)
