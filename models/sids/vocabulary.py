"""The token ids of a language model that reads and writes Semantic IDs: text, user buckets, control tokens, one range
per layer.

What must hold: a layer's tokens are one contiguous range, and ``token id = sid_base + SID token number``, so that a
mask, a slice of ``lm_head`` and a shift are all that decoding needs.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError

# Padding, begin, and the separator that says "now comes the SID": kept outside the tokenizer, so that any tokenizer
# will do.
CONTROL_TOKENS: Final = 3


class SidVocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids ``[text | user buckets | padding, begin, separator | layer 1 | … | layer L]``.

    ``text_size``: ids of the tokenizer (or rows of the checkpoint's embedding matrix); ``user_buckets``: users are
    hashed into this many tokens (0: the model knows no users); ``layers`` and ``size``: L and M of the codebook.

    >>> vocabulary = SidVocabulary(text_size=100, user_buckets=8, layers=3, size=256)
    >>> vocabulary.sid_base, vocabulary.total, vocabulary.layer_range(1)
    (111, 879, range(367, 623))
    """

    text_size: int
    user_buckets: int
    layers: int
    size: int

    def __post_init__(self) -> None:
        for field, smallest in (("text_size", 0), ("user_buckets", 0), ("layers", 3), ("size", 1)):
            if getattr(self, field) < smallest:
                raise SidstreamError(
                    f"a SID vocabulary needs {field} >= {smallest}, not {getattr(self, field)}: correct the settings of the model"
                )

    @property
    def padding_id(self) -> int:
        """Fills batches; never seen by attention."""
        return self.text_size + self.user_buckets

    @property
    def begin_id(self) -> int:
        """First token of every prompt, unless the checkpoint's own tokenizer has such a token."""
        return self.padding_id + 1

    @property
    def separator_id(self) -> int:
        """Last token of every prompt: the next token is the first of a SID."""
        return self.padding_id + 2

    @property
    def sid_base(self) -> int:
        """Token id of SID token number 0 (layer 1, token 0)."""
        return self.text_size + self.user_buckets + CONTROL_TOKENS

    @property
    def total(self) -> int:
        """Number of token ids, and of rows of the model's embedding matrix."""
        return self.sid_base + self.layers * self.size

    def layer_range(self, layer_index: int) -> range:
        """Token ids of a layer; ``layer_index`` is 0-based."""
        if not 0 <= layer_index < self.layers:
            raise SidstreamError(
                f"layer index {layer_index} does not exist: the vocabulary has {self.layers} layers, counted from 0"
            )
        start = self.sid_base + layer_index * self.size
        return range(start, start + self.size)

    def user_id(self, user: str) -> int | None:
        """Token id of a user's bucket, the same in every process and for ever; None if the model knows no users."""
        if self.user_buckets == 0:
            return None
        digest = hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return self.text_size + int.from_bytes(digest, "big") % self.user_buckets

    def token_ids(self, sid_tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """SID token numbers (any shape, -1 = absent) → token ids (same shape, int32, -1 stays -1)."""
        numbers = np.asarray(sid_tokens, dtype=np.int32)
        return np.where(numbers < 0, np.int32(-1), numbers + np.int32(self.sid_base)).astype(np.int32, copy=False)

    def sid_tokens(self, token_ids: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Token ids (any shape) → SID token numbers (same shape, int32, -1 where the id is no SID token)."""
        numbers = np.asarray(token_ids, dtype=np.int32) - np.int32(self.sid_base)
        return np.where((numbers < 0) | (numbers >= self.layers * self.size), np.int32(-1), numbers).astype(
            np.int32, copy=False
        )
