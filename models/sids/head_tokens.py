"""Which layer-2 tokens are head tokens: pure functions from a census row to a sorted tuple of tokens.

The same counts give the same tokens: a token's rank goes by count, the greater first, ties by token number, the
smaller first; rank 1 is the most crowded. A token that no item holds is never chosen, except by ``all_tokens``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import SidstreamError


class HeadSelectionError(SidstreamError):
    """Counts, ranks or shares that no head tokens can be chosen from."""


def no_tokens() -> tuple[int, ...]:
    """No head tokens: every SID has all its layers (plain RQ-SID, TIGER)."""
    return ()


def all_tokens(size: int) -> tuple[int, ...]:
    """Every layer-2 token of a codebook of ``size`` codewords: the paper's "remove the second layer" (§ 4.1)."""
    if size < 1:
        raise HeadSelectionError(f"size must be at least 1, not {size}; give the codewords per layer (M)")
    return tuple(range(size))


def top_k(counts: ArrayLike, k: int) -> tuple[int, ...]:
    """The ``k`` most crowded tokens (paper § 4.2, top@K); fewer if fewer hold items.

    counts: integers (M,), live items per layer-2 token.
    """
    if k < 0:
        raise HeadSelectionError(f"k must be at least 0, not {k}")
    numbers = _checked(counts)
    ranked = _ranking(numbers)[:k]
    return _as_tuple(ranked[numbers[ranked] > 0])


def top_p(counts: ArrayLike, p: float) -> tuple[int, ...]:
    """The smallest set of most crowded tokens that holds at least the share ``p`` of all items (paper § 4.2, top@p).

    counts: integers (M,), live items per layer-2 token. No items, or p = 0: no tokens. p = 1: every token with items.
    """
    _require_share("p", p)
    numbers = _checked(counts)
    total = int(numbers.sum())
    if total == 0 or p == 0:
        return ()
    ranked = _ranking(numbers)
    # Divide rather than multiply: 28 / 100 is the double 0.28, while 0.28 * 100 is a little over 28.
    reached = np.cumsum(numbers[ranked]) / total >= p
    return _as_tuple(ranked[: int(np.argmax(reached)) + 1])


def with_hysteresis(counts: ArrayLike, current: Iterable[int], enter_rank: int, exit_rank: int) -> tuple[int, ...]:
    """Head tokens by rank that do not flap: in at rank ≤ ``enter_rank``, out only past ``exit_rank``.

    counts: integers (M,); current: the head tokens until now. Between the two ranks a token stays what it is. A token
    enters only with items; while there are no items at all nothing is known and ``current`` stays.
    """
    if not 0 <= enter_rank <= exit_rank:
        raise HeadSelectionError(
            f"enter_rank must be between 0 and exit_rank, but enter_rank is {enter_rank} and exit_rank {exit_rank}"
        )
    numbers = _checked(counts)
    held = _checked_current(current, len(numbers))
    if not numbers.any():
        return held
    ranked = _ranking(numbers)
    entering = set(top_k(numbers, enter_rank))
    staying = set(ranked[:exit_rank].tolist()).intersection(held)
    return tuple(sorted(entering | staying))


def with_share_hysteresis(
    counts: ArrayLike, current: Iterable[int], enter_share: float, exit_share: float
) -> tuple[int, ...]:
    """Head tokens by share that do not flap: in with the top@p set of ``enter_share``, out only past ``exit_share``'s.

    counts: integers (M,); current: the head tokens until now. While there are no items ``current`` stays.
    """
    _require_share("enter_share", enter_share)
    _require_share("exit_share", exit_share)
    if enter_share > exit_share:
        raise HeadSelectionError(f"enter_share must not exceed exit_share, but {enter_share} > {exit_share}")
    numbers = _checked(counts)
    held = _checked_current(current, len(numbers))
    if not numbers.any():
        return held
    entering = set(top_p(numbers, enter_share))
    staying = set(top_p(numbers, exit_share)).intersection(held)
    return tuple(sorted(entering | staying))


def _ranking(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Token numbers (M,), the most crowded first; the stable sort leaves ties in order of token number."""
    return np.argsort(-counts, kind="stable").astype(np.int64)


def _checked(counts: ArrayLike) -> NDArray[np.int64]:
    numbers: NDArray[Any] = np.asarray(counts)
    if numbers.ndim != 1 or numbers.size == 0 or not np.issubdtype(numbers.dtype, np.integer):
        raise HeadSelectionError(
            f"counts must be one row of integers, one per token, not {numbers.dtype} of shape {numbers.shape}"
        )
    if (numbers < 0).any():
        raise HeadSelectionError(
            f"counts must not be negative, but token {int(np.argmin(numbers))} has {numbers.min()}"
        )
    return numbers.astype(np.int64)


def _checked_current(current: Iterable[int], size: int) -> tuple[int, ...]:
    tokens = tuple(sorted({int(token) for token in current}))
    if tokens and not (tokens[0] >= 0 and tokens[-1] < size):
        raise HeadSelectionError(
            f"current head tokens must lie in [0, {size}), but run from {tokens[0]} to {tokens[-1]}"
        )
    return tokens


def _require_share(name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise HeadSelectionError(f"{name} must be a share between 0 and 1, not {share}")


def _as_tuple(tokens: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(token) for token in np.sort(tokens))
