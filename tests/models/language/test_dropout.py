"""Dropout: what acts in training and not in evaluation, family by family, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from models.errors import SidstreamError  # noqa: E402
from models.language.dropout import set_dropout  # noqa: E402
from support.tiny_families import tiny_model  # noqa: E402

TOKENS = torch.arange(24).reshape(2, 12)


def scores(model: object, seed: int) -> torch.Tensor:
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(seed)
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits  # type: ignore[operator]
        return found


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", ("attention_dropout",)),
        ("qwen3", ("attention_dropout",)),
        ("gemma2", ("attention_dropout",)),
        ("phi3", ("attention_dropout", "resid_pdrop", "embd_pdrop")),
        ("gpt2", ("attn_pdrop", "resid_pdrop", "embd_pdrop")),
        ("gpt_neox", ("attention_dropout", "hidden_dropout")),
        ("opt", ("attention_dropout", "dropout")),
        ("bloom", ("attention_dropout", "hidden_dropout")),
        ("jamba", ("attention_dropout",)),
    ],
)
def test_dropout_acts_in_training_alone_and_0_ends_it(family: str, fields: tuple[str, ...]) -> None:
    model = tiny_model(family)
    plain = scores(model, 0)
    assert set_dropout(model, 0.2) == fields
    assert all(getattr(model.config, field) == 0.2 for field in fields)
    torch.testing.assert_close(scores(model, 0), plain, atol=0, rtol=0)
    model.train()
    assert not torch.equal(scores(model, 0), scores(model, 1))
    torch.testing.assert_close(scores(model, 0), scores(model, 0), atol=0, rtol=0)
    set_dropout(model, 0.0)
    torch.testing.assert_close(scores(model, 0), scores(model, 1), atol=0, rtol=0)


def test_family_without_dropout_is_refused_by_name_but_for_no_dropout() -> None:
    model = tiny_model("lfm2")
    assert set_dropout(model, 0.0) == ()
    with pytest.raises(SidstreamError, match=r"Lfm2ForCausalLM \(lfm2\) has no dropout: .*train it without"):
        set_dropout(model, 0.1)


def test_field_that_the_forward_pass_does_not_heed_is_refused() -> None:
    model = tiny_model("lfm2")
    model.config.hidden_dropout = 0.0
    with pytest.raises(SidstreamError, match="its forward pass heeds none of hidden_dropout"):
        set_dropout(model, 0.1)


def test_updates_of_lora_have_dropout_in_a_family_that_has_none(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from models.language.language_model import load_checkpoint
    from models.language.lora import add_lora
    from support.tiny_families import write_checkpoint

    model, _, vocabulary = load_checkpoint(
        write_checkpoint("lfm2", tmp_path / "checkpoint"), user_buckets=0, layers=3, size=4
    )
    model = add_lora(model, 4, vocabulary, 0.2)
    assert set_dropout(model, 0.2, lora=True) == ()
    rates = {module.p for name, module in model.named_modules() if "lora_dropout." in name}
    assert rates == {0.2}
