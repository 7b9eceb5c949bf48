"""Alignment tasks from a catalogue: one a task and item that has the text, none in silence where no item has."""

from __future__ import annotations

import pytest

from models.catalogue import CatalogueItem
from models.errors import SidstreamError
from models.examples.alignment import AlignmentExample, AlignmentSettings, alignment_examples, attributes_text

ITEMS = (
    CatalogueItem(id="a", title="Alta kettle", brand="Alta", attributes={"colours": ["red", "blue"], "cordless": True}),
    CatalogueItem(id="b", title=" ", type="mill"),
)


def test_each_task_has_an_example_of_each_item_with_text_for_it() -> None:
    assert alignment_examples(ITEMS, ("sid-to-title", "attributes-to-sid")) == [
        AlignmentExample("sid-to-title", "a", "Alta kettle"),
        AlignmentExample("attributes-to-sid", "a", "brand: Alta, colours: red and blue, cordless: yes"),
        AlignmentExample("attributes-to-sid", "b", "type: mill"),
    ]


@pytest.mark.parametrize(
    ("task", "lacking"),
    [("title-to-sid", "a title"), ("sid-to-title", "a title"), ("attributes-to-sid", "brand, type")],
)
def test_task_that_no_item_has_text_for_is_refused(task: str, lacking: str) -> None:
    with pytest.raises(SidstreamError, match=f"no item of the catalogue has {lacking}.*{task}"):
        alignment_examples((CatalogueItem(id="a", title=""),), (task,))  # type: ignore[arg-type]
    assert attributes_text(CatalogueItem(id="a", title="a title alone")) == ""


def test_share_is_of_all_that_a_pass_has() -> None:
    assert AlignmentSettings(("title-to-sid",), 0.2).targets(400) == 100
    assert AlignmentSettings(("title-to-sid",), 0.01).targets(3) == 1


@pytest.mark.parametrize(
    ("tasks", "share", "message"),
    [
        ((), 0.2, "are none: choose of"),
        (("title-to-sid",) * 2, 0.2, "each once"),
        (("sid",), 0.2, "choose of title-to-sid"),
        (("title-to-sid",), 0.0, "above 0 and below 1, not 0"),
        (("title-to-sid",), 1.0, "above 0 and below 1, not 1"),
    ],
)
def test_tasks_and_shares_that_make_no_sense_are_refused(tasks: tuple[str, ...], share: float, message: str) -> None:
    with pytest.raises(SidstreamError, match=message):
        AlignmentSettings(tasks, share)  # type: ignore[arg-type]
