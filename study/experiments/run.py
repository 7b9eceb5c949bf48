"""One run of the study: train a model, or read the trained one, and measure what is asked of it.

What must hold: a run that was stopped goes on from its last epoch; what was measured is kept at once and never measured
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from models.examples.alignment import AlignmentSettings, alignment_examples
from models.sids.layout import Layout
from study.data.datasets import TestCase, described_items, load
from study.experiments.configuration import LayoutChoice, RunChoice
from study.experiments.results import Results, RunResult
from study.experiments.setting import Setting, setting, some_cases
from study.measures.arrivals import choose_rule, measure_arrivals
from study.measures.catalogue_trie import CatalogueTrie
from study.measures.evaluation import BEAMS, UNSEEN_WEIGHT, Outcome, bucket_sizes, evaluate
from study.measures.item_search import Found, found_items
from study.measures.legs import measure_legs
from study.measures.per_item import measure_per_item
from study.measures.together import recall_together

if TYPE_CHECKING:
    from models.training.train_model import Alignment

Kind = Literal[
    "own",
    "per item",
    "first token given",
    "free beams",
    "naive",
    "marginal",
    "legs",
    "arrivals",
    "rule for arrivals",
    "codebooks together",
]
Progress = Callable[[str, float], None]  # what is done, and which share of it

FREE_BEAM_CASES: Final = 200
VALID_CASES: Final = 4_000  # that the legs are put together by
_REPORTS_AN_EPOCH: Final = 20


class Measurement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to measure of a trained model.

    ``own``: recall under the layout that it was trained for; ``per item``: recall at an equal budget of items, nats an item,
    processor time a query; ``first token given``: recall with the first token of the right SID known; ``free beams``: share of
    invalid SIDs without the constraint; ``naive``: recall under another ``layout``, whose SIDs the model reads and writes as if
    it knew them; ``marginal``: the same with the left-out tokens summed over; ``legs``: recall of model, vectors and
    co-occurrence together; ``arrivals``: recall of items that came after training, with the dense leg; ``rule for arrivals``:
    which rule validation chooses for them; ``codebooks together``: recall of a model that learnt with several codebooks, asked by
    each of them.
    """

    kind: Kind
    layout: LayoutChoice | None = None

    @property
    def name(self) -> str:
        """Its name in a result."""
        return self.kind if self.layout is None else f"{self.kind}, {self.layout.label}"


OWN: Final = Measurement("own")
PER_ITEM: Final = Measurement("per item")
LEGS: Final = Measurement("legs")
TOGETHER: Final = Measurement("codebooks together")
FIRST_GIVEN: Final = Measurement("first token given")
FREE_BEAMS: Final = Measurement("free beams")
ARRIVALS: Final = Measurement("arrivals")
ARRIVALS_RULE: Final = Measurement("rule for arrivals")


def _alignment(here: Setting) -> Alignment | None:
    from models.training.train_model import Alignment

    choice, arrived = here.choice, here.data.arrived
    if not choice.align:
        return None
    items = [item for item in described_items(here.data.name) if not arrived[int(item.id)]]
    settings = AlignmentSettings(choice.align, choice.align_share)
    return Alignment(settings, alignment_examples(items, choice.align), choice.seed)


def run(choice: RunChoice, measurements: Sequence[Measurement], results: Results, progress: Progress) -> RunResult:
    """Trains if need be, measures what is missing, keeps each result at once."""
    result = results.run(choice)
    if result is not None and all(measurement.name in result.measured for measurement in measurements):
        return result
    here = setting(choice, results.scratch)
    weights = results.model_directory(choice)
    if result is None or not weights.is_dir():
        fresh, model = _train(here, results, progress)
        # Trained anew because the weights are gone: what was measured on the same choice still holds.
        result = fresh if result is None else msgspec.structs.replace(fresh, measured=result.measured)
        results.write_run(result)
    else:
        model = load_model(weights)
    for number, measurement in enumerate(measurements):
        if measurement.name not in result.measured:
            progress(measurement.name, number / len(measurements))
            result.measured[measurement.name] = measure(here, model, measurement, progress)
            results.write_run(result)
    return result


def _train(here: Setting, results: Results, progress: Progress) -> tuple[RunResult, Any]:
    from models.language.language_model import small_causal_lm
    from models.language.norm_head import plain_state
    from models.training.checkpoints import Checkpoints
    from models.training.fine_tuning import fine_tune
    from models.training.settings import TrainingProgress, TrainingSettings
    from models.training.train_model import training_table

    choice = here.choice
    weights = results.model_directory(choice)
    checkpoints = Checkpoints(results.checkpoints(choice), {"run": choice.key})
    data, codes, rows = here.training_data()
    titles = dict(zip(map(str, range(len(here.data.titles))), here.data.titles, strict=True))
    main = training_table(data, here.prompts, here.layout, rows, codes, titles=titles)
    alignment = _alignment(here)
    table = main if alignment is None else alignment.beside(main, here.prompts, here.layout, rows, codes)
    model = small_causal_lm(
        here.vocabulary,
        hidden_size=choice.hidden_size,
        layers=choice.model_layers,
        heads=choice.heads,
        seed=choice.seed,
        architecture=choice.architecture,
    )
    batch_size = round(choice.batch_size * main.targets / len(main))  # a choice counts histories
    steps_an_epoch = -(-len(main) // choice.batch_size)
    if alignment is not None:  # beside the others, not instead of them
        steps_an_epoch += -(-alignment.settings.targets(main.targets) // batch_size)
    report_every = max(1, steps_an_epoch // _REPORTS_AN_EPOCH)
    curve: list[tuple[float, float]] = []

    def report(now: TrainingProgress) -> None:
        if now.step % report_every == 0 or now.step == now.steps:
            curve.append((round(now.step / steps_an_epoch, 3), round(now.loss, 4)))
            progress("training", now.step / now.steps)

    outcome = fine_tune(
        model,
        table,
        TrainingSettings(
            max_steps=round(choice.epochs * steps_an_epoch),
            batch_size=batch_size,
            learning_rate=choice.learning_rate,
            weight_decay=choice.weight_decay,
            seed=choice.seed,
            layer2_dropout=choice.layer2_dropout,
            dropout=choice.dropout or None,
            loss=choice.loss,
            gamma=choice.gamma,
            report_every=report_every,
        ),
        report,
        checkpoints,
    )
    staged = weights.with_name(weights.name + "-partial")
    model.save_pretrained(str(staged), state_dict=plain_state(model))
    staged.replace(weights)
    checkpoints.remove()
    return RunResult(
        choice=choice,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=outcome.loss,
        seconds=outcome.seconds,
        targets=outcome.examples,
        curve=curve,
    ), model


def load_model(weights: Path) -> Any:
    """A trained model of the study, ready to be asked."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(weights), local_files_only=True, use_safetensors=True).eval()


def measure(here: Setting, model: Any, measurement: Measurement, progress: Progress) -> dict[str, Any]:
    """The figures of one measurement: recall by group of items and level, or invalid shares."""
    if measurement.kind == "arrivals":
        return measure_arrivals(here, model, here.scratch / f"arrivals-{here.choice.key}.npz", progress)
    if measurement.kind == "rule for arrivals":
        return choose_rule(here, model, progress)
    if measurement.kind == "per item":
        return _per_item(here, model)
    if measurement.kind == "legs":
        return _legs(here, model, progress)
    if measurement.kind == "codebooks together":
        return _codebooks_together(here, model, progress)
    if measurement.kind == "free beams":
        from study.measures.free_beams import invalid_shares

        prompts = [here.prompt(case, here.layout) for case in here.cases(FREE_BEAM_CASES)]
        return invalid_shares(model, here.vocabulary, prompts, here.codes, here.layout)
    layout = here.layout
    if measurement.layout is not None:
        layout = measurement.layout.layout(here.codebook.codebook.id, here.census())
    cases = here.cases(here.choice.cases)
    if measurement.kind == "first token given":
        # A case of several relevant items is asked once for each of them.
        asked = [replace(case, relevant=(item,)) for case in cases for item in case.relevant]
        first = here.codes[[case.relevant[0] for case in asked], 0]
        parts = [
            _recall_outcome(
                here,
                model,
                measurement,
                layout,
                [case for case, token in zip(asked, first, strict=True) if token == given],
                np.flatnonzero(here.codes[:, 0] == given),
            )
            for given in np.unique(first)
        ]
        outcome = _together(parts)
    else:
        outcome = _recall_outcome(here, model, measurement, layout, cases, None)
    arrived, head = here.data.arrived[outcome.item], here.is_head[outcome.item]
    groups = {"all": None, "head": head & ~arrived, "tail": ~head & ~arrived}
    if arrived.any():
        groups["new"] = arrived
    return {name: outcome.recalls(chosen) for name, chosen in groups.items()} | {
        "buckets": bucket_sizes(here.codes, layout)
    }


def _recall_outcome(
    here: Setting,
    model: Any,
    measurement: Measurement,
    layout: Layout,
    cases: Sequence[TestCase],
    rows: npt.NDArray[np.integer] | None,
) -> Outcome:
    from retriever.search.beam_search import beam_search

    trie = CatalogueTrie(here.codes, layout, rows)
    # A frozen model goes on reading the histories as it was trained to; "naive" takes the new layout for everything.
    read = layout if measurement.kind == "naive" else here.layout
    decode = partial(beam_search, model, here.vocabulary, trie=trie, beams=BEAMS)
    if measurement.kind == "marginal":
        from retriever.search.marginal_search import marginal_beam_search

        decode = partial(marginal_beam_search, model, here.vocabulary, trie=trie, pinned=here.layout, beams=BEAMS)
    prompts = [here.prompt(case, read) for case in cases]
    return evaluate(decode, prompts, cases, here.data, here.codes, trie, here.reconstructed)


def _per_item(here: Setting, model: Any) -> dict[str, Any]:
    from retriever.search.beam_search import beam_search

    trie = CatalogueTrie(here.codes, here.layout)
    cases = here.cases(here.choice.cases)
    prompts = [here.prompt(case, here.layout) for case in cases]
    decode = partial(beam_search, model, here.vocabulary, trie=trie, beams=BEAMS)
    return measure_per_item(decode, model, here.vocabulary, prompts, cases, trie, here.codes, here.data.popularity)


def _legs(here: Setting, model: Any, progress: Progress) -> dict[str, Any]:
    valid = some_cases(load(here.data.name, "valid"), VALID_CASES)
    search = partial(_found, here, model, progress=partial(progress, "legs"))
    return measure_legs(here.data, valid, here.cases(here.choice.cases), search)


def _codebooks_together(here: Setting, model: Any, progress: Progress) -> dict[str, Any]:
    cases = here.cases(here.choice.cases)
    told = partial(progress, TOGETHER.name)
    by_each = [_found(here, model, cases, view=view, progress=told) for view in range(len(here.views))]
    return recall_together(by_each, cases)


def _found(
    here: Setting, model: Any, cases: Sequence[TestCase], *, view: int = 0, progress: Callable[[float], None]
) -> list[Found]:
    prompts = [here.prompt(case, here.layout, view) for case in cases]
    trie = CatalogueTrie(here.views[view], here.layout)
    return found_items(
        model, here.vocabulary, prompts, trie, here.data.popularity, smoothing=UNSEEN_WEIGHT, progress=progress
    )


def _together(parts: Sequence[Outcome]) -> Outcome:
    first = parts[0]
    return replace(
        first,
        case=np.concatenate([part.case for part in parts]),
        item=np.concatenate([part.item for part in parts]),
        sid_rank=np.concatenate([part.sid_rank for part in parts]),
        sid_rank_without_history=np.concatenate([part.sid_rank_without_history for part in parts]),
        item_ranks={name: np.concatenate([part.item_ranks[name] for part in parts]) for name in first.item_ranks},
    )
