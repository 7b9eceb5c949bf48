"""The losses against their papers' formulas, written out plainly in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from models.errors import SidstreamError
from models.training.losses import DEFAULT_GAMMA, LOSSES, checked_gamma

torch = pytest.importorskip("torch")

from models.training.losses import focal_loss, mile_loss, token_loss  # noqa: E402
from models.training.settings import TrainingSettings  # noqa: E402

LOGITS = np.random.default_rng(0).normal(scale=3.0, size=(7, 11))
TARGETS = [0, 10, 3, 3, 7, 1, 5]


def probabilities() -> list[list[float]]:
    rows = []
    for row in LOGITS.tolist():
        whole = sum(math.exp(logit) for logit in row)
        rows.append([math.exp(logit) / whole for logit in row])
    return rows


def measured(loss: Any, gamma: float | None) -> float:
    return float(token_loss(torch.tensor(LOGITS, dtype=torch.float32), torch.tensor(TARGETS), loss, gamma))


def test_cross_entropy_is_the_mean_of_minus_log_p_and_bit_for_bit_that_of_torch() -> None:
    plain = sum(-math.log(row[target]) for row, target in zip(probabilities(), TARGETS, strict=True)) / len(TARGETS)
    assert measured("cross-entropy", None) == pytest.approx(plain, rel=1e-5)
    logits, targets = torch.tensor(LOGITS, dtype=torch.float32), torch.tensor(TARGETS)
    theirs = torch.nn.functional.cross_entropy(logits, targets)
    assert torch.equal(token_loss(logits, targets, "cross-entropy"), theirs)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_is_lins_formula(gamma: float) -> None:
    known = [row[target] for row, target in zip(probabilities(), TARGETS, strict=True)]
    plain = sum(-((1 - p) ** gamma) * math.log(p) for p in known) / len(known)
    assert measured("focal", gamma) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_mile_is_sus_formula(gamma: float) -> None:
    rows = probabilities()
    entropies = [-sum(p * math.log(p) for p in row) for row in rows]
    weights = [(1 + entropy) ** gamma for entropy in entropies]
    alpha = len(weights) / sum(weights)
    losses = [
        -alpha * weight * math.log(row[target]) for row, weight, target in zip(rows, weights, TARGETS, strict=True)
    ]
    assert measured("mile", gamma) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def gradient(loss: Any, *arguments: Any) -> Any:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    loss(logits, torch.tensor(TARGETS), *arguments).backward()
    return logits.grad.numpy()


def test_the_focal_gradient_runs_through_its_weight_too() -> None:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, torch.tensor(TARGETS), 2.0), (logits,))


def test_the_mile_gradient_is_that_of_cross_entropy_times_fixed_weights() -> None:
    entropies = np.array([-sum(p * math.log(p) for p in row) for row in probabilities()])
    weights = (1 + entropies) / (1 + entropies).mean()
    plain = gradient(torch.nn.functional.cross_entropy) * weights[:, None]
    np.testing.assert_allclose(gradient(mile_loss, 1.0), plain, rtol=1e-9)


@pytest.mark.parametrize("loss", [focal_loss, mile_loss])
def test_gamma_zero_is_cross_entropy(loss: Any) -> None:
    np.testing.assert_allclose(gradient(loss, 0.0), gradient(torch.nn.functional.cross_entropy), atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("loss", ["focal", "mile"])
def test_certain_right_and_certain_wrong_tokens_have_finite_values_and_gradients(loss: Any, gamma: float) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [17.0, 0.0, 0.0]], requires_grad=True)
    value = token_loss(logits, torch.tensor([0, 2, 1, 0]), loss, gamma)
    (slope,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(value)
    assert torch.isfinite(slope).all()
    assert slope[0].abs().max() == 0  # nothing left to learn
    assert slope[1, 2] < 0 < slope[1, 0]  # all to learn


def test_gamma_is_its_papers_unless_given() -> None:
    assert {loss: checked_gamma(loss, None) for loss in LOSSES} == DEFAULT_GAMMA
    assert measured("focal", None) == measured("focal", 2.0)
    assert measured("mile", None) == measured("mile", 1.0)


@pytest.mark.parametrize(
    ("loss", "gamma", "message"),
    [
        ("hinge", None, "choose one of cross-entropy, focal, mile"),
        ("cross-entropy", 2.0, "leave it out"),
        ("focal", -1.0, "at least 0"),
        ("mile", float("nan"), "at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_training(loss: Any, gamma: float | None, message: str) -> None:
    with pytest.raises(SidstreamError, match=message):
        TrainingSettings(loss=loss, gamma=gamma)
