"""The dense part of a bundle, fitted at the end of a training: λ and α chosen on held-out examples, then the space of all items.

What must hold: the weights are chosen in a space that has not counted the items that play the arrivals, on examples that the
model was not trained on; the space that is kept is of all items. What a query brings decides which weights are its: those of
queries with an embedding (their own, or their text's), or those of a history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from models.dense.choosing import Chosen, Recalls, ValidationCase, choose_weights
from models.dense.mixture import MixtureWeights
from models.dense.pairs import NOTHING, RowsTogether, log_shares
from models.dense.part import Asked
from models.dense.space import DenseSpace, fit_space, id_hashes
from models.dense.vectors import quantise

MOST_CASES: Final = 2_000  # of a kind, with an old target and with a new one: recall@10 is then known to within ± .02
PLAYING_ARRIVALS: Final = 0.1  # of the items


@dataclass(frozen=True)
class HeldOut:
    """An example that the model was not trained on: ``text``, ``history`` (rows, oldest first), ``target`` (row); ``embedding``:
    bytes of the float32 (D,) of the query, if it brings one.
    """

    target: int
    text: str = ""
    history: tuple[int, ...] = ()
    embedding: bytes | None = None


Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
AskModel = Callable[[Sequence[HeldOut]], Sequence[Found]]
"""The search's answers: rows and their log-probabilities, best first, as the retriever finds them."""
EmbedTexts = Callable[[Sequence[str]], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class FittedMixture:
    """``space`` of all items; ``chosen`` by what a query brings, for the kinds that the examples have."""

    space: DenseSpace
    chosen: Mapping[Asked, Chosen]

    @property
    def weights(self) -> dict[Asked, MixtureWeights]:
        """By what a query brings."""
        return {asked: chosen.weights for asked, chosen in self.chosen.items()}

    @property
    def figures(self) -> dict[str, Any]:
        """For the manifest, for people."""
        return {asked: msgspec.to_builtins(chosen) for asked, chosen in self.chosen.items()}

    def in_words(self) -> list[str]:
        """A sentence a kind of query."""
        return [_words(asked, chosen) for asked, chosen in self.chosen.items()]


def fit_mixture(
    embeddings: npt.NDArray[np.floating],
    ids: Sequence[str],
    histories: Sequence[Sequence[int]],
    held_out: Sequence[HeldOut],
    ask_model: AskModel,
    *,
    embed_texts: EmbedTexts | None = None,
    max_history: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FittedMixture:
    """``embeddings`` (N, D) and ``ids`` of the items that the model was trained on; ``histories``: rows, those that it was
    trained on; ``embed_texts``: the query tower, None without one: texts then decide nothing; ``max_history``: newest items of a
    history that the retriever looks at, None for all.
    """
    kept = quantise(embeddings).unit()
    hashes = id_hashes(item.encode() for item in ids)
    random = np.random.default_rng(seed)
    playing = random.random(len(ids)) < PLAYING_ARRIVALS
    chosen: dict[Asked, Chosen] = {}
    groups = _groups(held_out, has_texts=embed_texts is not None, max_history=max_history)
    if groups:
        space, _ = fit_space(kept, hashes, histories, known=~playing, seed=seed, keep_pairs=True)
        vectors = space.items(kept, hashes)
        together = space.rows_together(hashes)
        some = {asked: _some(examples, playing, random) for asked, examples in groups.items()}
        done, whole = 0, sum(map(len, some.values()))
        for asked, examples in some.items():
            cases = _cases(asked, examples, ask_model(examples), space, vectors, together, embed_texts, max_history)
            before = done

            def report(number: int, _: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + number, whole)

            share_of_new = float(np.mean([playing[example.target] for example in groups[asked]]))
            chosen[asked] = choose_weights(cases, vectors, playing, share_of_new_targets=share_of_new, progress=report)
            done += len(examples)
    space, _ = fit_space(kept, hashes, histories, seed=seed, keep_pairs=True)
    return FittedMixture(space, chosen)


def _groups(held_out: Sequence[HeldOut], *, has_texts: bool, max_history: int | None) -> dict[Asked, list[HeldOut]]:
    """By what the retriever would take their vector from; those that have none of it are left out."""
    groups: dict[Asked, list[HeldOut]] = {}
    for example in held_out:
        embedded = example.embedding is not None or (has_texts and bool(example.text.strip()))
        asked: Asked = "embedding" if embedded else "history"
        if asked == "embedding" or _newest(example.history, max_history):
            groups.setdefault(asked, []).append(example)
    return groups


def _some(examples: Sequence[HeldOut], playing: npt.NDArray[np.bool_], random: np.random.Generator) -> list[HeldOut]:
    """At most ``MOST_CASES`` examples with an old target, and as many with one that plays a new item, in their order."""
    is_new = playing[[example.target for example in examples]]
    rows = np.concatenate([random.permutation(np.flatnonzero(group))[:MOST_CASES] for group in (~is_new, is_new)])
    return [examples[row] for row in np.sort(rows).tolist()]


def _cases(
    asked: Asked,
    examples: Sequence[HeldOut],
    found: Sequence[Found],
    space: DenseSpace,
    vectors: npt.NDArray[np.float32],
    together: RowsTogether | None,
    embed_texts: EmbedTexts | None,
    max_history: int | None,
) -> list[ValidationCase]:
    read = [_newest(example.history, max_history) for example in examples]
    if asked == "embedding":
        texts = [example.text for example in examples if example.embedding is None]
        by_text = iter(embed_texts(texts) if embed_texts is not None and texts else ())
        queries = [
            space.query(next(by_text) if example.embedding is None else np.frombuffer(example.embedding, "<f4"))
            for example in examples
        ]
    else:
        queries = [space.taste(vectors[list(history)]) for history in read]
    return [
        # A target that the buyer has had before is asked for again: it must not be excluded.
        validation_case(
            query,
            example.target,
            found_rows,
            history,
            excluded=tuple(set(example.history) - {example.target}),
            together=together if asked == "history" else None,
        )
        for query, example, history, found_rows in zip(queries, examples, read, found, strict=True)
    ]


def _newest(history: tuple[int, ...], max_history: int | None) -> tuple[int, ...]:
    return history if max_history is None else history[max(0, len(history) - max_history) :]


def validation_case(
    query: npt.NDArray[np.float32],
    target: int,
    found: Found,
    history: Sequence[int],
    *,
    excluded: tuple[int, ...],
    together: RowsTogether | None,
) -> ValidationCase:
    """A case of one target. ``together``: what was taken together, None for a query that its embedding speaks for."""
    shares = NOTHING
    if together is not None:
        rows, scores = together.neighbours(history)
        shares = log_shares(rows, scores, ~np.isin(rows, excluded))
    return ValidationCase(query, target, *found, excluded, shares)


def _words(asked: Asked, chosen: Chosen) -> str:
    what = "queries with a text or an embedding" if asked == "embedding" else "queries with a history alone"
    weights = chosen.weights

    def recalls(found: Recalls) -> str:
        parts = [f"{found.all:.3f}"]
        if found.new is not None and found.old is not None:
            parts.append(f"(old items {found.old:.3f}, new ones {found.new:.3f})")
        return " ".join(parts)

    return (
        f"{what}: λ {weights.sharpness:.1f}, {f'γ {weights.together:.1f}, ' if weights.together else ''}α {weights.share:.2f}, "
        f"β {weights.boost_of_new:.1f}, chosen on {chosen.cases:,} "
        f"held-out examples, {chosen.new_cases:,} of them for items that play new ones. recall@10 there: mixture "
        f"{recalls(chosen.mixture)}, model alone {recalls(chosen.model_alone)}, dense leg alone "
        f"{recalls(chosen.dense_alone)}"
    )
