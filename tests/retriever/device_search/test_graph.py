"""The search as a CUDA graph: needs a card (SIDSTREAM_TESTS_ON_CARD=1); ``test_search_card.py`` does without."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.sids.layout import Layout  # noqa: E402
from retriever.device_search import graph as graphs  # noqa: E402
from retriever.device_search.graph import Graph  # noqa: E402
from retriever.device_search.search import DeviceSearch  # noqa: E402
from retriever.search.beam_search import beam_search  # noqa: E402
from store.topology.layout_trie import LayoutTrie  # noqa: E402
from store.topology.topology import topology_of  # noqa: E402
from support.decoding_cases import CODEBOOK, assert_same, llama, prompts_of, random_codes, vocabulary_of  # noqa: E402


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no card in sight: SIDSTREAM_TESTS_ON_CARD=1 on a machine with one"
)
def test_replayed_graphs_answer_as_the_host_on_the_processor() -> None:
    vocabulary, size = vocabulary_of(3, 12), 12
    model, layout = llama(vocabulary), Layout(1, CODEBOOK, 3, size, (0, 2))
    on_card = DeviceSearch(copy.deepcopy(model).to("cuda:0"), vocabulary)
    for seed in range(3):
        trie = LayoutTrie(topology_of([random_codes(200, 3, size, seed)], 3, size), layout)
        prompts = prompts_of(vocabulary, (3, 20, 9), seed)
        expected = beam_search(model, vocabulary, prompts, trie, beams=7)
        for ours, theirs in zip(on_card.search(prompts, trie, beams=7), expected, strict=True):
            assert_same(ours, [(sid.tokens, sid.score) for sid in theirs])
    assert on_card.works
    assert on_card.graphs == (1, 1)


def test_steps_that_cannot_be_captured_run_one_by_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a card nothing can be captured: what is left is the fall back."""

    class Nothing:
        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    def refused(_: object, **_settings: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    cuda = graphs.torch.cuda
    monkeypatch.setattr(cuda, "Stream", Nothing)
    monkeypatch.setattr(cuda, "stream", lambda _: Nothing())
    monkeypatch.setattr(cuda, "current_stream", Nothing)
    monkeypatch.setattr(cuda, "CUDAGraph", Nothing)
    monkeypatch.setattr(cuda, "graph", refused)
    graph = Graph(lambda given: (given + 1,), "a shape")
    for value in (1.0, 5.0):
        (found,) = graph.run(torch.tensor(value))
        assert float(found) == value + 1
    assert not graph.is_captured
    assert capsys.readouterr().out.count("graph_not_captured") == 1
