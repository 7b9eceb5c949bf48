"""The mixture fitted at the end of a training, with a model that is known by heart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.dense.arrivals import unit
from models.dense.fit_mixture import Found, HeldOut, fit_mixture
from models.dense.space import id_hashes

ITEMS, GROUPS, DIMENSION = 240, 12, 16
RANDOM = np.random.default_rng(0)
EMBEDDINGS = unit(
    RANDOM.standard_normal((GROUPS, DIMENSION))[np.arange(ITEMS) % GROUPS]
    + 0.5 * RANDOM.standard_normal((ITEMS, DIMENSION))
)
IDS = [f"item {row}" for row in range(ITEMS)]
# Histories stay in one group, and what comes next too.
WALKS = [
    np.random.default_rng(number).choice(np.arange(number % GROUPS, ITEMS, GROUPS), size=5, replace=False).tolist()
    for number in range(400)
]


def knows_half_of_them(examples: Sequence[HeldOut]) -> list[Found]:
    """Ten items at random, and every second time the target first."""
    found: list[Found] = []
    for number, example in enumerate(examples):
        rows = np.unique(np.random.default_rng(number).choice(ITEMS, size=10))
        rows = rows[rows != example.target]
        if number % 2:
            rows = np.concatenate(([example.target], rows))
        found.append((rows, np.log(np.r_[0.5, np.full(len(rows) - 1, 0.02)])))
    return found


def test_history_weights_are_chosen_and_the_space_is_of_all_items() -> None:
    held_out = [HeldOut(walk[-1], history=tuple(walk[:-1])) for walk in WALKS[:150]]
    done: list[tuple[int, int]] = []
    fitted = fit_mixture(
        EMBEDDINGS,
        IDS,
        [walk[:-1] for walk in WALKS],
        held_out,
        knows_half_of_them,
        progress=lambda number, whole: done.append((number, whole)),
    )
    assert set(fitted.chosen) == {"history"}
    chosen = fitted.chosen["history"]
    assert chosen.cases == 150
    assert 0 < chosen.new_cases < 50
    assert chosen.mixture.all > max(chosen.model_alone.all, chosen.dense_alone.all)
    assert done[-1] == (150, 150)
    assert not fitted.space.is_new(id_hashes(item.encode() for item in IDS)).any()
    [words] = fitted.in_words()
    assert "queries with a history alone" in words
    assert f"{chosen.new_cases} of them for items that play new ones" in words
    assert fitted.figures["history"]["mixture"]["all"] == chosen.mixture.all


def test_texts_decide_only_where_there_is_a_tower_and_have_weights_of_their_own() -> None:
    texts = [HeldOut(row, text=f"{row}") for row in range(100)]
    histories = [HeldOut(walk[-1], history=tuple(walk[:-1])) for walk in WALKS[:50]]

    def embed(given: Sequence[str]) -> np.ndarray:
        return EMBEDDINGS[[int(text) for text in given]]

    both = fit_mixture(EMBEDDINGS, IDS, WALKS, [*texts, *histories], knows_half_of_them, embed_texts=embed)
    assert {asked: chosen.cases for asked, chosen in both.chosen.items()} == {"embedding": 100, "history": 50}
    assert both.weights["embedding"].sharpness > both.weights["history"].sharpness
    without = fit_mixture(EMBEDDINGS, IDS, WALKS, [*texts, *histories], knows_half_of_them)
    assert set(without.chosen) == {"history"}


@pytest.mark.parametrize("histories", [WALKS, []], ids=["histories", "none"])
def test_nothing_held_out_leaves_the_weights_unmeasured_and_gives_the_space(histories: list[list[int]]) -> None:
    fitted = fit_mixture(EMBEDDINGS, IDS, histories, [], knows_half_of_them)
    assert (fitted.weights, fitted.figures, fitted.in_words()) == ({}, {}, [])
    assert fitted.space.width == DIMENSION + (64 if histories else 0)
