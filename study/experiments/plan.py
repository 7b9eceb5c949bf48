"""Everything that the study computes, in the order in which it matters: which runs, what is measured of each, and which
row of which table each of them is.

What must hold: the report reads results by the same choices that the scheduler runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from models.language.instruction import AlignmentTask
from study.data.choices import CodebookChoice
from study.data.datasets import PLANTED, DatasetName
from study.experiments.configuration import LayoutChoice, RunChoice
from study.experiments.run import (
    ARRIVALS,
    ARRIVALS_RULE,
    FIRST_GIVEN,
    FREE_BEAMS,
    LEGS,
    OWN,
    PER_ITEM,
    TOGETHER,
    Measurement,
)

FULL: Final = LayoutChoice()
WITHOUT: Final = LayoutChoice(heads="all")
TOP_K: Final = tuple(LayoutChoice(heads="top-k", share=share) for share in (0.05, 0.1, 0.2, 0.3))
FEW_TOP_K: Final = tuple(LayoutChoice(heads="top-k", share=share) for share in (0.005, 0.01, 0.02))
TOP_P: Final = LayoutChoice(heads="top-p", p=0.85)
BEST_TOP_K: Final = TOP_K[1]
SEEDS: Final = (0, 1, 2)
RANDOM_SHARES: Final = (0.1, 0.3)
# M of the codebook whose full SIDs come nearest to the number that 3 × 256 has left, by what is left out (found by bisection; the
# table of SIDs under table 2 shows both).
FITTED_DIRECTLY: Final[Mapping[DatasetName, Mapping[LayoutChoice, int]]] = {
    "amazon_games": {TOP_K[1]: 116, WITHOUT: 46},
    "chorus_icecat": {TOP_K[1]: 148, WITHOUT: 67},
}
LAYER2_DROPOUT: Final = 0.3
TITLE_TO_SID: Final[tuple[AlignmentTask, ...]] = ("title-to-sid",)
SID_TO_TITLE: Final[tuple[AlignmentTask, ...]] = ("sid-to-title",)
ATTRIBUTES_TO_SID: Final[tuple[AlignmentTask, ...]] = ("attributes-to-sid",)
HISTORY_TEXT: Final = 6  # tokens of a title
NEIGHBOURS: Final = 10  # as docs/training.md has it
USER_BUCKETS: Final = 2_048  # 25 users each on amazon_games
CODEBOOKS: Final = 3
ARRIVING: Final = "items that arrive"


@dataclass(frozen=True)
class Row:
    """One row of a table: a run and what is measured of it. ``section``: 1, 2, 3 or 5 of the report."""

    section: str
    label: str
    choice: RunChoice
    measurements: tuple[Measurement, ...]

    @property
    def title(self) -> str:
        """Its label, with the seed and the arrivals where they matter."""
        seed = f", seed {self.choice.seed}" if self.choice.seed else ""
        return f"{self.label}{seed}{', arrivals' if self.choice.arrivals else ''}"


@dataclass(frozen=True)
class Scale:
    """How large the models of a set are and how long they are trained."""

    base: RunChoice
    seeds: tuple[int, ...]
    architectures: tuple[str, ...]


def scale(dataset: DatasetName) -> Scale:
    """What a set's models have in common."""
    codebook = CodebookChoice(dataset=dataset)
    match dataset:
        case "amazon_games":
            base = RunChoice(
                codebook=codebook, hidden_size=64, model_layers=3, epochs=6, learning_rate=3e-3, cases=4_000
            )
        case "chorus_icecat":
            base = RunChoice(
                codebook=codebook, hidden_size=64, model_layers=2, epochs=8, batch_size=128, learning_rate=3e-3
            )
        case "planted":
            base = RunChoice(
                codebook=msgspec.structs.replace(codebook, size=64),
                hidden_size=64,
                model_layers=2,
                epochs=6,
                cases=3_000,
            )
        case "tiny":
            planted = msgspec.structs.replace(codebook, method="planted", size=32)
            base = RunChoice(codebook=planted, hidden_size=48, model_layers=2, epochs=8, learning_rate=5e-3, cases=400)
    few = dataset in PLANTED
    return Scale(
        base=base, seeds=SEEDS[:1] if few else SEEDS, architectures=("llama",) if few else ("llama", "qwen", "baichuan")
    )


def rows(dataset: DatasetName) -> Iterator[Row]:
    """All rows of a set, the most important first."""
    here = scale(dataset)
    base = here.base

    def changed(**changes: object) -> RunChoice:
        return msgspec.structs.replace(base, **changes)

    own = (OWN, PER_ITEM, FREE_BEAMS)
    yield Row("table 2", "base", base, (*own, FIRST_GIVEN))
    yield Row("table 2", BEST_TOP_K.label, changed(layout=BEST_TOP_K), own)
    yield from layout_changes(dataset)
    yield Row("table 2", WITHOUT.label, changed(layout=WITHOUT), own)
    for layout in TOP_K:
        if layout != BEST_TOP_K:
            yield Row("table 2", layout.label, changed(layout=layout), own)
    yield Row("table 2", "MiLe loss", changed(loss="mile"), own)
    yield Row("table 2", "focal loss", changed(loss="focal"), own)
    yield Row("table 2", TOP_P.label, changed(layout=TOP_P), own)
    yield from controls(dataset, 0)
    yield from levers(dataset)
    for architecture in here.architectures:
        label = architecture
        if architecture != "llama":
            yield Row("table 1", label, changed(architecture=architecture), (OWN, FIRST_GIVEN))
        yield Row(
            "table 1",
            f"{label}, exchanged",
            changed(architecture=architecture, exchanged=True),
            (OWN, FIRST_GIVEN),
        )
    yield from new_items(dataset)
    yield from further_seeds(dataset)
    yield from parameters(dataset)


def controls(dataset: DatasetName, seed: int) -> Iterator[Row]:
    """What the methods of table 2 have to be better than: as many layer-2 tokens left out at random, and a codebook that was
    fitted to as few SIDs in the first place; and how few left-out tokens it takes.
    """
    if dataset not in FITTED_DIRECTLY:
        return
    base = msgspec.structs.replace(scale(dataset).base, seed=seed)
    for share in RANDOM_SHARES:
        layout = LayoutChoice(heads="random", share=share, draw=seed)
        yield Row("table 2", layout.label, msgspec.structs.replace(base, layout=layout), (OWN, PER_ITEM))
    for left_out, size in FITTED_DIRECTLY[dataset].items():
        codebook = msgspec.structs.replace(base.codebook, size=size)
        label = f"3 × {size}, as many SIDs as {left_out.label}"
        yield Row("table 2", label, msgspec.structs.replace(base, codebook=codebook), (OWN, PER_ITEM))
    for layout in FEW_TOP_K:
        yield Row("table 2", layout.label, msgspec.structs.replace(base, layout=layout), (OWN, PER_ITEM))


def further_seeds(dataset: DatasetName) -> Iterator[Row]:
    """Every row of table 2 from other seeds."""
    here = scale(dataset)
    for seed in here.seeds[1:]:
        base = msgspec.structs.replace(here.base, seed=seed)
        yield Row("table 2", "base", base, (OWN, PER_ITEM))
        for layout in (BEST_TOP_K, WITHOUT, *(layout for layout in TOP_K if layout != BEST_TOP_K), TOP_P):
            yield Row("table 2", layout.label, msgspec.structs.replace(base, layout=layout), (OWN, PER_ITEM))
        yield from controls(dataset, seed)
        for loss, label in (("mile", "MiLe loss"), ("focal", "focal loss")):
            yield Row("table 2", label, msgspec.structs.replace(base, loss=loss), (OWN, PER_ITEM))


def parameters(dataset: DatasetName) -> Iterator[Row]:
    """Methods over codebooks of other depths and sizes (draft, § 5.5)."""
    if dataset not in FITTED_DIRECTLY:
        return
    base = scale(dataset).base
    for layers, size in ((3, 64), (3, 1024), (4, 256)):
        codebook = msgspec.structs.replace(base.codebook, layers=layers, size=size)
        for layout in (FULL, BEST_TOP_K, WITHOUT):
            choice = msgspec.structs.replace(base, codebook=codebook, layout=layout)
            yield Row("parameters", f"{layers} × {size}, {layout.label}", choice, (OWN, PER_ITEM))


def levers(dataset: DatasetName) -> Iterator[Row]:
    """What may bring items closer to the references (section 6): one thing changed at a time, then all that helped. Each set has
    what it has: chorus_icecat queries alone, amazon_games users and histories, and queries where they are made of titles.
    """
    base = scale(dataset).base

    def changed(
        label: str, codebook: Mapping[str, object] | None = None, *, legs: bool = False, **changes: object
    ) -> Row:
        fit = msgspec.structs.replace(base.codebook, **(codebook or {}))
        choice = msgspec.structs.replace(base, codebook=fit, **changes)
        measured = (OWN, LEGS) if legs else (OWN,)
        if choice.codebooks > 1:
            measured = (OWN, TOGETHER)
        return Row("levers", label, choice, measured)

    large: dict[str, Any] = {"hidden_size": 96, "epochs": 8}
    several: dict[str, Any] = {"codebooks": CODEBOOKS, "epochs": base.epochs / CODEBOOKS}
    if dataset == "amazon_games":
        together = {"co_occurrence": 1.0}
        yield changed("co-occurrence in the embedding", together)
        yield changed("… and 1,024 codewords a layer", {**together, "size": 1024})
        yield changed("… and a larger model, 8 epochs", {**together, "size": 1024}, legs=True, **large)
        larger: dict[str, Any] = {"hidden_size": 128, "model_layers": 4, "epochs": 8}
        yield changed("… and a model larger still, 8 epochs", {**together, "size": 1024}, **larger)
        yield changed("title → SID beside it", together, align=TITLE_TO_SID)
        yield changed("SID → title beside it", together, align=SID_TO_TITLE)
        yield changed("both beside it", together, align=TITLE_TO_SID + SID_TO_TITLE)
        yield changed("titles in the history", together, history_text=HISTORY_TEXT)
        yield changed("an instruction", together, instruction=True)
        yield changed("users beside the histories", together, user_buckets=USER_BUCKETS)
        yield changed("queries, users and histories together", together, user_buckets=USER_BUCKETS, made_queries=True)
        towers = {"embeddings": "towers"}
        fine = {**towers, "size": 1024}
        longer: dict[str, Any] = {**large, "epochs": 16, "dropout": 0.2}
        yield changed("embeddings of our own towers", towers, legs=True)
        yield changed("… and co-occurrence beside them", {**together, **towers})
        yield changed("our own towers, 1,024 codewords a layer", fine)
        yield changed("… and the larger model, 8 epochs", fine, legs=True, **large)
        yield changed("… and dropout .2, 16 epochs", fine, legs=True, **longer)
        # What validation chose (the items' vectors find .108 of the valid part, .102 without the queries): from three seeds.
        chosen = {"embeddings": "towers and queries", "size": 1024}
        for seed in SEEDS:
            label = "towers of histories and queries, 1,024 codewords, the larger model, 8 epochs"
            yield changed(label, chosen, legs=True, seed=seed, **large)
        yield changed("neighbours of taken items as targets too", together, neighbours=NEIGHBOURS)
        yield changed("three codebooks a history, as many steps", together, **several)
        yield changed("the larger model with dropout .2, 16 epochs", {**together, "size": 1024}, legs=True, **longer)
    elif dataset == "chorus_icecat":
        yield changed("codes of the query in the prompt", query_codes=True)
        yield changed("… and 1,024 codewords a layer", {"size": 1024}, query_codes=True)
        yield changed("… and without layer 2", {"size": 1024}, query_codes=True, layout=WITHOUT)
        largest: dict[str, Any] = {"hidden_size": 128, "epochs": 12}
        yield changed("… and a larger model, 12 epochs", {"size": 1024}, query_codes=True, layout=WITHOUT, **largest)
        yield changed("the same with layer 2", {"size": 1024}, query_codes=True, **largest)
        yield changed("title → SID beside the queries", align=TITLE_TO_SID)
        yield changed("SID → title beside the queries", align=SID_TO_TITLE)
        yield changed("attributes → SID beside the queries", align=ATTRIBUTES_TO_SID)
        yield changed("all three beside the queries", align=TITLE_TO_SID + SID_TO_TITLE + ATTRIBUTES_TO_SID)
        yield changed("an instruction", instruction=True)
        yield changed("embeddings of our own towers", {"embeddings": "towers"})
        yield changed("… and codes of the query in the prompt", {"embeddings": "towers"}, query_codes=True)
        yield changed("a query leads to one of its ten nearest items", neighbours=NEIGHBOURS)
        yield changed("… with codes of the query in the prompt", neighbours=NEIGHBOURS, query_codes=True)
        yield changed("three codebooks a query, as many steps", **several)


def layout_changes(dataset: DatasetName) -> Iterator[Row]:
    """A layout change under a frozen model (section 5); a tenth of the items arrived after training."""
    base = msgspec.structs.replace(scale(dataset).base, arrivals=True)
    changes = (Measurement("naive", BEST_TOP_K), Measurement("marginal", BEST_TOP_K))
    yield Row("layout change", "trained on full SIDs", base, (OWN, *changes))
    yield Row(
        "layout change",
        "trained with layer-2 dropout",
        msgspec.structs.replace(base, layer2_dropout=LAYER2_DROPOUT),
        (OWN, changes[0]),
    )
    yield Row(
        "layout change", f"trained on {BEST_TOP_K.label}", msgspec.structs.replace(base, layout=BEST_TOP_K), (OWN,)
    )


def new_items(dataset: DatasetName) -> Iterator[Row]:
    """Items that came after training, found by the mixture of the model and the dense leg (docs/study/new-items.md)."""
    here = scale(dataset)
    if dataset in PLANTED:
        return
    base = msgspec.structs.replace(here.base, arrivals=True)
    if dataset == "amazon_games":  # where there are histories, the codes are of what they say too
        yield Row("new items", "codebook of the text alone", base, (ARRIVALS,))
        base = msgspec.structs.replace(base, codebook=msgspec.structs.replace(base.codebook, co_occurrence=1.0))
    choosing = msgspec.structs.replace(base, choosing=True, part="valid")
    yield Row("new items", "choosing the rule", choosing, (ARRIVALS_RULE,))
    for seed in here.seeds:
        yield Row("new items", ARRIVING, msgspec.structs.replace(base, seed=seed), (ARRIVALS,))
