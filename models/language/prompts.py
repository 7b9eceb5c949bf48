"""Prompts: query text, user and history become token ids (paper § 2.2, eq. 4), alike in training and in serving.

What must hold: ``begin [user] [SIDs of the history, oldest first] [query text] separator``; every part between the
two ends is optional. With ``query_codes`` the query's own codes are the newest SID of the history.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.language.tokenizer import TextTokenizer
from models.sids.vocabulary import SidVocabulary


class PromptSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``max_history``: newest history items kept; ``max_text_tokens``: first tokens of the query text kept; ``query_codes``:
    whether the codes of a query's embedding stand in its prompt, after the history and as one item of it.
    """

    max_history: int = 10
    max_text_tokens: int = 24
    query_codes: bool = False

    def __post_init__(self) -> None:
        if self.max_history < 0 or self.max_text_tokens < 0:
            raise SidstreamError(
                f"prompt settings must not be negative (max_history={self.max_history}, max_text_tokens={self.max_text_tokens})"
            )
        if self.query_codes and self.max_history == 0:
            raise SidstreamError("the codes of a query stand in the history's place: let max_history be 1 or more")

    def width(self, layers: int) -> int:
        """Tokens of the longest prompt for SIDs of up to ``layers`` tokens: begin, user, history, text, separator."""
        return 3 + self.max_history * layers + self.max_text_tokens


class PromptBuilder:
    """Builds prompts for one vocabulary and tokenizer.

    Training asks for ``row`` (fixed width, vectorised later), serving for ``build``; ``build`` is ``row`` without its
    gaps.
    """

    def __init__(
        self, vocabulary: SidVocabulary, tokenizer: TextTokenizer, settings: PromptSettings | None = None
    ) -> None:
        self.vocabulary = vocabulary
        self.tokenizer = tokenizer
        self.settings = settings or PromptSettings()
        if tokenizer.size > vocabulary.text_size:
            raise SidstreamError(
                f"the tokenizer has {tokenizer.size} tokens but the vocabulary has room for {vocabulary.text_size} text ids: "
                "tokenizer and language model do not belong together; train again with `sidstream train`"
            )
        begin = tokenizer.begin_id
        self.begin_id = vocabulary.begin_id if begin is None else begin

    @property
    def width(self) -> int:
        """Length of the longest prompt, and of every ``row``."""
        return self.settings.width(self.vocabulary.layers)

    def row(
        self,
        text_ids: Sequence[int] = (),
        history: Sequence[npt.NDArray[np.integer]] | npt.NDArray[np.integer] = (),
        user: str | None = None,
    ) -> npt.NDArray[np.int32]:
        """One prompt as (width,) int32 with -1 where a part is absent.

        ``text_ids``: token ids of the query text; ``history``: one (L,) array of SID token numbers an item, oldest
        first, -1 padded.
        """
        vocabulary, settings = self.vocabulary, self.settings
        row = np.full(self.width, -1, dtype=np.int32)
        row[0] = self.begin_id
        if user is not None:
            user_id = vocabulary.user_id(user)
            row[1] = -1 if user_id is None else user_id
        newest = list(history[max(0, len(history) - settings.max_history) :])
        start = 2 + (settings.max_history - len(newest)) * vocabulary.layers
        for offset, tokens in enumerate(newest):
            at = start + offset * vocabulary.layers
            row[at : at + len(tokens)] = vocabulary.token_ids(np.asarray(tokens))
        kept = text_ids[: settings.max_text_tokens]
        at = 2 + settings.max_history * vocabulary.layers
        row[at : at + len(kept)] = kept
        row[-1] = vocabulary.separator_id
        return row

    def build(
        self,
        text: str = "",
        history: Sequence[npt.NDArray[np.integer]] | npt.NDArray[np.integer] = (),
        user: str | None = None,
    ) -> list[int]:
        """The prompt of one query as token ids, without gaps; arguments as in ``row``."""
        row = self.row(self.tokenizer.encode(text) if text else (), history, user)
        ids: list[int] = row[row >= 0].tolist()
        return ids
