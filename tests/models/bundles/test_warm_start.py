"""A warm start begins with what the older model scores: number for number, whatever order the codewords are in."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from models.bundles.bundle import Bundle, create_bundle
from models.bundles.item_encoder import ItemEncoder
from models.codebooks.codebook import Codebook
from models.errors import SidstreamError
from models.examples.records import TrainingExample
from models.language.prompts import PromptSettings
from models.sids.census import count_tokens
from models.sids.layout import Layout

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
pytest.importorskip("onnx")

from models.bundles.building import FitSettings, fit_bundle, train_bundle  # noqa: E402
from models.bundles.first_model import ModelSettings, first_model  # noqa: E402
from models.bundles.model_of_bundle import load_language_model  # noqa: E402
from models.bundles.warm_start import Items, Origin, bundle_of_checkpoint, find_tokens  # noqa: E402
from models.language.language_model import ARCHITECTURES, Architecture  # noqa: E402
from models.training.settings import TrainingSettings  # noqa: E402

ITEMS, SIZE = 200, 8
IDS = [f"item-{row}" for row in range(ITEMS)]
EMBEDDINGS = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
EXAMPLES = [
    TrainingExample(f"thing {row}", item=IDS[row], user=f"user-{row % 7}", history=(IDS[row - 1], IDS[row - 2]))
    for row in range(ITEMS)
]
STILL = TrainingSettings(max_steps=1, learning_rate=1e-12, weight_decay=0.0, batch_size=8)
LEARNING = TrainingSettings(max_steps=25, learning_rate=1e-2, batch_size=32)
PROMPT = PromptSettings(max_history=2, max_text_tokens=4)
SMALL = ModelSettings(hidden_size=16, model_layers=1, heads=2, tokenizer_size=300, user_buckets=3, prompt=PROMPT)


def trained(directory: Path, architecture: Architecture = "llama", **fit: Any) -> Bundle:
    bundle = fit_bundle(EMBEDDINGS, directory, FitSettings(size=SIZE, iterations=3, **fit)).bundle
    return go_on(bundle, replace(SMALL, architecture=architecture), LEARNING)


def go_on(bundle: Bundle, model: ModelSettings, settings: TrainingSettings) -> Bundle:
    return train_bundle(bundle, EXAMPLES, IDS, codes_of(bundle), model, settings)[0]


def codes_of(bundle: Bundle) -> npt.NDArray[np.uint16]:
    return ItemEncoder.of(bundle).encode(EMBEDDINGS, [item.encode() for item in IDS])


def origin_of(old: Bundle, new: Bundle) -> Origin:
    return Origin(old, "older", find_tokens(old, new, Items(IDS, EMBEDDINGS), codes_of(new)))


def with_codebook(directory: Path, codebook: Codebook, embeddings: npt.NDArray[np.float32] = EMBEDDINGS) -> Bundle:
    codes = codebook.encode(embeddings)
    layout = Layout(1, codebook.id, codebook.layers, codebook.size)
    return create_bundle(directory, codebook, layout, census=count_tokens(codes, codebook.size))


def sid_scores(model: Any, prompts: Any, layout: Layout, codes: npt.NDArray[np.uint16], row: int) -> torch.Tensor:
    """(positions, L · M) logits of SID tokens after each token of a prompt with user, history and text, and of its SID."""
    vocabulary = prompts.vocabulary
    prompt = prompts.build(f"thing {row}", layout.sid_tokens(codes[[row - 2, row - 1]]), f"user-{row % 7}")
    sid = [vocabulary.sid_base + token for token in layout.sid_of(codes[row].tolist())]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + sid])).logits[0]
    scores: torch.Tensor = logits[:, vocabulary.sid_base :]
    return scores


def begun(origin: Origin, bundle: Bundle, **training: Any) -> Any:
    """The model before the first step."""
    first = first_model(
        ModelSettings(origin=origin),
        TrainingSettings(**training),
        layers=bundle.manifest.layers,
        size=bundle.manifest.size,
        texts=(),
    )
    first.model.eval()
    return first


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_before_the_first_step_are_the_older_models_where_the_codebook_is_the_same(
    tmp_path: Path, architecture: Architecture
) -> None:
    old = trained(tmp_path / "old", architecture, head_method="top-k", k=2)
    was, prompts = load_language_model(old)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    new = Bundle.open(tmp_path / "new")
    origin = origin_of(old, new)
    assert origin.tokens is None
    first = begun(origin, new)
    codes = codes_of(old)
    assert (first.prompts.vocabulary, first.prompts.settings) == (prompts.vocabulary, prompts.settings)
    assert first.architecture == architecture
    for row in (5, 77):
        expected = sid_scores(was, prompts, old.layout, codes, row)
        torch.testing.assert_close(
            sid_scores(first.model, first.prompts, new.layout, codes, row), expected, atol=1e-5, rtol=0
        )
    again, its = load_language_model(go_on(new, ModelSettings(origin=origin), STILL))
    torch.testing.assert_close(
        sid_scores(again, its, new.layout, codes, 5), sid_scores(was, prompts, old.layout, codes, 5), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("architecture", ["llama", "baichuan"])
def test_scores_move_with_the_codewords_where_the_new_codebook_is_a_permutation_of_the_old(
    tmp_path: Path, architecture: Architecture
) -> None:
    old = trained(tmp_path / "old", architecture)
    codebook = Codebook.load(old.codebook_path)
    orders = np.array([np.random.default_rng(layer).permutation(SIZE) for layer in range(3)])
    new = with_codebook(
        tmp_path / "new",
        Codebook(np.stack([codebook.codewords[layer][orders[layer]] for layer in range(3)])),
    )
    was, prompts = load_language_model(old)
    first = begun(origin_of(old, new), new)
    moved = torch.from_numpy((orders + SIZE * np.arange(3)[:, None]).ravel())
    for row in (5, 77):
        expected = sid_scores(was, prompts, old.layout, codes_of(old), row)[:, moved]
        found = sid_scores(first.model, first.prompts, new.layout, codes_of(new), row)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("layers", "size", "architecture"), [(4, 16, "llama"), (3, 4, "baichuan"), (3, 12, "qwen"), (4, 12, "baichuan")]
)
def test_codebook_of_another_shape_keeps_words_users_and_body_and_learns(
    tmp_path: Path, layers: int, size: int, architecture: Architecture
) -> None:
    old = trained(tmp_path / "old", architecture)
    new = fit_bundle(EMBEDDINGS, tmp_path / "new", FitSettings(layers=layers, size=size, iterations=3, seed=1)).bundle
    origin = origin_of(old, new)
    was, prompts = load_language_model(old)
    first = begun(origin, new)
    before, after = was.get_input_embeddings().weight, first.model.get_input_embeddings().weight
    base = prompts.vocabulary.sid_base
    assert after.shape[0] == first.prompts.vocabulary.total == base + layers * size
    assert torch.equal(after[:base], before[:base])
    head = first.model.get_output_embeddings().weight
    if architecture == "baichuan":
        assert head.shape == after.shape
        torch.testing.assert_close(head[:base], was.get_output_embeddings().weight[:base])
        torch.testing.assert_close(head.norm(dim=1), torch.ones(len(head)))
    else:
        assert head is after
    for layer in range(layers):
        rows = after[base + layer * size : base + (layer + 1) * size]
        if layer >= 3:  # a layer that is new begins at the mean
            torch.testing.assert_close(rows, before[base:].mean(0).expand(size, -1))
        else:
            theirs = before[base + layer * SIZE : base + (layer + 1) * SIZE]
            centre = theirs.mean(0)
            lengths, most = (rows - centre).norm(dim=1), (theirs - centre).norm(dim=1)
            assert (lengths <= most.max() + 1e-5).all(), "as far from one another as before"
            assert (lengths >= most.min() - 1e-5).sum() >= len(rows) / 2, "tokens with items"
            assert len(torch.unique(rows, dim=0)) > 1
    bundle = go_on(new, ModelSettings(origin=origin), LEARNING)
    record = bundle.manifest.language_model
    assert record is not None
    assert (record.vocabulary.user_buckets, record.prompt) == (3, PROMPT)
    load_language_model(bundle)


def test_record_says_where_a_model_came_from_and_an_older_reader_reads_it(tmp_path: Path) -> None:
    old = trained(tmp_path / "old")
    new = go_on(old, ModelSettings(origin=origin_of(old, old)), STILL)
    record = new.manifest.language_model
    assert record is not None
    assert record.base is not None
    assert (record.base.bundle, record.base.id, record.base.given) == (old.id, old.manifest.model_id, "older")
    assert record.base.pretrained is None
    assert new.manifest.format == old.manifest.format == 1

    class Older(msgspec.Struct, frozen=True):
        given: str
        id: str
        model_type: str

    read = msgspec.json.decode(msgspec.json.encode(record.base), type=Older)
    assert (read.given, read.id, read.model_type) == ("older", record.base.id, "llama")


def test_checkpoint_that_a_model_came_from_at_first_is_known_after_several_warm_starts(tmp_path: Path) -> None:
    old = trained(tmp_path / "old")
    shutil.copytree(old.model_directory, tmp_path / "plain")
    (tmp_path / "plain" / "sidstream_tokenizer.json").unlink()  # a checkpoint as others publish one
    first = go_on(old, ModelSettings(checkpoint=tmp_path / "plain", prompt=PROMPT), STILL)
    origin = origin_of(first, first)
    assert ModelSettings(origin=origin).learning_rate == ModelSettings(checkpoint=tmp_path).learning_rate
    second = go_on(first, ModelSettings(origin=origin), STILL)
    assert origin_of(second, second).pretrained == str(tmp_path / "plain")


def test_lora_trains_a_bundles_model_further(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    old = trained(tmp_path / "old")
    bundle = go_on(old, ModelSettings(origin=origin_of(old, old)), replace(LEARNING, lora=4))
    model, prompts = load_language_model(bundle)
    assert model.get_input_embeddings().weight.shape[0] == prompts.vocabulary.total
    record = bundle.manifest.language_model
    assert record is not None
    assert record.training["lora"] == 4


def test_embeddings_of_another_model_carry_tokens_over_by_the_items_that_both_catalogues_have(tmp_path: Path) -> None:
    """The other model's embeddings are the old ones, turned into ten dimensions; so are its codewords, in another order."""
    old = trained(tmp_path / "old")
    codebook = Codebook.load(old.codebook_path)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(10, 8)))[0].T.astype(np.float32)
    orders = np.array([np.random.default_rng(layer).permutation(SIZE) for layer in range(3)])
    words = np.stack([codebook.codewords[layer][orders[layer]] for layer in range(3)]) @ turn
    items = Items(IDS, EMBEDDINGS @ turn)
    new = with_codebook(tmp_path / "new", Codebook(words.astype(np.float32)), items.embeddings)
    codes = ItemEncoder.of(new).encode(items.embeddings, [item.encode() for item in IDS])
    with pytest.raises(SidstreamError, match=r"are of 8 dimensions.* of 10 dimensions.*--from-catalogue"):
        find_tokens(old, new, items, codes)
    for ids, embeddings, says in (
        (IDS, EMBEDDINGS[:, :6], "have 6 dimensions, the bundle .* takes 8"),
        (["gone"], EMBEDDINGS[:1], "has no item of the catalogue"),
    ):
        with pytest.raises(SidstreamError, match=says):
            find_tokens(old, new, items, codes, Items(ids, embeddings))
    backwards = Items(["gone", *IDS[150::-1]], np.concatenate((EMBEDDINGS[-1:], EMBEDDINGS[150::-1])))
    found = find_tokens(old, new, items, codes, backwards)
    assert found is not None
    assert found.known().all()
    was, prompts = load_language_model(old)
    first = begun(Origin(old, "older", found), new)
    moved = torch.from_numpy((orders + SIZE * np.arange(3)[:, None]).ravel())
    expected = sid_scores(was, prompts, old.layout, codes_of(old), 77)[:, moved]
    torch.testing.assert_close(
        sid_scores(first.model, first.prompts, new.layout, codes, 77), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("field", "says"), [("towers", "text towers"), ("embedding_model", "embedding model")])
def test_bundle_of_other_embeddings_by_their_names_is_refused_without_them(
    tmp_path: Path, field: str, says: str
) -> None:
    old = trained(tmp_path / "old")
    settings = FitSettings(size=SIZE, iterations=2, seed=1)
    new = fit_bundle(EMBEDDINGS, tmp_path / "new", settings, **{field: "others"}).bundle
    items = Items(IDS, EMBEDDINGS)
    with pytest.raises(SidstreamError, match=rf"of the {says} none, those of .* of the {says} others"):
        find_tokens(old, new, items, codes_of(new))
    assert find_tokens(old, new, items, codes_of(new), items) is not None


def test_directories_of_our_own_bundles_are_known_and_others_are_not(tmp_path: Path) -> None:
    old = trained(tmp_path / "old")
    assert bundle_of_checkpoint(old.directory) == old.directory
    assert bundle_of_checkpoint(old.model_directory) == old.directory
    alone = tmp_path / "alone"
    shutil.copytree(old.model_directory, alone)
    with pytest.raises(SidstreamError, match=r"without the bundle.*Give --from the whole bundle"):
        bundle_of_checkpoint(alone)
    with pytest.raises(SidstreamError, match="would be added a second time"):
        go_on(old, ModelSettings(checkpoint=old.model_directory), STILL)
    (alone / "sidstream_tokenizer.json").unlink()
    assert bundle_of_checkpoint(alone) is None
