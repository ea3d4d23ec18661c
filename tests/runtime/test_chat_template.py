"""Chat templates: the text that Hugging Face makes, and what a template may not do."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from edgelm.runtime.errors import BundleError, InputError
from edgelm.runtime.generate.template import ChatTemplate

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "llamacpp_templates"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief.\n你好"},
    {"role": "user", "content": " What's  2+2? <b>&amp;</b> "},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "Sure?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def by_hugging_face(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    """The same by transformers' own renderer."""
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    tools = options.pop("tools", None)
    (text,), _ = render_jinja_template([messages], tools=tools, chat_template=source, **options)
    return text


SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


@pytest.mark.parametrize("prompts", [True, False])
def test_the_text_is_hugging_faces(prompts: bool) -> None:
    found = ChatTemplate(CHATML, SPECIAL).render(TALK, add_generation_prompt=prompts)
    wanted = by_hugging_face(CHATML, TALK, add_generation_prompt=prompts, **SPECIAL)
    assert found == wanted
    assert found.startswith("<|im_start|>system\nBe brief.")


def test_templates_are_told_the_date() -> None:
    form = "%d %b %Y, %H:%M"
    before = datetime.now().replace(second=0, microsecond=0)
    text = ChatTemplate(f"{{{{ strftime_now('{form}') }}}}", {}).render(TALK)
    assert before <= datetime.strptime(text, form) <= datetime.now()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
def test_real_templates_give_hugging_faces_text() -> None:
    files = sorted(SHARED.glob("*.jinja"))
    assert len(files) > 10
    n_rendered = 0
    for file in files:
        source = file.read_text(encoding="utf-8")
        for messages in (TALK, TALK[1:], TALK[1:2]):
            for tools in (None, TOOLS):
                options: dict[str, Any] = dict(add_generation_prompt=True, tools=tools)
                try:
                    wanted = by_hugging_face(source, messages, **options, **SPECIAL)
                except Exception:  # noqa: BLE001 a template may refuse; then ours must as well
                    with pytest.raises(InputError):
                        ChatTemplate(source, SPECIAL).render(messages, **options)
                    continue
                assert ChatTemplate(source, SPECIAL).render(messages, **options) == wanted, file
                n_rendered += 1
    assert n_rendered > 40


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{{ range(10 ** 12) | list }}",
        "{{ messages.append(1) }}",
        "{{ lipsum(n=2000) }}" * 40,
        "{% for m in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_hostile_and_failing_templates_end_in_an_error(source: str) -> None:
    try:
        text = ChatTemplate(source, SPECIAL).render(TALK)
    except (BundleError, InputError):
        return
    assert text == "", "what the sandbox makes undefined prints nothing"


def test_what_a_template_refuses_is_told() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(InputError, match="roles must alternate"):
        template.render(TALK)
    with pytest.raises(BundleError, match="cannot be read"):
        ChatTemplate("{% for %}", {})
