"""The language model: a small LLaMA-, Qwen- or Baichuan-style one from a configuration, or any causal LM from a local
checkpoint directory.

What must hold: embeddings have exactly one row per id of the SID vocabulary; weights are safetensors; no network, no
remote code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

from models.errors import SidstreamError, first_line
from models.language.devices import in_mode
from models.language.finite import require_finite_weights
from models.language.tokenizer import TextTokenizer
from models.sids.vocabulary import SidVocabulary

Architecture = Literal["llama", "qwen", "baichuan"]
ARCHITECTURES: Final[tuple[Architecture, ...]] = ("llama", "qwen", "baichuan")
_ADAPTER_CONFIG: Final = "adapter_config.json"  # peft's
_PROBED_TOKENS: Final = 8
_SAME: Final = 1e-4


def small_causal_lm(
    vocabulary: SidVocabulary,
    *,
    hidden_size: int = 128,
    layers: int = 3,
    heads: int = 4,
    intermediate_size: int | None = None,
    max_positions: int = 256,
    seed: int = 0,
    architecture: Architecture = "llama",
) -> Any:
    """A causal LM with random weights in the style of one of the paper's three; the defaults make 1-1.5 million
    parameters. ``intermediate_size`` defaults to 3 × ``hidden_size``.

    All have RMSNorm before each block, SwiGLU, rotary positions and as many key as query heads. They differ in:

    - ``llama``: LLaMA 2, no biases; input and output embeddings tied, which LLaMA 2 itself does not do.
    - ``qwen``: Qwen1.5, which ``transformers`` has as Qwen2: biases on the query, key and value projections;
      embeddings tied, as in the 0.5B model.
    - ``baichuan``: Baichuan2-7B. ``transformers`` has no class for it, and remote code is refused, so this is the
      LLaMA class with untied embeddings and a NormHead (``models.language.norm_head``): what Baichuan2-7B's layers
      compute (its fused W_pack is the same three projections). Lacking: its max-z loss, its tokenizer, the ALiBi
      positions of the 13B model, and its published weights' names, so that its checkpoints do not load. Saved, it is a
      plain LLaMA model: as a checkpoint to train further it has no NormHead any more.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    if architecture not in ARCHITECTURES:
        raise SidstreamError(f"the architecture {architecture!r} is unknown: choose one of {', '.join(ARCHITECTURES)}")
    config_class, model_class = (
        (Qwen2Config, Qwen2ForCausalLM) if architecture == "qwen" else (LlamaConfig, LlamaForCausalLM)
    )
    config = config_class(
        vocab_size=vocabulary.total,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=architecture != "baichuan",
        pad_token_id=vocabulary.padding_id,
        bos_token_id=vocabulary.begin_id,
        eos_token_id=None,
        attention_dropout=0.0,
        use_cache=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    if architecture == "baichuan":
        from models.language.norm_head import add_norm_head

        add_norm_head(model)
    return model


def load_checkpoint(
    directory: Path | str, *, user_buckets: int, layers: int, size: int
) -> tuple[Any, TextTokenizer, SidVocabulary]:
    """A causal LM and its tokenizer from a local checkpoint directory, embeddings grown by user, control and SID
    tokens.

    The new rows start at the mean of the old ones (transformers' default), so that they neither attract nor repel at
    first. Raises ``SidstreamError`` for a peft adapter alone, and what ``from_pretrained`` does.
    """
    import torch

    path = Path(directory)
    if not path.is_dir():
        raise SidstreamError(f"there is no directory {path}: --checkpoint is a local one of a causal language model")
    if (path / _ADAPTER_CONFIG).is_file():  # transformers would read it unmerged, and could not read a bundle of it
        raise SidstreamError(
            f"{path} is a peft adapter, not a whole model: merge it into its base (PeftModel.from_pretrained(...) and "
            "merge_and_unload), save that with its tokenizer, and give its directory as --checkpoint"
        )
    tokenizer = TextTokenizer.from_checkpoint(path)
    # Small steps of the optimiser vanish in half precision, so training starts from float32, read so: what is not saved but
    # computed (Gemma's scale, XGLM's positions) would stay rounded.
    model = from_pretrained(path, torch.float32)
    require_finite_weights(model, f"the checkpoint {path}", "training cannot mend that; give another checkpoint")
    rows = int(model.get_input_embeddings().weight.shape[0])
    vocabulary = SidVocabulary(text_size=max(rows, tokenizer.size), user_buckets=user_buckets, layers=layers, size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(vocabulary.total)
    if model.config.pad_token_id is None:  # families that count positions by theirs (RoBERTa, XGLM) need it as it is
        model.config.pad_token_id = vocabulary.padding_id
    model.generation_config = type(model.generation_config).from_model_config(model.config)
    _require_loadable(model, path)
    return model, tokenizer, vocabulary


def _require_loadable(model: Any, path: Path) -> None:
    """Refuses, before it is trained, a model that would not be the same when its configuration is read again: what was grown in
    it may not be what its family builds from that. Weights are shared with the one that is built, not copied.
    """
    import torch
    from transformers import AutoConfig

    tokens = torch.arange(_PROBED_TOKENS)[None]
    try:
        with (
            TemporaryDirectory(prefix="sidstream-") as directory,
            quiet_transformers(),
            in_mode(model, training=False),
            torch.inference_mode(),
        ):
            model.config.save_pretrained(directory)
            configuration = AutoConfig.from_pretrained(directory)
            state = dict(model.state_dict())
            again, report = type(model).from_pretrained(
                None,
                config=configuration,
                state_dict=state,
                dtype=model.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            if not (reason := _disagreement(model, report)):
                difference = float((again.eval()(tokens).logits - model(tokens).logits).abs().max())
                reason = "" if difference <= _SAME else f"its scores differ by {difference:.3g}"
    except Exception as error:  # whatever a family makes of its own configuration
        reason = first_line(error)
    if reason:
        raise SidstreamError(
            f"{path} is a {type(model).__name__}, which cannot be read again once SID tokens are added ({reason}): training "
            "would end in a model that nothing can load; give a checkpoint of another family"
        )


def save_language_model(model: Any, tokenizer: TextTokenizer, directory: Path) -> None:
    """Saves weights (safetensors), configuration and tokenizer into ``directory``."""
    from transformers.utils import logging as transformers_logging

    from models.language.norm_head import plain_state

    transformers_logging.disable_progress_bar()
    model.save_pretrained(str(directory), state_dict=plain_state(model))
    tokenizer.save(directory)


def from_pretrained(path: Path, dtype: Any = "auto") -> Any:
    """The causal LM saved in a directory, every weight of it from there; ``dtype``: "auto" for that of its weights.

    Raises ``SidstreamError`` in one sentence for a directory without safetensors weights, for files that cannot be read,
    and for a configuration and weights that do not belong together: transformers would fill what is missing with random
    numbers, and leave out what its configuration does not ask for.
    """
    from transformers import AutoModelForCausalLM

    if not any(path.glob("*.safetensors")):
        raise SidstreamError(
            f"{path} holds no *.safetensors weights: only safetensors checkpoints are read; convert the checkpoint first"
        )
    try:
        with quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                str(path),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, with the names
            )
    except Exception as error:  # whatever a foreign configuration makes transformers stumble over
        raise SidstreamError(f"cannot read a causal language model from {path}: {first_line(error)}") from error
    _require_agreement(path, model, report)
    if model.config.get_text_config() is not model.config:
        raise SidstreamError(
            f"{path} is a {type(model).__name__}, which reads more than text: save its language model by itself, with its "
            "tokenizer, and give that directory"
        )
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars, and no report of a checkpoint's keys: ours is one sentence, and a tied head is not there by right."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _require_agreement(path: Path, model: Any, report: dict[str, Any]) -> None:
    """Refuses weights that are not those of the configuration."""
    if what := _disagreement(model, report):
        raise SidstreamError(
            f"config.json and weights in {path} do not belong together: {what}; copy the checkpoint again, whole"
        )


def _disagreement(model: Any, report: dict[str, Any]) -> str:
    """What of the weights is not of the configuration, in words; empty where all is."""
    base = f"{model.base_model_prefix}."
    mismatched = sorted(report["mismatched_keys"])
    missing = sorted(report["missing_keys"])
    # Other heads (of vision, of several tokens at once) are left out by right; a layer of the model itself is not.
    unasked = sorted(key for key in report["unexpected_keys"] if key.startswith(base))
    if mismatched:
        key, saved, wanted = mismatched[0]
        what = f"{key} has the shape {tuple(saved)} in the weights and {tuple(wanted)} by the configuration"
    elif missing:
        what = f"the weights lack {missing[0]}, which the configuration asks for"
    elif unasked:
        what = f"the weights have {unasked[0]}, which the configuration does not ask for"
    else:
        return ""
    more = len(mismatched) + len(missing) + len(unasked) - 1
    return what + (f", and {more:,} more" if more else "")
