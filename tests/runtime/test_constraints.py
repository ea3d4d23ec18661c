"""Constrained answers: what is allowed is compared with a slow oracle, answers with their rule."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgelm.runtime.errors import BundleError, InputError, MissingExtra, UsageError
from edgelm.runtime.generate.constraints import MAX_RULES, Constraint, Constraints
from edgelm.runtime.generate.detokenize import Detokenizers

TEXTS = ['{"name": "Ann", "tags": ["a", "bc"], "age": 12.5}', "yes no maybe", '{"kind": true}\n  ']
END, OTHER_END, N_PADDING = 1, 2, 13
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "bc"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(TEXTS, trainer)
    return tok


@pytest.fixture(scope="module")
def path(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(found))
    return found


@pytest.fixture(scope="module")
def constraints(tokenizer: Tokenizer, path: Path) -> Constraints:
    return Constraints(path, (END, OTHER_END), tokenizer.get_vocab_size() + N_PADDING)


def answer(constraint: Constraint, tokenizer: Tokenizer, seed: int, max_tokens: int = 300) -> str:
    """A random walk over what is allowed, which ends where it may."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    while not constraint.is_complete:
        assert len(ids) < max_tokens
        logits = rng.standard_normal(tokenizer.get_vocab_size() + N_PADDING, dtype=np.float32)
        constraint.mask(logits)
        token_id = int(logits.argmax())
        assert logits[token_id] > -np.inf
        constraint.accept(token_id)
        if token_id in (END, OTHER_END):
            break
        ids.append(token_id)
    return tokenizer.decode(ids)


def test_schema_answers_parse_and_follow_the_schema(
    constraints: Constraints, tokenizer: Tokenizer
) -> None:
    constraint = constraints.json_schema(SCHEMA)
    seen = set()
    for seed in range(40):
        found = json.loads(answer(constraint.fresh(), tokenizer, seed))
        assert set(found) - {"tags"} == {"name", "age"}
        assert isinstance(found["name"], str) and len(found["name"]) <= 5
        assert type(found["age"]) is int and 0 <= found["age"] <= 130
        assert len(found.get("tags", [])) <= 3 and set(found.get("tags", [])) <= {"a", "bc"}
        seen.add("tags" in found)
    assert seen == {True, False}


def test_a_schema_may_be_text_and_empty(constraints: Constraints, tokenizer: Tokenizer) -> None:
    constraint = constraints.json_schema('{"enum": [[1, null], "é\\n"]}')
    assert {answer(constraint.fresh(), tokenizer, seed) for seed in range(20)} > {'"é\\n"'}
    anything = constraints.json_schema({})
    for text in ('{"a":[1.5e3,true]}', '"x"', "[\n  1\n]"):
        feed(anything.fresh(), tokenizer, text)


def feed(constraint: Constraint, tokenizer: Tokenizer, text: str) -> Constraint:
    for token_id in tokenizer.encode(text, add_special_tokens=False).ids:
        assert constraint.allowed()[token_id], text
        constraint.accept(token_id)
    return constraint


CHOICES = ["yes", "no", "no way", "n", "maybe\n", 'a"b\\c', "é😀", "\x00 #/|*\u2028", "ja"]
KINDS = [list(one) for n in (1, 2, 3) for one in itertools.product(("ab", "cd"), repeat=n)]
AB = ["".join(one) + end for one in KINDS for end in ("", "é")]
LANGUAGES: list[tuple[Callable[[Constraints], Constraint], list[str]]] = [
    (lambda make: make.choices(CHOICES), CHOICES),
    (lambda make: make.regex("(ab|cd){1,3}é?"), AB),
    (lambda make: make.grammar('start: (A | "cd"){1,3} "é"?\nA: /ab/'), AB),
    (lambda make: make.grammar('root ::= item item? item? "é"? # c\nitem ::= "ab" | [c] "d"'), AB),
    (
        lambda make: make.json_schema(
            {"items": {"enum": ["a", 1]}, "type": "array", "maxItems": 2}
            | {"x-guidance": {"whitespace_flexible": False, "whitespace_pattern": None}}
        ),
        ["[]", '["a"]', "[1]", '["a",1]', '["a","a"]', "[1,1]", '[1,"a"]'],
    ),
]


@pytest.mark.parametrize(("made", "language"), LANGUAGES)
def test_what_is_allowed_equals_an_oracle_that_tries_each_token(
    made: Callable[[Constraints], Constraint],
    language: list[str],
    constraints: Constraints,
    tokenizer: Tokenizer,
) -> None:
    texts = Detokenizers(tokenizer)
    V = tokenizer.get_vocab_size() + N_PADDING
    words = [word.encode() for word in language]
    start = made(constraints)
    for seed in range(30):
        rng, constraint, said = np.random.default_rng(seed), start.fresh(), b""
        while True:
            expected = {
                i
                for i in range(V)
                if (piece := texts.token_bytes(i))
                and any(word.startswith(said + piece) for word in words)
            }
            if said in words:
                expected |= {END, OTHER_END}
            left = [word[len(said) :] for word in words if word.startswith(said)]
            if os.path.commonprefix(left):  # noqa: RUF071
                # No way round these bytes: they may be cut as the tokenizer cuts them, only.
                expected = set(constraint.forced()[:1]) & expected or expected
            allowed = constraint.allowed()
            assert allowed.shape == (V,) and set(np.flatnonzero(allowed)) == expected
            logits = rng.standard_normal(V, dtype=np.float32)
            before = logits.copy()
            constraint.mask(logits)
            np.testing.assert_array_equal(logits, np.where(allowed, before, -np.inf))
            assert constraint.is_complete == (expected <= {END, OTHER_END})
            token_id = int(rng.choice(sorted(expected)))
            constraint.accept(token_id)
            if token_id in (END, OTHER_END):
                break
            said += texts.token_bytes(token_id)
        assert said in words and constraint.is_complete


def test_each_choice_can_be_the_answer(constraints: Constraints, tokenizer: Tokenizer) -> None:
    start = constraints.choices(CHOICES)
    assert {answer(start.fresh(), tokenizer, seed) for seed in range(300)} == set(CHOICES)


def test_forced_tokens_are_the_tokenizers_own_and_lead_to_the_same_text(
    constraints: Constraints, tokenizer: Tokenizer
) -> None:
    constraint = constraints.choices(["yes no maybe", "yes no yes"])
    forced = constraint.forced()
    assert forced and tokenizer.encode("yes no maybe").ids[: len(forced)] == forced
    for token_id in forced:
        constraint.accept(token_id)
    assert len(constraint.allowed().nonzero()[0]) > 1 and constraint.forced() == []
    feed(constraint, tokenizer, " yes" if len(forced) == 2 else "yes")
    assert constraint.is_complete and constraint.forced() == []


def test_padding_and_truncation_in_the_file_change_no_forced_token(
    constraints: Constraints, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.enable_padding(length=99)
    other.enable_truncation(1)
    other.save(str(tmp_path / "tokenizer.json"))
    V = tokenizer.get_vocab_size() + N_PADDING
    made = Constraints(tmp_path / "tokenizer.json", [END], V).choices(["maybe yes", "maybe no"])
    assert made.forced() == constraints.choices(["maybe yes", "maybe no"]).forced() != []


def test_white_space_has_an_end(constraints: Constraints, tokenizer: Tokenizer) -> None:
    constraint = feed(constraints.json_schema(SCHEMA), tokenizer, "{\n\n" + 20 * " ")
    texts = Detokenizers(tokenizer)
    allowed = np.flatnonzero(constraint.allowed())
    assert {texts.token_bytes(int(i))[:1] for i in allowed} == {b'"'}


def test_escapes_of_printable_characters_are_json_too(
    constraints: Constraints, tokenizer: Tokenizer
) -> None:
    feed(constraints.json_schema({"type": "string"}), tokenizer, '"caf\\u00e9 \\ud83d\\ude00"')


def test_a_tokenizer_with_more_tokens_than_the_model(path: Path, tokenizer: Tokenizer) -> None:
    V = tokenizer.get_vocab_size() - 20
    constraint = Constraints(path, [END], V).regex("[a-z ]+")
    logits = np.zeros(V, np.float32)
    constraint.mask(logits)
    assert constraint.allowed().shape == (V,) and (logits == 0).sum() == constraint.allowed().sum()
    assert all(token_id < V for token_id in constraint.forced())


def test_ids_without_a_token_do_not_hide_those_above_them(tmp_path: Path) -> None:
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocab = {letter: i for i, letter in enumerate(sorted(letters))} | {"yes": 400, "<e>": 500}
    tok = Tokenizer(models.BPE(vocab, []))
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<e>"])
    tok.save(str(tmp_path / "tokenizer.json"))
    constraint = Constraints(tmp_path / "tokenizer.json", [500], 510).choices(["yes", "yesno", "n"])
    assert set(np.flatnonzero(constraint.allowed())) == {400, vocab["y"], vocab["n"]}
    constraint.accept(400)
    assert set(np.flatnonzero(constraint.allowed())) == {500, vocab["n"]}


def test_a_tokenizer_that_falls_back_on_bytes(tmp_path: Path) -> None:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁yes", "é"]
    vocab = {name: i for i, name in enumerate(names)}
    tok = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    tok.add_special_tokens(["<unk>", "<s>", "</s>"])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tok.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    tok.save(str(tmp_path / "tokenizer.json"))
    constraint = Constraints(tmp_path / "tokenizer.json", [2], len(names)).choices([" yes", "éé"])
    expected = {"▁", "▁yes", "é", "<0x20>", "<0xC3>"}
    assert set(np.flatnonzero(constraint.allowed())) == {vocab[name] for name in expected}
    constraint.accept(vocab["<0xC3>"])
    assert constraint.forced()[:1] in ([], [vocab["<0xA9>"]])
    constraint.accept(vocab["<0xA9>"])
    constraint.accept(vocab["é"])
    assert constraint.is_complete


BAD: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": "person.json"}, "not JSON"),
    ({"json_schema": "[]"}, "not an object"),
    ({"json_schema": True}, "not an object"),
    ({"json_schema": {"type": {1, 2}}}, "not JSON"),
    ({"json_schema": {"type": "string", "minLength": 3, "maxLength": 2}}, "minLength"),
    ({"json_schema": {"contains": {}}}, "contains"),
    ({"json_schema": {"$ref": "#"}}, "no text can meet it"),
    ({"json_schema": {"$ref": "http://localhost/x.json"}}, "localhost"),
    ({"json_schema": '{"items":' * 3000 + "{}" + "}" * 3000}, "recursion"),
    ({"json_schema": {"enum": ["x" * 300_000]}}, "bytes"),
    ({"grammar": "hello"}, "grammar"),
    ({"grammar": "start: foo"}, "unknown name"),
    ({"grammar": "root ::= foo"}, "foo"),
    ({"grammar": "root ::= " + "(" * 9000 + '"a"' + ")" * 9000}, "deeper than 100"),
    ({"grammar": "root ::= a" + "".join(f" a{i} ::= a{i + 1}" for i in range(9000))}, "uses 'a'"),
    (
        {
            "grammar": "root ::= a0"
            + "".join(f" a{i} ::= a{i + 1}" for i in range(9000))
            + " a9000 ::= [a]"
        },
        "lines of rules",
    ),
    ({"grammar": "start: " + "(" * 9000 + '"a"' + ")" * 9000}, "deeply nested"),
    ({"grammar": 'start: "a"' + "\n" * (MAX_RULES + 1)}, "lines of rules"),
    ({"grammar": 3}, "not text"),
    ({"regex": "(a"}, "unclosed group"),
    ({"regex": "(?=a)b"}, "look-ahead"),
    ({"regex": ""}, "empty text"),
    ({"regex": "\ud800"}, "surrogate"),
    ({"choices": "yes"}, "list of strings"),
    ({"choices": []}, "got 0"),
    ({"choices": ["a", ""]}, "list of strings"),
    ({"choices": ["a", "b", "a"]}, "got 3, 2 of them different"),
]


@pytest.mark.parametrize(("asked", "told"), BAD)
def test_what_cannot_be_used_is_an_input_error(
    asked: dict[str, Any], told: str, constraints: Constraints
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        constraints.of(**asked)
    assert next(iter(asked)) in caught.value.message and len(caught.value.message) < 500


def test_one_constraint_for_an_answer(constraints: Constraints) -> None:
    assert constraints.of() is None
    with pytest.raises(UsageError, match="grammar and choices"):
        constraints.of(grammar="x", choices=["a"])


def test_a_token_that_is_not_allowed_is_refused(constraints: Constraints) -> None:
    for token_id in (0, END, 330, 10**6):
        with pytest.raises(InputError, match=f"token {token_id}"):
            constraints.regex("[0-9]").accept(token_id)


def test_models_that_cannot_be_constrained(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no token that ends"):
        Constraints(path, [], 400).regex("a")
    with pytest.raises(BundleError, match=r"nothing\.json"):
        Constraints(tmp_path / "nothing.json", [END], 400).regex("a")
    words = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(InputError, match=r"cannot be constrained.*decoder"):
        Constraints(tmp_path / "words.json", [1], 2).regex("a")


def test_the_extra_is_named_when_it_is_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtra, match="llguidance") as caught:
        Constraints(path, [END], 400).choices(["a"])
    assert caught.value.hint == 'install it with: pip install "edgelm[structured]"'


def test_threads_share_one_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    shared = Constraints(path, [END], tokenizer.get_vocab_size() + N_PADDING)
    found: dict[int, str] = {}

    def work(seed: int) -> None:
        found[seed] = answer(shared.choices([f"{seed} yes", f"{seed} no"]), tokenizer, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[seed] in (f"{seed} yes", f"{seed} no") for seed in range(8))


LONG_CHAINS = """
import json, sys
from pathlib import Path
from edgelm.runtime.generate.constraints import MAX_RULES, MAX_TEXT_BYTES, Constraints

make = Constraints(Path(sys.argv[1]), [1], 400)
n = MAX_RULES - 1
rules = [f'r{i}: "a" (r{i + 1} "b" | "x")' for i in range(n)]
chain = make.grammar("\\n".join(["start: r0", *rules, f'r{n}: "a"']))
assert chain.allowed().any()
n = 4200
refs = {f"{i}": {"allOf": [{"$ref": f"#/a/{i + 1}"}], "minLength": 1} for i in range(n)}
schema = {"a": refs | {f"{n}": {"type": "string"}}, "$ref": "#/a/0"}
assert 0.8 * MAX_TEXT_BYTES < len(json.dumps(schema)) < MAX_TEXT_BYTES
try:
    make.json_schema(schema)
except Exception as err:
    print(type(err).__name__)
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_longest_chains_of_rules_do_not_end_the_process(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LONG_CHAINS, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    for heavy in ("torch", "transformers", "onnxruntime", "llama_cpp"):
        assert repr(heavy) not in run.stdout
