"""What the demo prints: figures that stay on their lines, commands that can be copied, answers that can be told apart."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from demo.display import answer_lines, show_summary, told_apart
from demo.figures import Figures
from streamer.events.records import AnswerItem

LONG_COMMAND = "export SIDSTREAM_CONFIG=" + "/a/long/directory" * 8 + "/sidstream.toml"


def printed(figures: Figures, columns: int = 80) -> list[str]:
    output = io.StringIO()
    show_summary(Console(file=output, width=columns), figures, 12_345.6, [(LONG_COMMAND, "the demo's settings")])
    return output.getvalue().splitlines()


@pytest.mark.parametrize("slow", [False, True])
def test_summary_has_a_figure_a_line_at_80_columns_and_breaks_no_command(slow: bool) -> None:
    figures = Figures(
        products=1_234_567, examples=7_654_321, parameters=123_456_789, fit_seconds=1_234.5, train_seconds=9_876.0,
        trained_share=0.37, loss=12.34, burst_items=1_234_567, burst_seconds=3.21, fresh_p50_ms=12_345.0,
        fresh_p99_ms=67_890.0, fresh_items=1_234_567, queries=1_234_567, unanswered=1_234, invalid_items=1_234,
        query_p50_ms=12_345.0, query_p95_ms=67_890.0, layouts={1, 2, 3, 4, 5, 6},
        reshortened_after_seconds=None if slow else 1_234.0, reshortened_items=1_234_567, alerts_fired=123,
        alerts_resolved=123, deleted_in_answers=1_234,
    )  # fmt: skip
    lines = printed(figures)
    at = next(number for number, line in enumerate(lines) if line.startswith("╰"))
    rows = lines[1:at]
    assert all(row[1:11].strip() for row in rows), f"each line of the panel begins with its figure:\n{rows}"
    assert len(rows) == len(set(rows)) >= 14
    assert LONG_COMMAND in lines[at:]


def test_summary_says_so_when_the_training_had_no_time_for_all_steps_and_nothing_otherwise() -> None:
    figures = Figures(burst_items=1, burst_seconds=1.0)
    assert "time was up" not in "\n".join(printed(figures))
    figures.trained_share = 0.493
    assert any("49%" in line and "time was up" in line for line in printed(figures))


def test_variants_of_one_product_show_the_words_that_set_them_apart() -> None:
    title = "Voltaro Ulla 40 W portable bamboo Bluetooth speaker with stereo pairing, {}"
    first, *others = told_apart([title.format(colour) for colour in ("graphite", "cream", "navy blue")], 46)
    assert first.endswith("… · graphite")
    assert len(first) == 46
    assert others == ["… cream", "… navy blue"]


@pytest.mark.parametrize(
    ("titles", "shown"),
    [
        (["Glass kettle, red"], ["Glass kettle, red"]),
        (["Glass kettle, red", "Oak table, large"], ["Glass kettle, red", "Oak table, large"]),
        (["Glass kettle, red", "Glass kettle, red"], ["Glass kettle, red", ""]),
        (
            ["Quiet 1.7 L glass kettle, grey", "Quiet 0.8 L glass kettle"],
            ["Quiet 1.7 L glass kettle, grey", "… 0.8 L kettle"],
        ),
        (["20 cm steel pan", "24 cm steel pan"], ["20 cm steel pan", "… 24 cm"]),
    ],
    ids=["alone", "nothing in common", "same title", "a volume", "a size"],
)
def test_titles_are_told_apart_only_as_far_as_they_belong_together(titles: list[str], shown: list[str]) -> None:
    assert told_apart(titles, 40) == shown


def test_answers_keep_their_order_and_their_scores_and_brackets_are_no_markup() -> None:
    items = [
        AnswerItem(item_id="a", title="[red] mug, large", sid="<a_1><c_2>", score=-1.0),
        AnswerItem(item_id="b", title="[red] mug, small", sid="<a_1><c_2>", score=-1.0),
        AnswerItem(item_id="c", title="", sid="<a_1><c_3>", score=-2.5),
    ]
    lines = [line.plain.split() for line in answer_lines(items, 30)]
    assert lines == [
        ["<a_1><c_2>", "[red]", "mug,", "large", "-1.00"],
        ["the", "same", "SID", "…", "small", "-1.00"],
        ["<a_1><c_3>", "c", "-2.50"],
    ]
