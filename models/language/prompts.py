"""Prompts: query text, user and history become token ids (paper § 2.2, eq. 4), alike in training and in serving.

What must hold: ``begin [user] [SIDs of the history, oldest first] [query text] separator``, with the words of the instruction
between them if there is one; every part between the two ends is optional. A title's first tokens stand behind its item's SID.
With ``query_codes`` the query's own codes are the newest SID of the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.errors import SidstreamError
from models.language.instruction import BARE, InstructionPart, Slot
from models.language.tokenizer import TextTokenizer
from models.sids.vocabulary import SidVocabulary

_CHARACTERS_A_TOKEN: Final = 32  # more than nearly every token has


class PromptSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``max_history``: newest history items kept; ``max_text_tokens``: first tokens of the query text kept; ``query_codes``:
    whether the codes of a query's embedding stand in its prompt, after the history and as one item of it; ``history_text``: first
    tokens of each history item's title behind its SID; ``instruction``: the words of the prompt, none for a bare one.
    """

    max_history: int = 10
    max_text_tokens: int = 24
    query_codes: bool = False
    history_text: int = 0
    instruction: tuple[InstructionPart, ...] = ()

    def __post_init__(self) -> None:
        if self.max_history < 0 or self.max_text_tokens < 0 or self.history_text < 0:
            raise SidstreamError(
                f"prompt settings must not be negative (max_history={self.max_history}, "
                f"max_text_tokens={self.max_text_tokens}, history_text={self.history_text})"
            )
        if self.query_codes and self.max_history == 0:
            raise SidstreamError("the codes of a query stand in the history's place: let max_history be 1 or more")
        if self.history_text and self.max_history == 0:
            raise SidstreamError(
                "titles stand beside the items of a history, and none is read: let max_history be 1 or more"
            )

    def described(self) -> str:
        """In words, all that decides a prompt."""
        titles = f", {self.history_text} tokens of each title" if self.history_text else ""
        words = f", instruction {msgspec.json.encode(self.instruction).decode()}" if self.instruction else ""
        return f"{self.max_history} items of history, {self.max_text_tokens} tokens of text{titles}{words}"


@dataclass(frozen=True)
class _Part:
    before: list[int]
    slot: Slot | None
    after: list[int]


class PromptBuilder:
    """Builds prompts for one vocabulary and tokenizer.

    Training asks for ``row`` (fixed width, vectorised later) or for ``head`` and ``tail``, serving for ``build``; ``build`` is
    ``row`` without its gaps, and ``head``, the history, ``tail`` and the separator are ``build``.
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
        parts = self.settings.instruction or BARE
        self._parts = [_Part(self._encode(part.before), part.slot, self._encode(part.after)) for part in parts]
        slots = [part.slot for part in parts]
        # Where the history stands, or would: what comes before it is the same for all prompts of one user.
        self._middle = next((at for at, slot in enumerate(slots) if slot in ("history", "query")), len(slots))

    def require_slots(self) -> None:
        """Raises ``SidstreamError`` for an instruction without a slot for what queries may bring: it would be read by nobody."""
        read: list[tuple[Slot, int]] = [
            ("user", self.vocabulary.user_buckets),
            ("history", self.settings.max_history),
            ("query", self.settings.max_text_tokens),
        ]
        slots = {part.slot for part in self._parts}
        if missing := [slot for slot, most in read if most and slot not in slots]:
            raise SidstreamError(
                f"the instruction has no slot {{{missing[0]}}}, and queries bring something for it: put {{{missing[0]}}} into "
                "it, or train with --user-buckets 0, --max-history 0 or --max-text 0"
            )

    @cached_property
    def width(self) -> int:
        """Length of the longest prompt, and of every ``row``."""
        settings = self.settings
        words = sum(len(part.before) + len(part.after) for part in self._parts)
        an_item = self.vocabulary.layers + settings.history_text
        return 3 + words + settings.max_history * an_item + settings.max_text_tokens

    def head(self, user: str | None, *, has_history: bool) -> list[int]:
        """Token ids up to the first item of the history."""
        user_id = None if user is None else self.vocabulary.user_id(user)
        ids = [
            self.begin_id,
            *self._written(self._parts[: self._middle], {"user": [] if user_id is None else [user_id]}),
        ]
        if has_history and (history := self._part("history")) is not None:
            ids += history.before
        return ids

    def tail(self, text_ids: Sequence[int], *, has_history: bool) -> list[int]:
        """Token ids between the last item of the history and the separator; ``text_ids``: of the query."""
        ids: list[int] = []
        if has_history and (history := self._part("history")) is not None:
            ids += history.after
        rest = [part for part in self._parts[self._middle :] if part.slot != "history"]
        return ids + self._written(rest, {"query": list(text_ids[: self.settings.max_text_tokens])})

    @property
    def title_characters(self) -> int:
        """How many characters of the title of a history's item are looked at."""
        return self.settings.history_text * _CHARACTERS_A_TOKEN

    def title_ids(self, titles: Sequence[str]) -> npt.NDArray[np.int32]:
        """The tokens (N, ``history_text``) of titles that stand behind SIDs, -1 behind the end of a short one."""
        most = self.settings.history_text
        found = np.full((len(titles), most), -1, dtype=np.int32)
        if most:
            # An index may hold half a surrogate pair, and a title far longer than what is read of it.
            read = [title[: most * _CHARACTERS_A_TOKEN].encode("utf-8", "replace").decode() for title in titles]
            for row, ids in zip(found, self.tokenizer.encode_batch(read), strict=True):
                row[: len(ids)] = ids[:most]
        return found

    def row(
        self,
        text_ids: Sequence[int] = (),
        history: Sequence[npt.NDArray[np.integer]] | npt.NDArray[np.integer] = (),
        user: str | None = None,
        title_ids: npt.NDArray[np.integer] | None = None,
    ) -> npt.NDArray[np.int32]:
        """One prompt as (width,) int32 with -1 where a part is absent.

        ``text_ids``: token ids of the query text; ``history``: one (L,) array of SID token numbers an item, oldest
        first, -1 padded; ``title_ids``: one row an item of it (``title_ids``), None for no titles.
        """
        first = max(0, len(history) - self.settings.max_history)
        items = self.vocabulary.token_ids(np.asarray(history[first:]))
        if title_ids is not None and len(items):
            items = np.concatenate((items, title_ids[first:]), axis=1)
        read: list[int] = items.ravel().tolist()
        row = np.full(self.width, -1, dtype=np.int32)
        head = self.head(user, has_history=bool(read))
        ids = [*head, *read, *self.tail(text_ids, has_history=bool(read)), self.vocabulary.separator_id]
        row[: len(ids)] = ids
        return row

    def build(
        self,
        text: str = "",
        history: Sequence[npt.NDArray[np.integer]] | npt.NDArray[np.integer] = (),
        user: str | None = None,
        titles: Sequence[str] = (),
    ) -> list[int]:
        """The prompt of one query as token ids, without gaps; ``titles``: those of the history's items, one an item or
        none; other arguments as in ``row``.
        """
        title_ids = self.title_ids(titles) if self.settings.history_text and len(titles) else None
        row = self.row(self.tokenizer.encode(text) if text else (), history, user, title_ids)
        ids: list[int] = row[row >= 0].tolist()
        return ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text) if text else []

    def _part(self, slot: Slot) -> _Part | None:
        return next((part for part in self._parts if part.slot == slot), None)

    @staticmethod
    def _written(parts: Iterable[_Part], filled: dict[Slot, list[int]]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            if part.slot is None:
                ids += part.before
            elif said := filled.get(part.slot):
                ids += [*part.before, *said, *part.after]
        return ids
