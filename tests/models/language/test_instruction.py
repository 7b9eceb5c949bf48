"""Instructions: slots and what is left out with them, alignment tasks' own words, and a chat template around them, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import SidstreamError
from models.language.instruction import (
    DEFAULT_INSTRUCTION,
    TASK_INSTRUCTIONS,
    InstructionPart,
    framed,
    parse_instruction,
    task_instruction,
)
from models.language.tokenizer import TextTokenizer, train_tokenizer

transformers = pytest.importorskip("transformers")

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>[INST] {{ message['content'] | trim }} [/INST]"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def checkpoint(directory: Path, template: str | None) -> Path:
    own = train_tokenizer(["red shoes", "blue hat"] * 9, size=300)._tokenizer
    own.add_special_tokens(["<s>", "<|user|>", "<|assistant|>"])
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>")
    theirs.chat_template = template
    theirs.save_pretrained(directory)
    return directory


def test_parts_are_the_slots_with_what_stands_around_them() -> None:
    assert parse_instruction("[Bought {history}. ]Find {query}, please") == (
        InstructionPart("Bought ", "history", ". "),
        InstructionPart("Find "),
        InstructionPart(slot="query"),
        InstructionPart(", please"),
    )
    assert [part.slot for part in parse_instruction(DEFAULT_INSTRUCTION)] == ["user", "history", "query", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{query} after {history}", "each may be there once, in the order"),
        ("{query} and {query}", "each may be there once"),
        ("{price} of {query}", r"the slot \{price\}"),
        ("[for nobody] {query}", "what may be left out needs one slot"),
        ("[{history} {query}]", "what may be left out needs one slot"),
    ],
)
def test_instruction_that_cannot_be_filled_is_refused(text: str, message: str) -> None:
    with pytest.raises(SidstreamError, match=message):
        parse_instruction(text)


@pytest.mark.parametrize("task", TASK_INSTRUCTIONS)
def test_words_of_a_task_name_an_item_or_a_text_and_are_framed_as_the_prompts_are(task: str) -> None:
    slot = "history" if task == "sid-to-title" else "query"
    for bare in (True, False):
        parts = task_instruction(task, bare=bare, frame=("<", ">"))  # type: ignore[arg-type]
        assert [part.slot for part in parts if part.slot] == [slot]
        assert (parts[0].before == "<") is (parts[-1].before == ">") is not bare


def test_chat_template_is_applied_once_and_comes_back_with_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_checkpoint(checkpoint(tmp_path / "chat", TEMPLATE))
    # Without its begin-of-sequence token, which every prompt has already.
    assert tokenizer.chat_frame == ("<|user|>[INST] ", " [/INST]<|assistant|>")
    tokenizer.save(tmp_path)
    assert TextTokenizer.load(tmp_path).chat_frame == tokenizer.chat_frame
    parts = framed(parse_instruction("Find {query}"), tokenizer.chat_frame)
    assert [part.before for part in parts] == ["<|user|>[INST] ", "Find ", "", " [/INST]<|assistant|>"]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert len(tokenizer.encode("<|user|>")) == 1 == len(theirs("<|user|>", add_special_tokens=False)["input_ids"])


def test_tokenizer_without_a_template_has_no_frame(tmp_path: Path) -> None:
    tokenizer = TextTokenizer.from_checkpoint(checkpoint(tmp_path, None))
    assert tokenizer.chat_frame is None
    assert framed(parse_instruction("{query}"), None) == parse_instruction("{query}")


@pytest.mark.parametrize("template", ["{{ raise_exception('system first') }}", "nothing of the message", "{% for"])
def test_template_that_one_message_cannot_be_written_into_is_refused_where_it_is_needed_alone(
    tmp_path: Path, template: str
) -> None:
    tokenizer = TextTokenizer.from_checkpoint(checkpoint(tmp_path, template))
    tokenizer.save(tmp_path)  # bare prompts train and serve with it
    assert TextTokenizer.load(tmp_path).chat_frame is None
    with pytest.raises(SidstreamError, match=r"the chat template of .* cannot be applied to one message") as refused:
        _ = tokenizer.chat_frame
    assert "\n" not in str(refused.value)
