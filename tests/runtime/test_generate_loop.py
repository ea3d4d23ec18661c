"""The decoding loop on a toy decoder: the same answers, whatever way the engine is driven."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_decoder import ToyDecoder, V, next_logits

from edgelm.runtime.errors import InputError
from edgelm.runtime.generate.answer import Answer
from edgelm.runtime.generate.held import Held
from edgelm.runtime.generate.loop import greedy, run_side_by_side, step
from edgelm.runtime.generate.options import GenerateOptions
from edgelm.runtime.generate.slots import Slots
from edgelm.runtime.generate.speculate import Draft, Guesser, PromptLookup

END = 7
PROMPTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=20)


def by_hand(prompt: list[int], max_tokens: int) -> list[int]:
    """The greedy answer, one token at a time from the oracle."""
    ids = list(prompt)
    while len(ids) - len(prompt) < max_tokens:
        ids.append(int(next_logits(ids).argmax()))
        if ids[-1] == END:
            break
    return ids[len(prompt) :]


def make(
    prompt: list[int], max_tokens: int = 12, guesser: Guesser | None = None, **options: object
) -> Answer:
    return Answer(
        prompt,
        GenerateOptions.of(**options),
        end_ids=frozenset({END}),
        max_tokens=max_tokens,
        guesser=guesser,
    )


def run(held: Held, answer: Answer) -> list[int]:
    while answer.finish_reason is None:
        step(held, answer, answer.ids)
    return answer.ids[answer.n_prompt :]


@given(st.lists(PROMPTS, min_size=1, max_size=7), st.integers(1, 4))
@settings(max_examples=60)
def test_side_by_side_is_one_by_one(prompts: list[list[int]], n_slots: int) -> None:
    session = ToyDecoder(n_slots)
    assert greedy(session, prompts, 12, [END]) == [by_hand(p, 12) for p in prompts]
    assert session.slots == [[] for _ in range(n_slots)]


@given(st.lists(PROMPTS, min_size=1, max_size=5))
@settings(max_examples=60)
def test_what_is_held_is_reused_and_never_wrong(prompts: list[list[int]]) -> None:
    session = ToyDecoder()
    held = Held(session)
    for prompt in prompts:
        assert run(held, make(prompt)) == by_hand(prompt, 12)
        before = session.n_computed
        answered = run(held, make(prompt))  # the prompt but its last token is held
        assert answered == by_hand(prompt, 12)
        assert session.n_computed - before == len(answered)


@given(st.lists(PROMPTS, min_size=2, max_size=3), st.lists(st.integers(0, 2), max_size=40))
@settings(max_examples=60)
def test_answers_that_take_turns_do_not_mix(prompts: list[list[int]], turns: list[int]) -> None:
    held = Held(ToyDecoder())
    answers = [make(p, guesser=PromptLookup(5) if i == 1 else None) for i, p in enumerate(prompts)]
    for turn in turns:
        answer = answers[turn % len(answers)]
        if answer.finish_reason is None:
            step(held, answer, answer.ids)
    assert [run(held, answer) for answer in answers] == [by_hand(p, 12) for p in prompts]


@given(PROMPTS)
@settings(max_examples=60)
def test_guesses_change_nothing_but_the_number_of_calls(prompt: list[int]) -> None:
    prompt = prompt * 2  # something to look up
    guessers = (PromptLookup(5), Draft(Held(ToyDecoder()), 5), Draft(Held(ToyDecoder(1, 50)), 5))
    for guesser in guessers:
        assert run(Held(ToyDecoder()), make(prompt, guesser=guesser)) == by_hand(prompt, 12)
    sampled = [
        run(Held(ToyDecoder()), make(prompt, guesser=guesser, temperature=1.0, seed=3))
        for guesser in (None, PromptLookup(5), Draft(Held(ToyDecoder()), 5))
    ]
    assert sampled[0] == sampled[1] == sampled[2]


def test_right_guesses_save_calls() -> None:
    # the oracle comes back to itself: its own answer, given as a prompt up to the middle
    loops = by_hand([1, 2, 3], 40)
    prompt = [1, 2, 3, *loops[:36]]
    for guesser in (PromptLookup(5), Draft(Held(ToyDecoder(context_tokens=128)), 5)):
        session = ToyDecoder(context_tokens=128)
        answered = run(Held(session), make(prompt, 24, guesser))
        assert answered == by_hand(prompt, 24)
        assert session.n_calls < len(answered) / 2


def test_a_common_beginning_is_computed_once() -> None:
    shared = list(range(10, 35))
    prompts = [[*shared, i] for i in range(3)]
    answers = [make(p, 3) for p in prompts]
    session = ToyDecoder(n_slots=3)
    run_side_by_side(session, answers)
    assert [a.ids[a.n_prompt :] for a in answers] == [by_hand(p, 3) for p in prompts]
    assert [a.n_reused for a in answers] == [0, len(shared), len(shared)]
    assert session.n_computed < len(shared) + 3 * 4


def test_an_error_leaves_the_slots_empty() -> None:
    session = ToyDecoder(n_slots=2, context_tokens=10)
    with pytest.raises(InputError):
        run_side_by_side(session, [make([1] * 4), make([2] * 30)])
    assert session.slots == [[], []]


def test_long_prompts_are_read_in_pieces() -> None:
    ids = list(np.random.default_rng(0).integers(0, V, 1100))
    session = ToyDecoder(context_tokens=2000)
    rows = Held(session).logits(ids[:-2], ids[-2:])
    assert session.n_calls == 3
    np.testing.assert_array_equal(rows, [next_logits(ids[:n]) for n in (1098, 1099, 1100)])


@given(st.lists(st.tuples(PROMPTS, st.integers(0, 6)), min_size=1, max_size=8), st.integers(1, 3))
@settings(max_examples=60)
def test_answers_join_and_leave_between_steps(
    asked: list[tuple[list[int], int]], n_slots: int
) -> None:
    session = ToyDecoder(n_slots)
    slots = Slots(session, keeps=True)
    answers = [make(prompt) for prompt, _ in asked]
    for answer, (_, pause) in zip(answers, asked, strict=True):
        slots.join(answer)
        for _ in range(pause):
            slots.step()
    slots.leave(answers[-1])
    while slots:
        slots.step()
    for answer, (prompt, _) in zip(answers[:-1], asked[:-1], strict=True):
        assert answer.ids[answer.n_prompt :] == by_hand(prompt, 12)
    again = make(asked[0][0])
    slots.join(again)
    while slots:
        slots.step()
    assert again.ids[again.n_prompt :] == by_hand(asked[0][0], 12)
    slots.clear()
    assert session.slots == [[] for _ in range(n_slots)]


def test_a_long_prompt_lets_others_go_on() -> None:
    session = ToyDecoder(2, context_tokens=4000)
    slots = Slots(session, keeps=True)
    short, long = make([1, 2], 40), make(list(np.random.default_rng(0).integers(8, V, 2000)), 2)
    slots.join(short)
    slots.step()
    slots.join(long)
    before = short.n_answer
    while long.n_answer == 0:
        slots.step()
    assert short.n_answer - before >= 3


def test_the_next_turn_reads_only_what_is_new() -> None:
    session = ToyDecoder(2)
    slots = Slots(session, keeps=True)
    first = make(list(range(10, 35)), 3)
    for answer in (first, make([8, 9], 3)):
        slots.join(answer)
        while slots:
            slots.step()
    turn = make([*first.ids, 12, 13], 3)
    before = session.n_computed
    slots.join(turn)
    slots.step()
    assert turn.n_reused == len(first.ids) - 1 and session.n_computed - before == 3
    assert turn.ids[turn.n_prompt :] == by_hand([*first.ids, 12, 13], 12)[: turn.n_answer]
