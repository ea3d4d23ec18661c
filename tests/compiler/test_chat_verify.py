"""The oracle of generation, and what verification says of a decoder that is not quite it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_decoder import HfDecoder

pytest.importorskip("torch")

import tiny_chat
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from edgelm.compiler import load_recipe
from edgelm.compiler.cache import StageCache
from edgelm.compiler.chat import verify as chat_verify
from edgelm.compiler.chat.asking import (
    greedy_answers,
    ignore,
)
from edgelm.compiler.chat.data import ChatData, ChatReport, Conversation
from edgelm.compiler.chat.oracle import Oracle, choose_scored
from edgelm.compiler.chat.parity import check_prompt_ids, check_template
from edgelm.compiler.chat.reference import ChatReference
from edgelm.compiler.chat.samples import Sample
from edgelm.compiler.chat.verify import ChatVerify, compare, parity
from edgelm.compiler.context import Context, Source, VariantState
from edgelm.compiler.hf import load_model, load_tokenizer
from edgelm.compiler.passes.verify import require_verified
from edgelm.runtime.engine import Chunk, DecoderOptions
from edgelm.runtime.errors import VerificationError
from edgelm.runtime.generate.score import golden_row, logits_after
from edgelm.runtime.generate.template import ChatTemplate
from edgelm.runtime.manifest import Task, TextLimits
from edgelm.runtime.progress import Progress
from edgelm.runtime.tokenizer import Tokenizer
from edgelm.targets.base import Lowered

MAX_TOKENS = 200
SAID = (
    ("where is my parcel", "it is late, we'll see"),
    ("please cancel order 4711", "they're fine"),
    ("hello world, how's it going?", "hello again"),
    ("the refund is late", "numbers 1 22 333"),
)


def conversations() -> tuple[Conversation, ...]:
    rows: list[Conversation] = []
    for i, (asked, answer) in enumerate(SAID):
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answer},
        ]
        if i == 0:
            messages += [
                {"role": "user", "content": "and the refund?"},
                {"role": "assistant", "content": "hello"},
            ]
        rows.append(Conversation(Path("eval.jsonl"), i + 1, tuple(messages)))
    return tuple(rows)


def chat_data() -> ChatData:
    report = ChatReport("messages", ("messages",), 0, len(SAID), 0, (), ())
    return ChatData((), conversations(), report)


def perturb(model: Any, scale: float) -> Any:
    """A copy whose weights are a little off, as quantization makes them."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += scale * parameter.std() * noise
    return other


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and the one it was fine-tuned from."""
    root = tmp_path_factory.mktemp("models")
    tuned = tiny_chat.make_chat_model(root / "tuned", seed=1)
    return tuned, tiny_chat.make_chat_model(root / "base", seed=2)


@pytest.fixture(scope="module")
def context(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Context:
    """As it stands behind the reference pass."""
    tuned, base = folders
    tokenizer = load_tokenizer(tuned, padded=False)
    recipe = load_recipe(
        None,
        {
            "model": str(base),
            "task": "text-generation",
            "targets": ["gguf:q8_0"],
            "threads": 1,
            "verify.eval_tokens": 20,
            "verify.eval_answers": 12,
        },
    )
    made = Context(recipe, StageCache(tmp_path_factory.mktemp("cache")), Progress("quiet"))
    made.source = Source(base, {}, "base", None, None, MAX_TOKENS)
    made.chat = chat_data()
    made.training = {"method": "lora"}
    made.model_dir, made.model_key = tuned, "tuned"
    made.task = Task(
        "text-generation",
        end_ids=(int(tokenizer.eos_token_id),),
        chat=True,
        special_tokens={"eos_token": tokenizer.eos_token},
    )
    made.text = TextLimits(MAX_TOKENS)
    ChatReference().execute(made)
    return made


@pytest.fixture(scope="module")
def model(folders: tuple[Path, Path]) -> Any:
    return load_model(folders[0], Task("text-generation"), new_head=False)


def oracle_of(context: Context) -> Oracle:
    assert context.oracle is not None
    return context.oracle


def softmax(row: np.ndarray) -> np.ndarray:
    e = np.exp(row.astype(np.float64) - row.max())
    return e / e.sum()


def test_greedy_answers_are_those_of_generate(model: Any) -> None:
    rng = np.random.default_rng(0)
    V = model.config.vocab_size
    prompts = [rng.integers(5, V, n).tolist() for n in (3, 17, 1, 9, 30, 4)]
    free = greedy_answers(model, prompts, 12, [])
    ends = [free[0][4], free[3][7]]  # tokens that do occur
    model.generation_config = GenerationConfig()  # of its own, it would stop at another token
    for end_ids in ([], ends):
        found = greedy_answers(model, prompts, 12, end_ids)
        for prompt, answer in zip(prompts, found, strict=True):
            whole = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones((1, len(prompt))),
                do_sample=False, max_new_tokens=12, eos_token_id=end_ids or None, pad_token_id=0,
            )[0].tolist()[len(prompt) :]  # fmt: skip
            assert answer == [t for t in whole if t not in end_ids]


def test_tokens_are_spread_over_the_texts() -> None:
    sizes = [1, 2, 50, 3, 40]
    samples = [
        Sample(tuple(range(n + 2)), tuple(t >= 2 for t in range(n + 2))) for n in [*sizes, 0]
    ]
    scored = choose_scored(samples, 20)
    assert [s.n_kept for s in scored] == [1, 2, 7, 3, 7]
    assert [len(s.targets) for s in scored] == sizes
    assert scored[2].targets[0] == 2
    places = np.flatnonzero(scored[2].kept)
    assert np.diff(places).min() >= 7  # not all from the beginning
    assert [s.n_kept for s in choose_scored(samples, 10**6)] == sizes
    many = choose_scored(samples[:1] * 1000, 100)
    assert len(many) == 128  # twice as many as usual, until they hold enough
    assert sum(s.n_kept for s in many) == 100


def test_the_reference_is_kept_whole(context: Context, folders: tuple[Path, Path]) -> None:
    oracle = oracle_of(context)
    tuned, base = (AutoModelForCausalLM.from_pretrained(f, dtype="float32") for f in folders)
    tokenizer = load_tokenizer(folders[0], padded=False)
    losses, base_losses, tops = [], [], []
    for scored in oracle.scored:
        text = tokenizer.decode([scored.ids[t] for t in scored.targets])
        assert "<|im_end|>" in text
        assert "<|im_start|>" not in text
        with torch.inference_mode():
            logits = tuned(torch.tensor([scored.ids])).logits[0].numpy()
            others = base(torch.tensor([scored.ids])).logits[0].numpy()
        for t, kept in zip(scored.targets, scored.kept, strict=True):
            losses.append(-np.log(softmax(logits[t - 1])[scored.ids[t]]))
            base_losses.append(-np.log(softmax(others[t - 1])[scored.ids[t]]))
            if kept:
                tops.append(logits[t - 1].argmax())
                expected = np.log(softmax(logits[t - 1]))
                assert np.abs(oracle.log_probs[len(tops) - 1] - expected).max() < 0.02
    assert oracle.log_probs.shape == (20, tuned.config.vocab_size)
    assert oracle.top.tolist() == tops
    assert oracle.losses == pytest.approx(losses, abs=1e-5)
    assert oracle.base_loss == pytest.approx(np.mean(base_losses), abs=1e-5)
    assert context.reference_metrics["perplexity"] == pytest.approx(np.exp(np.mean(losses)))
    assert oracle.n_parameters == sum(p.numel() for p in tuned.parameters())


def test_prompts_are_conversations_then_earlier_turns_then_awkward_texts(context: Context) -> None:
    prompts = oracle_of(context).answers.prompts
    assert len({p.ids for p in prompts}) == 12
    assert [p.text for p in prompts[:6]] == [
        "and the refund?", *(asked for asked, _ in SAID[1:]), SAID[0][0], "a"
    ]  # fmt: skip
    tokenizer = load_tokenizer(context.model_dir, padded=False)  # type: ignore[arg-type]
    said = tokenizer.decode(prompts[0].ids)
    assert said.endswith("and the refund?<|im_end|>\n<|im_start|>assistant\n")
    assert "it is late" in said


def test_an_equal_model_is_equal(context: Context, model: Any) -> None:
    oracle = oracle_of(context)
    found = compare(HfDecoder(model), oracle, context.task.end_ids, ignore)  # type: ignore[union-attr]
    assert found.answers == oracle.answers.ids
    numbers = parity(oracle, found)
    assert (numbers.n, numbers.agreement, numbers.same_answers) == (20, 1.0, 1.0)
    assert numbers.first_divergence is None
    assert 0 <= numbers.kl_divergence < 1e-6  # type: ignore[operator]
    assert numbers.kl_p999 < 1e-5  # type: ignore[operator]
    assert numbers.max_abs_diff < 1e-5
    assert numbers.perplexity_ratio == pytest.approx(1, abs=1e-6)
    assert numbers.gain_kept == pytest.approx(1, abs=1e-5)


def test_another_model_is_told_by_a_slow_computation(context: Context, model: Any) -> None:
    oracle, other = oracle_of(context), perturb(model, 0.1)
    numbers = parity(oracle, compare(HfDecoder(other), oracle, context.task.end_ids, ignore))  # type: ignore[union-attr]
    kl, same, losses = [], [], []
    for scored in oracle.scored:
        with torch.inference_mode():
            a = model(torch.tensor([scored.ids])).logits[0].numpy()
            b = other(torch.tensor([scored.ids])).logits[0].numpy()
        for t, kept in zip(scored.targets, scored.kept, strict=True):
            p, q = softmax(a[t - 1]), softmax(b[t - 1])
            losses.append(-np.log(q[scored.ids[t]]))
            if kept:
                kl.append(sum(x * np.log(x / y) for x, y in zip(p, q, strict=True)))
                same.append(p.argmax() == q.argmax())
    assert numbers.kl_divergence == pytest.approx(np.mean(kl), rel=1e-3)
    assert numbers.kl_p999 == pytest.approx(np.quantile(kl, 0.999), rel=1e-3)
    assert numbers.agreement == pytest.approx(np.mean(same))
    assert 0.01 < np.mean(kl) < 1
    loss = np.mean(losses)
    assert numbers.perplexity_ratio == pytest.approx(np.exp(loss - oracle.loss), rel=1e-5)
    gain = oracle.base_loss - oracle.loss  # type: ignore[operator]
    if gain > 0:
        assert numbers.gain_kept == pytest.approx((oracle.base_loss - loss) / gain, rel=1e-4)  # type: ignore[operator]
    places = []
    for prompt, answer in zip(oracle.answers.prompts, oracle.answers.ids, strict=True):
        ids = list(prompt.ids)
        for at in range(oracle.answers.max_tokens):
            with torch.inference_mode():
                token = int(other(torch.tensor([ids])).logits[0, -1].argmax())
            if token in context.task.end_ids or at >= len(answer) or token != answer[at]:  # type: ignore[union-attr]
                if not (token in context.task.end_ids and at == len(answer)):  # type: ignore[union-attr]
                    places.append(at)
                break
            ids.append(token)
    assert numbers.first_divergence == pytest.approx(np.median(places))
    assert numbers.same_answers == pytest.approx(1 - len(places) / len(oracle.answers.ids))


class Engine:
    """A target whose engine is the given model."""

    engine_package = "numpy"

    def __init__(self, model: Any) -> None:
        self.session = HfDecoder(model, context_tokens=MAX_TOKENS)

    def open_decoder(self, folder: Path, variant: Any, text: TextLimits, options: DecoderOptions):
        return self.session


def verified(
    context: Context, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **limits: float
) -> tuple[Context, Engine]:
    engine = Engine(model)
    monkeypatch.setattr(chat_verify, "get_target", lambda name: engine)
    recipe = replace(context.recipe, verify=replace(context.recipe.verify, **limits))
    mine = replace(context, recipe=recipe, cache=StageCache(tmp_path), variants={})
    mine.digests["lower gguf-q8_0"] = "lowered"
    mine.variants["gguf-q8_0"] = VariantState(
        "gguf-q8_0", "gguf", "q8_0", tmp_path, Lowered((), {})
    )
    ChatVerify("gguf-q8_0").execute(mine)
    return mine, engine


def test_a_good_variant_passes(
    context: Context, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine, engine = verified(context, model, monkeypatch, tmp_path)
    state = mine.variants["gguf-q8_0"]
    assert (state.failures, state.worst) == ((), ())
    assert engine.session.is_closed
    assert state.metrics["loss"] == pytest.approx(context.reference_metrics["loss"])
    assert state.golden is not None
    assert state.golden.shape == (len(mine.golden), 2)
    require_verified(mine)


def test_a_limit_that_is_missed_is_told_with_examples(
    context: Context, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine, _ = verified(context, perturb(model, 0.1), monkeypatch, tmp_path, max_kl_p999=0.01)
    state = mine.variants["gguf-q8_0"]
    assert state.parity is not None
    worst = state.worst[0]
    with pytest.raises(VerificationError) as err:
        require_verified(mine)
    said = err.value.message
    assert f"gguf-q8_0: mean KL divergence {state.parity.kl_divergence:.2e} is over the" in said
    assert f"99.9 % KL divergence {state.parity.kl_p999:.2e} is over the limit 1.00e-02" in said
    assert f"{worst.text[:70]!r}: reference " in said
    assert f"(apart at token {worst.difference:g})" in said
    places = [w.difference for w in state.worst]
    assert places == sorted(places)
    assert worst.reference != worst.answer
    # another limit applies to the same comparison: the engine is not asked again
    monkeypatch.setattr(ChatVerify, "run", None)
    loose = dict.fromkeys(("max_kl", "max_kl_p999", "max_perplexity_ratio"), 1e3)
    again, _ = verified(
        context, model, monkeypatch, tmp_path, **loose, min_agreement=0.0, min_gain_kept=0.0
    )
    assert not [f for f in again.variants["gguf-q8_0"].failures if "keeps" not in f]


def test_nan_never_passes(
    context: Context, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters())[5:] = float("nan")
    loose = dict.fromkeys(("max_kl", "max_kl_p999", "max_perplexity_ratio"), 1e9)
    mine, _ = verified(context, broken, monkeypatch, tmp_path, min_agreement=0.0, **loose)
    assert "NaN" in mine.variants["gguf-q8_0"].failures[0]


def test_another_vocabulary_is_refused(context: Context, model: Any) -> None:
    session = HfDecoder(model)
    session.n_vocab += 1
    with pytest.raises(VerificationError, match="logits") as refused:
        compare(session, oracle_of(context), (), ignore)
    assert "edgelm targets" in str(refused.value.hint)


def test_logits_in_blocks_are_those_of_all_tokens(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgelm.runtime.generate import score

    monkeypatch.setattr(score, "BLOCK_TOKENS", 4)
    monkeypatch.setattr(score, "PIECE_TOKENS", 7)
    ids = np.random.default_rng(3).integers(5, model.config.vocab_size, 40).tolist()
    session = HfDecoder(model)
    expected = session.extend([Chunk(0, np.asarray(ids, np.int32), len(ids))]).copy()
    for wanted in ([0], [39], list(range(40)), [3, 4, 20, 21, 22, 23, 24, 30], [15, 38]):
        found = {
            wanted[i]: row.copy()
            for which, rows in logits_after(session, ids, wanted)
            for i, row in zip(range(which.start, which.stop), rows, strict=True)
        }
        assert list(found) == wanted
        for at, row in found.items():
            assert row == pytest.approx(expected[at], abs=1e-5)
        assert session.length(0) == 0
    losses = [-np.log(softmax(expected[t - 1])[ids[t]]) for t in range(1, 40)]
    assert golden_row(session, ids) == pytest.approx(
        (np.mean(losses), expected[-1].max()), rel=1e-5
    )
    assert golden_row(session, ids[:1]) == pytest.approx((0.0, expected[0].max()), rel=1e-5)


def test_other_token_ids_or_prompts_are_refused(context: Context, tmp_path: Path) -> None:
    assert context.tokenizer_dir and context.task and context.text
    tokenizer = load_tokenizer(context.model_dir, padded=False)  # type: ignore[arg-type]
    path = context.tokenizer_dir / "tokenizer.json"
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed), encoding="utf-8")
    runtime = Tokenizer(tmp_path, context.text, truncates=False)
    with pytest.raises(VerificationError, match="token ids of 'a  b' differ"):
        check_prompt_ids(tokenizer, runtime, [("a  b", False)])
    template = (context.tokenizer_dir / "chat_template.jinja").read_text(encoding="utf-8")
    check_template(tokenizer, ChatTemplate(template, {}), conversations())
    other = ChatTemplate(template.replace("assistant\n", "assistant:"), {})
    with pytest.raises(VerificationError, match=r"eval\.jsonl, row 1: .*assistant:"):
        check_template(tokenizer, other, conversations())
