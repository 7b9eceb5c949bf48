"""Examples of one user whose histories continue one another become one history, so that their work is shared.

What must hold: each example is in exactly one place, with the query, the user and the newest ``max_history`` items of its own
history; only examples with a history and without an embedding are joined; the same examples give the same histories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from models.examples.records import TrainingData, TrainingExample, TrainingHistory

_MOST_PASSES: Final = 8  # over the examples that ask again for what another one of their history asked for


@dataclass(slots=True)
class _Chain:
    """A history that grows; ``examples``: those that made it."""

    items: list[str]
    queries: list[str | None]
    examples: list[TrainingExample] = field(default_factory=list)

    def continues(self, history: Sequence[str], max_history: int) -> Sequence[str] | None:
        """Items that ``history`` has beyond this chain's, None if it is no continuation.

        A history of ``max_history`` items may have lost its oldest ones: it goes on wherever at least half of it does.
        """
        length = len(self.items)
        if len(history) >= length and list(history[:length]) == self.items:
            return history[length:]
        if len(history) >= max_history:
            for overlap in range(min(length, len(history)), max(1, len(history) // 2) - 1, -1):
                if self.items[-overlap:] == list(history[:overlap]):
                    return history[overlap:]
        return None

    def looks_back(self, history: Sequence[str]) -> bool:
        """Whether ``history`` ends at or before the last item of this chain."""
        length = len(self.items)
        window = list(history)
        return any(self.items[end - len(window) : end] == window for end in range(length, len(window) - 1, -1))

    def add(self, example: TrainingExample, between: Sequence[str]) -> None:
        self.items += [*between, example.item]
        self.queries += [*(None for _ in between), example.query]
        self.examples.append(example)


def folded(data: TrainingData, max_history: int) -> TrainingData:
    """Examples joined to histories where they continue one another; those that are alone stay examples.

    Where a model reads less than two items of a history there is no work to share: all become examples.
    """
    if max_history < 2:
        return apart(data, max_history)
    histories = list(data.histories)
    alone = [example for example in data.examples if not _joins(example)]
    rest: Sequence[TrainingExample] = [example for example in data.examples if _joins(example)]
    for _ in range(_MOST_PASSES):
        if not rest:
            break
        chains, rest = _chains(rest, max_history)
        for chain in chains:
            if len(chain.examples) > 1:
                histories.append(TrainingHistory(tuple(chain.items), chain.examples[0].user, tuple(chain.queries)))
            else:
                alone += chain.examples
    return TrainingData(tuple(histories), (*alone, *rest))


def apart(data: TrainingData, max_history: int) -> TrainingData:
    """One example a target, with the newest ``max_history`` items before it: for models that can share no work."""
    examples = (example for history in data.histories for example in examples_of(history, max_history))
    return TrainingData(examples=(*data.examples, *examples))


def examples_of(history: TrainingHistory, max_history: int) -> Iterable[TrainingExample]:
    """One example for each item of a history that is to be generated from those before it."""
    for at, query in enumerate(history.asked()):
        if at and query is not None:
            before = history.items[max(0, at - max_history) : at]
            yield TrainingExample(query=query, user=history.user, history=before, item=history.items[at])


def _joins(example: TrainingExample) -> bool:
    return bool(example.history) and example.embedding is None


def _chains(examples: Iterable[TrainingExample], max_history: int) -> tuple[list[_Chain], list[TrainingExample]]:
    """Chains of the examples in their order, and the examples that ask for a place that a chain has already."""
    open_chains: dict[str | None, _Chain] = {}
    chains: list[_Chain] = []
    again: list[TrainingExample] = []
    for example in examples:
        chain = open_chains.get(example.user)
        if chain is not None:
            between = chain.continues(example.history, max_history)
            if between is not None:
                chain.add(example, between)
                continue
            if chain.looks_back(example.history):
                again.append(example)
                continue
        chain = open_chains[example.user] = _Chain(list(example.history), [None] * len(example.history))
        chain.add(example, ())
        chains.append(chain)
    return chains, again
