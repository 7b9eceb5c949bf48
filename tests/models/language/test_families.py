"""Families of causal LMs: scores are the model's own, branches are measured, a loss of another kind is refused."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.errors import SidstreamError  # noqa: E402
from models.language.families import (  # noqa: E402
    base_model,
    chosen_logits,
    require_trainable,
    score_scale,
    sees_branches,
    shortest_window,
)
from support.tiny_families import BY_ORDER, CHUNKED, FAMILIES, LOOKING_AHEAD, VOCABULARY, WINDOWED, tiny_model  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_familys_own_and_branches_are_measured(family: str) -> None:
    model = tiny_model(family)
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    row, column = torch.tensor([0, 0, 1]), torch.tensor([4, 8, 0])
    with torch.inference_mode():
        every = model(input_ids=tokens, use_cache=False).logits
        chosen = chosen_logits(model, row, column, input_ids=tokens)
        torch.testing.assert_close(chosen, every[row, column].float(), atol=1e-5, rtol=1e-4)
        if family != "opt":  # whose base model is not what its scores come from
            states = base_model(model)(input_ids=tokens, use_cache=False)[0]
            scaled = score_scale(model)(model.get_output_embeddings()(states))
            torch.testing.assert_close(scaled, every, atol=1e-5, rtol=1e-4)
    require_trainable(model, 40)
    assert sees_branches(model, 40) == (family not in BY_ORDER)


@pytest.mark.parametrize("family", LOOKING_AHEAD)
@pytest.mark.parametrize("longest", [6, 40])
def test_model_whose_scores_tell_what_comes_later_is_refused(family: str, longest: int) -> None:
    with pytest.raises(SidstreamError, match="is no causal language model as it is configured"):
        require_trainable(tiny_model(family), longest)


@pytest.mark.parametrize("family", [*WINDOWED, *CHUNKED])
def test_history_is_no_row_of_its_own_where_a_layer_does_not_see_all_of_it(family: str) -> None:
    model = tiny_model(family)
    window = shortest_window(model)
    assert window == 20
    assert sees_branches(model, window)
    assert not sees_branches(model, window + 1)
    assert not sees_branches(model, 3 * window)


def test_window_of_no_token_is_none() -> None:
    model = tiny_model("qwen2_moe")
    assert model.config.sliding_window == 0
    assert shortest_window(model) is None
    assert sees_branches(model, 100)


def test_gradients_of_chosen_scores_are_those_of_all_scores() -> None:
    tokens = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    row, column = torch.tensor([0, 1, 1]), torch.tensor([3, 2, 7])
    gradients = []
    for choose in (True, False):
        model = tiny_model("cohere")
        if choose:
            logits = chosen_logits(model, row, column, input_ids=tokens)
        else:
            logits = model(input_ids=tokens, use_cache=False).logits[row, column]
        torch.nn.functional.cross_entropy(logits, tokens[row, column + 1]).backward()
        gradients.append(torch.cat([weight.grad.ravel() for weight in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-4)


def test_model_that_learns_by_more_than_its_scores_is_refused_with_what_to_set() -> None:
    model = tiny_model("qwen3_moe")
    model.config.output_router_logits = True
    with pytest.raises(SidstreamError, match="set output_router_logits to false"):
        require_trainable(model, 10)


def test_model_whose_forward_pass_fails_is_refused_before_training() -> None:
    model = tiny_model("llama")
    model.forward = None
    with pytest.raises(SidstreamError, match="LlamaForCausalLM cannot be trained here"):
        require_trainable(model, 10)


def test_model_that_fails_on_the_longest_prompt_is_refused_before_training() -> None:
    model = tiny_model("gpt2")
    require_trainable(model, 128)
    with pytest.raises(SidstreamError, match=r"on 129 tokens, as the longest prompt has, fails .*less to read"):
        require_trainable(model, 129)
