"""How codes are read as SIDs: a layout names the layer-2 tokens that SIDs leave out.

Codes never change while the codebook stays; a layout is a view on them. A SID is the sequence of SID token numbers
``layer_index * size + token`` of the codes, less the layer-2 one when that token is a head token, so the token ranges
of the layers are disjoint and a SID says by itself whether it is short.
``models.sids.head_tokens`` chooses the head tokens.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import SidstreamError

MINIMUM_LAYERS: Final = 3  # with two layers, leaving out layer 2 would leave a bare cluster number
MAXIMUM_LAYERS: Final = len(string.ascii_lowercase)  # the text form names a layer by a letter
MAXIMUM_SIZE: Final = 65_536  # codes are uint16
MAXIMUM_GENERATION: Final = 2**63 - 1  # the index keeps it in eight bytes
HEAD_LAYER_INDEX: Final = 1  # layer 2 of the paper, counted from 0
PADDING: Final = -1  # fills the end of a short SID's row


class LayoutError(SidstreamError):
    """A layout, codes or a SID that contradict each other."""


@dataclass(frozen=True)
class Layout:
    """A numbered generation of reading codes as SIDs.

    generation ≥ 0: newer layouts have greater numbers. codebook_id: the codebook whose codes it reads.
    layers: L, 3 to 26. size: M, codewords per layer. head_tokens: layer-2 tokens left out of SIDs, ascending.
    Raises ``LayoutError`` naming field and value.
    """

    generation: int
    codebook_id: str
    layers: int
    size: int
    head_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.generation < 0:
            raise LayoutError(f"layout: generation must be at least 0, not {self.generation}")
        if self.generation > MAXIMUM_GENERATION:
            raise LayoutError(f"layout: generation must be at most {MAXIMUM_GENERATION}, and this one is greater")
        if not self.codebook_id:
            raise LayoutError("layout: codebook_id is empty; give the id of the codebook whose codes the layout reads")
        if not MINIMUM_LAYERS <= self.layers <= MAXIMUM_LAYERS:
            raise LayoutError(f"layout: layers must be {MINIMUM_LAYERS} to {MAXIMUM_LAYERS}, not {self.layers}")
        if not 1 <= self.size <= MAXIMUM_SIZE:
            raise LayoutError(f"layout: size must be 1 to {MAXIMUM_SIZE} codewords per layer, not {self.size}")
        if not isinstance(self.head_tokens, tuple):
            raise LayoutError(f"layout: head_tokens must be a tuple, not a {type(self.head_tokens).__name__}")
        for token in self.head_tokens:
            if not 0 <= token < self.size:
                raise LayoutError(f"layout: head token {token} is not one of the {self.size} layer-2 tokens (0-based)")
        if any(after <= before for before, after in zip(self.head_tokens, self.head_tokens[1:], strict=False)):
            raise LayoutError(f"layout: head_tokens must be ascending without repeats, not {_shown(self.head_tokens)}")

    @cached_property
    def is_head(self) -> NDArray[np.bool_]:
        """bool (M,), read-only: whether each layer-2 token is a head token."""
        flags = np.zeros(self.size, dtype=np.bool_)
        flags[list(self.head_tokens)] = True
        flags.flags.writeable = False
        return flags

    @cached_property
    def layer_offsets(self) -> NDArray[np.int32]:
        """int32 (L,), read-only: the first SID token number of each layer."""
        offsets = np.arange(self.layers, dtype=np.int32) * np.int32(self.size)
        offsets.flags.writeable = False
        return offsets

    def sid_tokens(self, codes: ArrayLike) -> NDArray[np.int32]:
        """Codes (N, L) → SID token numbers int32 (N, L); a short SID is shifted left and ends with ``PADDING``."""
        rows = self._checked_codes(codes)
        tokens = rows.astype(np.int32) + self.layer_offsets
        short = np.flatnonzero(self.is_head[rows[:, HEAD_LAYER_INDEX]])
        if short.size:
            tokens[short, HEAD_LAYER_INDEX:-1] = tokens[short, HEAD_LAYER_INDEX + 1 :]
            tokens[short, -1] = PADDING
        return tokens

    def sid_of(self, codes: Sequence[int]) -> tuple[int, ...]:
        """One item's codes, L numbers → its SID token numbers, L or L − 1 of them, without padding."""
        row = self.sid_tokens(np.asarray([codes]))[0].tolist()
        return tuple(row if row[-1] != PADDING else row[:-1])

    def sid_text(self, codes: Sequence[int]) -> str:
        """One item's codes as people read a SID: ``<a_12><b_7><c_9>``, short ``<a_12><c_9>``."""
        return self.sid_tokens_text(self.sid_of(codes))

    def sid_tokens_text(self, tokens: Sequence[int]) -> str:
        """SID token numbers, also the beginning of a SID, as text; padding is skipped."""
        parts = []
        for token in tokens:
            if token == PADDING:
                continue
            layer_index, number = divmod(int(token), self.size)
            if not 0 <= layer_index < self.layers:
                raise LayoutError(f"SID token {token} is outside [0, {self.layers * self.size})")
            parts.append(f"<{string.ascii_lowercase[layer_index]}_{number}>")
        return "".join(parts)

    def codes_of(self, tokens: Sequence[int]) -> tuple[int | None, ...]:
        """SID token numbers, padded or not → L codes; the layer-2 code of a short SID is None.

        Raises ``LayoutError`` for what is no SID of this layout: a wrong length, a token outside its layer's range, a
        head token written out, a short SID where no token is left out.
        """
        numbers = [int(token) for token in tokens]
        if len(numbers) == self.layers and numbers[-1] == PADDING:
            del numbers[-1]
        if not self.layers - 1 <= len(numbers) <= self.layers:
            raise LayoutError(
                f"a SID has {self.layers - 1} or {self.layers} tokens, not {len(numbers)}: {_shown(tokens)}"
            )
        codes = self.codes_of_array(np.asarray([numbers + [PADDING] * (self.layers - len(numbers))]))[0].tolist()
        return tuple(None if code == PADDING else code for code in codes)

    def codes_of_array(self, tokens: ArrayLike) -> NDArray[np.int32]:
        """SID rows as ``sid_tokens`` and trie paths give them, (N, L) → codes int32 (N, L), left-out codes −1.

        Raises ``LayoutError`` for the first row that is no SID of this layout.
        """
        rows = np.asarray(tokens)
        if rows.ndim != 2 or rows.shape[1] != self.layers or not np.issubdtype(rows.dtype, np.integer):
            raise LayoutError(f"SID rows must be integers (N, {self.layers}), not {rows.dtype} of shape {rows.shape}")
        full = rows.astype(np.int64)
        short = full[:, -1] == PADDING
        full[short, HEAD_LAYER_INDEX + 1 :] = full[short, HEAD_LAYER_INDEX:-1]
        codes = full - self.layer_offsets
        in_range = (codes >= 0) & (codes < self.size)
        in_range[short, HEAD_LAYER_INDEX] = True
        codes[short, HEAD_LAYER_INDEX] = PADDING
        wrong = ~in_range.all(axis=1)
        if wrong.any():
            row = rows[int(np.argmax(wrong))].tolist()
            raise LayoutError(f"{row} is no SID: each token must lie in its layer's range of {self.size}, in order")
        written_out = ~short & self.is_head[np.where(short, 0, codes[:, HEAD_LAYER_INDEX])]
        if written_out.any():
            row = rows[int(np.argmax(written_out))].tolist()
            raise LayoutError(
                f"{row} is no SID of layout {self.generation}: its layer-2 token is a head token, left out"
            )
        if short.any() and not self.head_tokens:
            row = rows[int(np.argmax(short))].tolist()
            raise LayoutError(f"{row} is no SID of layout {self.generation}: it has no head tokens, so no short SIDs")
        return codes.astype(np.int32)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or MessagePack; ``from_dict`` gives an equal layout."""
        return {
            "generation": self.generation,
            "codebook_id": self.codebook_id,
            "layers": self.layers,
            "size": self.size,
            "head_tokens": list(self.head_tokens),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Layout:
        """The layout written by ``to_dict``; raises ``LayoutError`` naming a missing or malformed field."""
        try:
            return cls(
                generation=int(values["generation"]),
                codebook_id=str(values["codebook_id"]),
                layers=int(values["layers"]),
                size=int(values["size"]),
                head_tokens=tuple(int(token) for token in values["head_tokens"]),
            )
        except KeyError as error:
            raise LayoutError(f"layout: field {error.args[0]!r} is missing") from error
        except (TypeError, ValueError) as error:
            raise LayoutError(f"layout: a field has the wrong type ({error})") from error

    def _checked_codes(self, codes: ArrayLike) -> NDArray[Any]:
        rows = np.asarray(codes)
        if rows.ndim != 2 or rows.shape[1] != self.layers or not np.issubdtype(rows.dtype, np.integer):
            raise LayoutError(f"codes must be integers (N, {self.layers}), not {rows.dtype} of shape {rows.shape}")
        if rows.size and not (rows.min() >= 0 and rows.max() < self.size):
            row = rows[int(np.argmax(((rows < 0) | (rows >= self.size)).any(axis=1)))].tolist()
            raise LayoutError(f"codes {row} do not fit a codebook of {self.size} codewords per layer (0-based)")
        return rows


def _shown(tokens: Sequence[int]) -> str:
    return str(list(tokens[:12]))[:-1] + (", …]" if len(tokens) > 12 else "]")
