"""What runs on a card mixes no devices and waits for no number: worked out on a card that is not there."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.sids.vocabulary import SidVocabulary  # noqa: E402
from retriever.device_search.device_topology import ROWS_CHANGED, DeviceTopology  # noqa: E402
from retriever.device_search.search import Plan, Shape  # noqa: E402
from retriever.search.forward_passes import SharedPromptPasses  # noqa: E402
from retriever.search.search_parts import Normaliser, log_probabilities_there  # noqa: E402
from support.fake_card import CARD, fake_card, moved  # noqa: E402
from support.tiny_families import ATTENTIVE, SCALING, VOCABULARY, tiny_model  # noqa: E402

SIZE, QUERIES, LENGTH, BEAMS = 12, 2, 64, 5


def vocabulary() -> SidVocabulary:
    made = SidVocabulary(text_size=VOCABULARY - 3 * SIZE - 8, user_buckets=0, layers=3, size=SIZE)
    assert made.total <= VOCABULARY
    return made


# Those of many experts ask the driver how it multiplies groups.
@pytest.mark.parametrize("family", sorted((ATTENTIVE | SCALING).keys() - {"qwen3_moe", "gpt_oss"}))
def test_whole_search_stays_on_the_card(family: str) -> None:
    model = tiny_model(family)
    with fake_card():
        moved(model)
        plan = Plan(model, vocabulary(), DeviceTopology(SIZE, CARD), Shape(QUERIES, LENGTH, BEAMS, "vocabulary", True))
        found = plan.run(
            torch.empty((QUERIES, LENGTH), dtype=torch.int64, device=CARD),
            torch.empty((QUERIES, LENGTH), dtype=torch.bool, device=CARD),
            torch.empty((QUERIES, SIZE, 2, 2), dtype=torch.uint8, device=CARD),
            torch.empty(QUERIES, dtype=torch.int64, device=CARD),
            torch.empty((QUERIES, ROWS_CHANGED), dtype=torch.int64, device=CARD),
            torch.empty((QUERIES, ROWS_CHANGED, 2), dtype=torch.uint8, device=CARD),
        )
        assert {tensor.device for tensor in found} == {CARD}
        assert [tuple(tensor.shape) for tensor in found] == [(QUERIES, BEAMS)] * 6 + [(QUERIES, BEAMS, SIZE)]


@pytest.mark.parametrize("normaliser", ["vocabulary", "layers"])
def test_passes_of_the_hosts_search_mix_no_devices(normaliser: Normaliser) -> None:
    model, own = tiny_model("llama"), vocabulary()
    tokens, parents = (np.zeros((QUERIES, 3), np.int64) for _ in range(2))
    with fake_card():
        passes = SharedPromptPasses(moved(model))
        states = [passes.start([[1, 2, 3], [4, 5]])]
        mark = passes.mark()
        states.append(passes.advance(tokens, parents))
        passes.rewind(mark, np.array([1]))
        states.append(passes.advance(tokens[:1], parents[:1]))
        for state, read in zip(states, (None, tokens, tokens[:1]), strict=True):
            after = log_probabilities_there(passes, own, state, 1, 3, normaliser, read)
            assert after.device == CARD
