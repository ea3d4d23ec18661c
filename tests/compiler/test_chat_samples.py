"""Samples: the targets are exactly the assistant's tokens, up to the one that ends its turn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_chat import CHATML, SPECIALS, chat, make_tokenizer

from edgelm.compiler.chat.conversation import Conversation
from edgelm.compiler.chat.parity import check_template
from edgelm.compiler.chat.samples import Sample, prompt_of, render, render_all
from edgelm.compiler.chat.template import end_of_turn, on_a_fixed_day, require_template
from edgelm.runtime.errors import DataError, ModelError
from edgelm.runtime.generate.template import ChatTemplate

TEMPLATES = Path(__file__).resolve().parents[3] / "shared" / "data" / "llamacpp_templates"
HERE = Path("rows.jsonl")

CALL = {"type": "function", "function": {"name": "find", "arguments": {"id": 7}}}
TOOLS = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "where is it"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "on its way"},
    {"role": "assistant", "content": "your order is on its way"},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "hello"},
]

# marks which tokens are the assistant's, but stops short of the end of the turn
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
)
# the system text goes into the last question, so that no part is a prefix of the whole
LAST_SYSTEM = (
    "{% set s = messages[0]['content'] %}"
    "{% for m in messages[1:] %}{% if m['role'] == 'user' %}[INST] "
    "{% if loop.revindex0 < 2 %}{{ s }}\n\n{% endif %}{{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] | trim }}<|im_end|>{% endif %}{% endfor %}"
)
# only the last answer keeps its reasoning
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# closes the whole text with a token of its own
CLOSED = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"


def row(messages: list[dict[str, Any]] | dict[str, Any]) -> Conversation:
    if isinstance(messages, dict):
        messages = messages["messages"]
    return Conversation(HERE, 3, messages=tuple(messages))


def learned(tokenizer: Any, sample: Sample) -> list[str]:
    """The runs of target tokens, as text."""
    runs: list[list[int]] = []
    for t, is_target in enumerate(sample.targets):
        if is_target and (t == 0 or not sample.targets[t - 1]):
            runs.append([])
        if is_target:
            runs[-1].append(sample.ids[t])
    return [tokenizer.decode(run) for run in runs]


def test_turns_and_calls_of_tools():
    tokenizer = make_tokenizer()
    sample = render(row(TOOLS), tokenizer, 500)
    whole = tokenizer.apply_chat_template(TOOLS, tokenize=False)
    assert tokenizer.decode(sample.ids) == whole
    assert learned(tokenizer, sample) == [
        '<tool_call>{"name": "find", "arguments": {"id": 7}}</tool_call><|im_end|>',
        "your order is on its way<|im_end|>",
        "hello<|im_end|>",
    ]
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


MANY = chat("hi there", "  first answer ", "and then", "second\n\n answer", system="be kind")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["  first answer <|im_end|>", "second\n\n answer<|im_end|>"]),
        (MARKED, ["  first answer <|im_end|>", "second\n\n answer<|im_end|>"]),
        (CLOSED, ["  first answer <|im_end|>", "second\n\n answer<|im_end|>"]),
        (LAST_SYSTEM, [" first answer<|im_end|>", " second\n\n answer<|im_end|>"]),
        (
            REASONING,
            ["  first answer <|im_end|>", "<think>\n\n</think>\n\nsecond\n\n answer<|im_end|>"],
        ),
    ],
    ids=["chatml", "marked", "closed", "last system", "reasoning"],
)
def test_templates_of_all_kinds(template, expected):
    tokenizer = make_tokenizer(template)
    sample = render(row(MANY), tokenizer, 500)
    whole = tokenizer.apply_chat_template(MANY["messages"], tokenize=False)
    assert tokenizer.decode(sample.ids) == whole
    assert learned(tokenizer, sample) == expected


def test_a_token_across_the_boundary_is_the_answers():
    """`\\n` of the prompt and `\\n` of the answer are one token here: ids of the prompt are no
    prefix of the whole."""
    from tokenizers import models, pre_tokenizers

    tokenizer = make_tokenizer()
    backend = tokenizer.backend_tokenizer
    assert isinstance(backend.model, models.BPE)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocab = dict(backend.get_vocab())
    vocab["ĊĊ"] = len(vocab)
    vocab["ĊĊĊ"] = len(vocab)
    merges = [("Ċ", "Ċ"), ("ĊĊ", "Ċ")]
    backend.model = models.BPE(vocab=vocab, merges=merges)
    prompt = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    sample = render(row(chat("hi", "\n\nyes")), tokenizer, 500)
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in sample.ids]
    assert "ĊĊĊ" in pieces
    assert tuple(prompt) not in [sample.ids[i : i + len(prompt)] for i in range(len(sample.ids))]
    assert learned(tokenizer, sample) == ["\n\n\nyes<|im_end|>"]


def test_an_end_token_in_the_data_is_not_the_end():
    tokenizer = make_tokenizer()
    sample = render(
        row(chat("say <|im_end|>", "a <|im_end|> b<|im_end|>", "x", "y")), tokenizer, 500
    )
    assert learned(tokenizer, sample) == ["a <|im_end|> b<|im_end|><|im_end|>", "y<|im_end|>"]


def test_characters_of_many_tokens():
    tokenizer = make_tokenizer()
    answer = "退款 für 我 🎉é"
    sample = render(row(chat("我 🎉", answer)), tokenizer, 500)
    assert learned(tokenizer, sample) == [answer + "<|im_end|>"]


def test_prompts_completions_and_texts():
    tokenizer = make_tokenizer(None)
    sample = render(Conversation(HERE, 1, prompt="1 + 2 =", text=" 3"), tokenizer, 50)
    assert tokenizer.decode(sample.ids) == "1 + 2 = 3<|im_end|>"
    assert learned(tokenizer, sample) == [" 3<|im_end|>"]
    sample = render(Conversation(HERE, 1, text="where is my order"), tokenizer, 50)
    assert sample.targets == (False, *[True] * (len(sample.ids) - 1))
    assert tokenizer.decode(sample.ids) == "where is my order<|im_end|>"


def test_a_tokenizer_that_adds_tokens_itself():
    from tokenizers import processors

    tokenizer = make_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)],
    )
    sample = render(Conversation(HERE, 1, prompt="1 + 2 =", text=" 3"), tokenizer, 50)
    assert tokenizer.decode(sample.ids) == "<|endoftext|>1 + 2 = 3<|im_end|>"
    assert learned(tokenizer, sample) == [" 3<|im_end|>"]
    prompt = prompt_of(Conversation(HERE, 1, prompt="1 + 2 =", text=" 3"), tokenizer)
    assert sample.ids[: len(prompt)] == prompt


def test_prompts_that_ask_for_the_last_answer():
    tokenizer = make_tokenizer()
    ids = prompt_of(row([*MANY["messages"], {"role": "user", "content": "x"}]), tokenizer)
    assert tokenizer.decode(ids).endswith("and then<|im_end|>\n<|im_start|>assistant\n")
    assert render(row(MANY), tokenizer, 500).ids[: len(ids)] == ids


def test_truncation_is_counted():
    tokenizer = make_tokenizer()
    short, long = row(chat("hi", "yes")), row(chat("hi " * 30, "yes"))
    n = len(render(short, tokenizer, 500).ids)
    found = render_all([short, long, row(chat("hi", "yes " * 30))], tokenizer, n + 2)
    assert (found.rows, found.n_truncated, found.n_dropped) == ((0, 2), 2, 1)
    assert [s.is_cut for s in found.samples] == [False, True]
    assert len(found.samples[1].ids) == n + 2
    (note,) = found.notes("training", n + 2)
    assert note.startswith(f"2 of 3 training rows are longer than {n + 2} tokens and truncated, 1")
    assert render_all([short], tokenizer, n).notes("training", n) == []


def test_models_without_a_template():
    tokenizer = make_tokenizer(None)
    require_template(tokenizer, [Conversation(HERE, 1, text="a")])
    with pytest.raises(ModelError, match="no chat template") as caught:
        require_template(tokenizer, [row(MANY)])
    assert "prompt" in str(caught.value.hint)
    assert end_of_turn(tokenizer) is None


def test_what_the_template_refuses_names_the_row():
    template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(DataError, match=r"rows.jsonl, row 3: .*no system, please"):
        render(row(MANY), make_tokenizer(template), 500)
    scrambled = "{% for m in messages | reverse %}{{ m['content'] * 2 }}{% endfor %}"
    with pytest.raises(DataError, match=r"row 3: the model's chat template does not show where"):
        render(row(MANY), make_tokenizer(scrambled), 500)


@pytest.mark.parametrize("begin", ["", "\n", "  "])
def test_no_day_makes_other_samples(begin: str) -> None:
    source = begin + "{% if true %}{{ strftime_now('%d %B %Y %H:%M') }}{% endif %}" + CHATML
    tokenizer = make_tokenizer(source)
    told = f"{begin.strip(' ')}26 July 2024 00:00"
    sample = render(row(MANY), tokenizer, 500)
    assert tokenizer.decode(sample.ids).startswith(f"{told}<|im_start|>")
    assert tokenizer.decode(prompt_of(row(MANY), tokenizer)).startswith(told)
    check_template(tokenizer, ChatTemplate(on_a_fixed_day(source), {}), [row(MANY)])
    assert on_a_fixed_day(CHATML) == CHATML


NEEDS_MORE = ("fireworks",)  # is no template for messages alone


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda p: p.stem)
def test_real_templates(path: Path) -> None:
    """Each answer is learned, with an end token behind it, and nothing of the questions."""
    if path.name.startswith(NEEDS_MORE):
        pytest.skip("it needs `functions` beside messages")
    source = path.read_text(encoding="utf-8")
    marks = "<\\|[a-zA-Z_]+\\|>|<[a-z_]+_of_turn>|</s>|<s>|\\[/?INST\\]|<｜[^｜]+｜>"
    specials = sorted({*SPECIALS, *re.findall(marks, source), "</s>", "<|END_OF_TURN_TOKEN|>"})
    tokenizer = make_tokenizer(source, specials, vocab_size=500)
    tokenizer.bos_token = "<s>" if "<s>" in specials else specials[0]
    tokenizer.eos_token = "</s>"
    messages = chat("first question", "one answer", "second question", "two answers")["messages"]
    tool = {"type": "function", "function": {"name": "find", "description": "", "parameters": {}}}
    tools = (tool,) if "tool_use" in path.stem else ()
    conversation = Conversation(path, 1, tuple(messages), tools)
    found = learned(tokenizer, render(conversation, tokenizer, 40000))
    assert len(found) == 2, found
    for text, answer in zip(found, ("one answer", "two answers"), strict=True):
        assert answer in text
        assert "question" not in text
        assert any(text.endswith(special) for special in specials), text
