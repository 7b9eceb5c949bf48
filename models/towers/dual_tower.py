"""Dual tower (paper § 3.1; DSSM, Huang et al. 2013): a query tower and an item tower trained on pairs that belong together.

A tower is a weighted sum of rows of one table that hashed features pick, scaled to length 1, plus two dense layers of it.
The rows start as random directions as long as their feature is rare, so that an untrained tower compares texts about as
TF-IDF does, and a word that training never saw still finds itself. Loss: every other item of the batch is a negative.
The same items, pairs, settings, seed and number of threads give the same towers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from models.catalogue import CatalogueItem
from models.codebooks.dense_network import DenseNetwork
from models.errors import SidstreamError
from models.examples.records import TrainingExample
from models.towers.neighbours import recall_of_nearest
from models.towers.text_encoder import SHORTEST_NORM, Side
from models.towers.text_features import FIELDS, KINDS, Bags, FeatureHasher
from models.towers.tower_export import TowerWeights

TowerProgress = Callable[[int, int, float], None]
"""Called after each step with its number (1-based), the number of steps, and the loss of the step."""

RECALL_CUTOFF: Final = 10
_START_GROUP_WEIGHTS: Final = {"word": 1.0, "pair": 0.5, "piece": 0.5}
_LOWEST_TEMPERATURE: Final = 0.01  # of the logits; CLIP's bound
_WARM_UP_SHARE: Final = 0.1  # of the steps
_SCALAR_RATE: Final = 3.0  # temperature and group weights learn so much faster: they are few and start far off
_MOST_HELD_OUT_ITEMS: Final = 1_000
_MOST_HELD_OUT_PAIRS: Final = 5_000
_TEXTS_AT_A_TIME: Final = 512


class DualTowerError(SidstreamError):
    """Settings or pairs that no towers can be trained with."""


@dataclass(frozen=True)
class TowerSettings:
    """dimension: D of the embeddings; rows: numbers that features are hashed into; hidden: width of the dense layers;
    feature_dropout: share of features left out in training; temperature: of the cosine, at the start; held_out: share of
    the items that training never sees, for recall.
    """

    dimension: int = 256
    rows: int = 65_536
    hidden: int = 256
    epochs: int = 3
    batch_size: int = 1024
    learning_rate: float = 2e-3
    temperature: float = 0.1
    feature_dropout: float = 0.3
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dimension", "rows", "hidden", "epochs"):
            if getattr(self, name) < 1:
                raise DualTowerError(f"towers: {name} must be at least 1, not {getattr(self, name)}")
        if self.batch_size < 2:
            raise DualTowerError(
                f"towers: batch_size must be at least 2, not {self.batch_size}: the others are the negatives"
            )
        if not (0 < self.learning_rate < math.inf and _LOWEST_TEMPERATURE <= self.temperature < math.inf):
            raise DualTowerError(
                f"towers: learning_rate must be above 0 and temperature at least {_LOWEST_TEMPERATURE}, not "
                f"{self.learning_rate} and {self.temperature}"
            )
        for name in ("feature_dropout", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise DualTowerError(f"towers: {name} must lie in [0, 1), not {getattr(self, name)}")


@dataclass(frozen=True)
class TowersOutcome:
    """pairs: trained on, skipped: pairs without query or with an unknown item; losses: mean of each epoch, natural logarithm;
    recall: share of held-out pairs whose item, never seen in training, is among the 10 nearest of all items (None
    without held-out pairs); chance: the same share if neighbours were drawn by lot.
    """

    pairs: int
    skipped: int
    steps: int
    losses: tuple[float, ...]
    temperature: float
    recall: float | None
    held_out_pairs: int
    chance: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


class DualTower(torch.nn.Module):
    """Both towers; ``forward`` gives embeddings float32 (N, D), rows of length 1, of bags of one side."""

    def __init__(self, settings: TowerSettings, rarity: NDArray[np.float32]) -> None:
        """``rarity``: float32 (R,), the length that each row of the table starts with."""
        super().__init__()
        dimension = settings.dimension
        directions = torch.randn(settings.rows, dimension) / math.sqrt(dimension)
        self.table = torch.nn.Parameter(directions * torch.from_numpy(rarity)[:, None])
        start = torch.tensor([_START_GROUP_WEIGHTS[kind] for _ in FIELDS for kind in KINDS])
        self.log_group_weights = torch.nn.Parameter(start.log())
        self.query, self.item = _correction(dimension, settings.hidden), _correction(dimension, settings.hidden)
        self.log_scale = torch.nn.Parameter(torch.tensor(-math.log(settings.temperature)))

    def forward(self, bags: Bags, side: Side, kept: torch.Tensor | None = None) -> torch.Tensor:
        """kept: 0 or 1 a feature (F,), for dropout."""
        weights = torch.from_numpy(bags.shares) * self.log_group_weights.exp()[torch.from_numpy(bags.groups)]
        if kept is not None:
            weights = weights * kept
        sums = torch.nn.functional.embedding_bag(
            torch.from_numpy(bags.features),
            self.table,
            torch.from_numpy(bags.starts),
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )
        values = torch.nn.functional.normalize(sums, eps=SHORTEST_NORM)
        corrected: torch.Tensor = values + (self.query if side == "query" else self.item)(values)
        return torch.nn.functional.normalize(corrected, eps=SHORTEST_NORM)

    def embed(self, bags: Bags, side: Side) -> NDArray[np.float32]:
        """Bags of N texts → float32 (N, D)."""
        found = np.empty((len(bags), self.table.shape[1]), dtype=np.float32)
        with torch.no_grad():
            for start in range(0, len(bags), _TEXTS_AT_A_TIME):
                block = np.arange(start, min(start + _TEXTS_AT_A_TIME, len(bags)))
                found[block] = self(bags.take(block), side).numpy()
        return found

    @property
    def scale(self) -> torch.Tensor:
        """One over the temperature."""
        return self.log_scale.exp().clamp(max=1 / _LOWEST_TEMPERATURE)

    def weights(self) -> TowerWeights:
        """What is exported."""
        return TowerWeights(
            table=self.table.detach().numpy().astype(np.float16),
            group_weights=self.log_group_weights.detach().exp().numpy().astype(np.float32),
            query=_network(self.query),
            item=_network(self.item),
        )


def in_batch_loss(
    queries: torch.Tensor,
    items: torch.Tensor,
    scale: torch.Tensor,
    item_numbers: torch.Tensor,
    query_numbers: torch.Tensor,
) -> torch.Tensor:
    """Softmax cross-entropy of cosine · scale, from queries to items and from items to queries, over a batch of B pairs.

    queries, items: (B, D) of length 1. item_numbers, query_numbers: (B,); a pair of the same item, or of the same query
    text, is no negative of another: such logits are left out.
    """
    logits = scale * queries @ items.T
    alike = (item_numbers[:, None] == item_numbers) | (query_numbers[:, None] == query_numbers)
    alike.fill_diagonal_(False)
    logits = logits.masked_fill(alike, -torch.inf)
    own = torch.arange(len(logits))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def train_towers(
    items: Sequence[CatalogueItem],
    pairs: Sequence[TrainingExample],
    settings: TowerSettings | None = None,
    progress: TowerProgress | None = None,
) -> tuple[DualTower, TowersOutcome]:
    """Towers trained on the pairs' queries and items; histories are not read.

    Raises ``DualTowerError`` if fewer than two different items are left to train on.
    """
    settings = settings or TowerSettings()
    started = time.monotonic()
    numbers = {item.id: number for number, item in enumerate(items)}
    usable = [pair for pair in pairs if pair.query.strip() and pair.item in numbers]
    pair_items = np.array([numbers[pair.item] for pair in usable], dtype=np.int64)
    _, pair_queries = np.unique([pair.query for pair in usable] or [""], return_inverse=True)
    random = np.random.default_rng(settings.seed)
    held_out = _held_out(pair_items, settings.held_out, random)
    train_on, test_on = np.flatnonzero(~held_out), _some(np.flatnonzero(held_out), settings.seed)
    if len(np.unique(pair_items[train_on])) < 2:
        raise DualTowerError(
            f"{len(usable)} of {len(pairs)} pairs have a query and a known item, too few to train on: "
            'give pairs of at least two items, in lines like {"query": "red shoes", "item": "sku-1"}'
        )
    hasher = FeatureHasher(settings.rows)
    query_bags, item_bags = hasher.queries([pair.query for pair in usable]), hasher.items(items)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        torch.manual_seed(settings.seed)
        tower = DualTower(settings, _rarity(item_bags.take(np.unique(pair_items[train_on])), settings.rows))
    losses = _learn(tower, query_bags, item_bags, train_on, pair_items, pair_queries, settings, random, progress)
    with torch.no_grad():  # what is measured is what is exported
        tower.table.copy_(tower.table.half())
    recall = None
    if len(test_on):
        recall = recall_of_nearest(
            tower.embed(query_bags.take(test_on), "query"),
            tower.embed(item_bags, "item"),
            [{int(number)} for number in pair_items[test_on]],
            RECALL_CUTOFF,
        )
    outcome = TowersOutcome(
        pairs=len(train_on),
        skipped=len(pairs) - len(usable),
        steps=settings.epochs * _steps(len(train_on), settings.batch_size),
        losses=tuple(losses),
        temperature=float(1 / tower.scale.detach()),
        recall=recall,
        held_out_pairs=len(test_on),
        chance=min(1.0, RECALL_CUTOFF / len(items)),
        seconds=time.monotonic() - started,
    )
    return tower, outcome


def judged_recall(
    queries: NDArray[np.float32],
    items: NDArray[np.float32],
    relevant: Sequence[Mapping[int, int]],
    *,
    least_rating: int,
) -> tuple[float, int]:
    """Recall@10 of judged queries, and how many there are; ``relevant``: row → rating for each query."""
    wanted = [{row for row, rating in ratings.items() if rating >= least_rating} for ratings in relevant]
    judged = [number for number, rows in enumerate(wanted) if rows]
    if not judged:
        return 0.0, 0
    return recall_of_nearest(queries[judged], items, [wanted[n] for n in judged], RECALL_CUTOFF), len(judged)


def _learn(
    tower: DualTower,
    query_bags: Bags,
    item_bags: Bags,
    train_on: NDArray[np.int64],
    pair_items: NDArray[np.int64],
    pair_queries: NDArray[np.int64],
    settings: TowerSettings,
    random: np.random.Generator,
    progress: TowerProgress | None,
) -> list[float]:
    """Mean loss of each epoch."""
    scalars = [tower.log_group_weights, tower.log_scale]
    others = [tower.table, *tower.query.parameters(), *tower.item.parameters()]
    rate = settings.learning_rate
    optimiser = torch.optim.Adam(
        [{"params": others, "lr": rate}, {"params": scalars, "lr": _SCALAR_RATE * rate}], betas=(0.9, 0.99)
    )
    steps_an_epoch = _steps(len(train_on), settings.batch_size)
    steps = settings.epochs * steps_an_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate_share(step, steps))
    dropout = torch.Generator().manual_seed(settings.seed)
    losses, step = [], 0
    for _ in range(settings.epochs):
        total = 0.0
        for batch in np.array_split(random.permutation(train_on), steps_an_epoch):
            asked, chosen = query_bags.take(batch), item_bags.take(pair_items[batch])
            loss = in_batch_loss(
                tower(asked, "query", _kept(len(asked.features), settings.feature_dropout, dropout)),
                tower(chosen, "item", _kept(len(chosen.features), settings.feature_dropout, dropout)),
                tower.scale,
                torch.from_numpy(pair_items[batch]),
                torch.from_numpy(pair_queries[batch]),
            )
            if not torch.isfinite(loss):
                raise DualTowerError(
                    f"towers: the loss of step {step + 1:,} of {steps:,} is NaN or infinite; nothing was kept. Train again "
                    f"with a learning rate smaller than {rate:g} (usual is {TowerSettings.learning_rate:g})"
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            step += 1
            total += loss.item() * len(batch)
            if progress is not None:
                progress(step, steps, loss.item())
        losses.append(total / len(train_on))
    return losses


def _steps(pairs: int, batch_size: int) -> int:
    return -(-pairs // batch_size)


def _rate_share(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine down to a hundredth."""
    warm = max(1, round(_WARM_UP_SHARE * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def _kept(features: int, dropout: float, generator: torch.Generator) -> torch.Tensor | None:
    return None if dropout == 0 else (torch.rand(features, generator=generator) >= dropout).float()


def _held_out(pair_items: NDArray[np.int64], share: float, random: np.random.Generator) -> NDArray[np.bool_]:
    """bool (pairs,): all pairs of some items."""
    known = np.unique(pair_items)
    count = min(math.ceil(share * len(known)), _MOST_HELD_OUT_ITEMS, max(0, len(known) - 2))
    return np.isin(pair_items, random.choice(known, count, replace=False)) if count else np.zeros(len(pair_items), bool)


def _some(places: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """At most so many as recall is measured on, of all kinds of pairs: queries come before what was taken together."""
    if len(places) <= _MOST_HELD_OUT_PAIRS:
        return places
    return np.random.default_rng(seed).choice(places, _MOST_HELD_OUT_PAIRS, replace=False)


def _rarity(item_bags: Bags, rows: int) -> NDArray[np.float32]:
    """float32 (R,): inverse document frequency of each row of the table among items, 1 for a feature that none has."""
    owners = np.repeat(np.arange(len(item_bags)), item_bags.lengths)
    _, features = np.divmod(np.unique(owners * rows + item_bags.features), rows)
    frequencies = np.bincount(features, minlength=rows)
    return np.asarray(np.log((len(item_bags) + 1) / (frequencies + 1)) / np.log(len(item_bags) + 1), dtype=np.float32)


def _correction(dimension: int, hidden: int) -> torch.nn.Sequential:
    """Two dense layers that give zero before training."""
    last = torch.nn.Linear(hidden, dimension)
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return torch.nn.Sequential(torch.nn.Linear(dimension, hidden), torch.nn.ReLU(), last)


def _network(network: torch.nn.Sequential) -> DenseNetwork:
    return DenseNetwork.from_tensors([parameter.detach().numpy() for parameter in network.parameters()])
