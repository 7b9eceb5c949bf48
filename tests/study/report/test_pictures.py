"""The figures: each is drawn from small records, has the size of a picture in a page, and is the same for the same data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from models.codebooks.codebook import Codebook
from study.measures.shape import Shape, measure_shape
from study.report import pictures

LARGEST_BYTES = 250_000
CURVE = [(float(step), 3.0 / step) for step in range(1, 40)]


@pytest.fixture(scope="module")
def shapes() -> dict[str, Shape]:
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((500, 6)).astype(np.float32)
    return {
        f"k-means {layers} × {size}": measure_shape(
            Codebook(random.standard_normal((layers, size, 6)).astype(np.float32)), embeddings
        )
        for layers, size in ((3, 5), (4, 128))
    }


@pytest.mark.parametrize(
    "draw",
    [
        lambda shapes, path: pictures.distributions(shapes, path),
        lambda shapes, path: pictures.metric_bars(shapes, path),
        lambda shapes, path: pictures.residuals(shapes, path),
        lambda shapes, path: pictures.widths(next(iter(shapes.values())), "three layers, M = 5", path),
        lambda shapes, path: pictures.widths(list(shapes.values())[-1], "four layers", path),
        lambda shapes, path: pictures.lines({f"run {n}": CURVE for n in range(12)}, path, x="epochs", y="loss"),
        lambda shapes, path: pictures.lines({"base": [(1.0, 0.0), (50.0, 0.4)]}, path, x="k", y="share", percent=True),
        lambda shapes, path: pictures.recall_bars(
            {"base": {"SID": (0.2, 0.01), "item": (0.1, 0.0)}, "top@10%": {"SID": (0.3, 0.0)}}, path, y="recall@10"
        ),
    ],
    ids=["distributions", "metrics", "residuals", "flows 3", "flows 4", "curves", "invalid", "recall"],
)
def test_figure_is_small_and_the_same_for_the_same_data(
    draw: Callable[[dict[str, Shape], Path], None], shapes: dict[str, Shape], tmp_path: Path
) -> None:
    one, again = tmp_path / "new" / "one.png", tmp_path / "again.png"
    draw(shapes, one)
    draw(shapes, again)
    content = one.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert 2_000 < len(content) < LARGEST_BYTES
    assert content == again.read_bytes()


def test_one_shape_alone_has_a_figure(shapes: dict[str, Shape], tmp_path: Path) -> None:
    pictures.distributions(dict(list(shapes.items())[:1]), tmp_path / "one.png")
    assert (tmp_path / "one.png").is_file()
