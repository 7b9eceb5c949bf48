"""int8 in the linear layers: near what float32 gives, the same for a token whatever is run beside it, refused where it is not."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.errors import SidstreamError  # noqa: E402
from models.language.int8 import Int8Linear, has_int8, to_int8  # noqa: E402
from support.tiny_families import FAMILIES, VOCABULARY, tiny_model  # noqa: E402


@pytest.mark.parametrize(("fine", "most"), [(False, 0.02), (True, 0.01)])
def test_products_are_near_those_of_float32_and_nearer_with_inputs_of_16_bits(fine: bool, most: float) -> None:
    torch.manual_seed(0)
    linear, inputs = torch.nn.Linear(96, 40), torch.randn(2, 7, 96)
    inputs[0, 3] = 0.0  # a token of nothing has no scale
    changed = Int8Linear(linear, fine=fine)
    with torch.inference_mode():
        expected, found = linear(inputs), changed(inputs)
    assert found.shape == expected.shape
    assert 0 < (found - expected).norm() / expected.norm() < most
    torch.testing.assert_close(found[0, 3], linear.bias)


def test_a_token_gets_the_same_beside_any_other() -> None:
    torch.manual_seed(0)
    changed, inputs = Int8Linear(torch.nn.Linear(64, 32), fine=False), torch.randn(5, 64)
    beside = torch.cat((inputs, 1000 * torch.randn(3, 64)))
    assert torch.equal(changed(inputs), changed(beside)[:5])


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"gpt2"}))
def test_a_models_linear_layers_are_changed_and_nothing_else(family: str) -> None:
    model = tiny_model(family)
    changed = copy.deepcopy(model)
    to_int8(changed)
    assert has_int8(changed)
    assert not has_int8(model)
    head = changed.get_output_embeddings()
    left = [module for module in changed.modules() if type(module) is torch.nn.Linear and module is not head]
    assert all(min(module.in_features, module.out_features) < 16 for module in left)
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, found = (each(input_ids=tokens, use_cache=False).logits for each in (model, changed))
    assert 0 < (found - expected).abs().max() / expected.abs().max() < 0.1


def test_model_without_linear_layers_is_refused_with_what_to_set() -> None:
    with pytest.raises(SidstreamError, match="no linear layers of the kind that is changed: set it to bfloat16"):
        to_int8(tiny_model("gpt2"))


def test_model_whose_scores_would_be_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Int8Linear, "forward", lambda self, inputs: inputs.new_ones(*inputs.shape[:-1], self.out_features)
    )
    with pytest.raises(SidstreamError, match="are others: set it to bfloat16"):
        to_int8(tiny_model("llama"))


def test_model_on_a_card_is_refused_with_what_to_set() -> None:
    with pytest.raises(SidstreamError, match="runs on meta: set it to bfloat16"):
        to_int8(tiny_model("llama").to("meta"))


def test_processor_that_is_slower_in_int8_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("models.language.int8._seconds_against_float32", lambda: 1.5)
    to_int8(tiny_model("llama"))
    assert "int8_does_not_pay" in capsys.readouterr().out
