"""GBNF grammars describe the same texts as in llama.cpp: tables, and random grammars tried out."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgelm.runtime.errors import InputError
from edgelm.runtime.generate.constraints import Constraint, Constraints
from edgelm.runtime.generate.gbnf import is_gbnf

END = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tok = Tokenizer(models.BPE(letters, []))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens(["<end>", "<|tool|>"])
    return tok


@pytest.fixture(scope="module")
def constraints(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Constraints:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return Constraints(Path(path), [END], 258)


def takes(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    try:
        for token_id in tokenizer.encode(text).ids:
            constraint.accept(token_id)
        return bool(constraint.allowed()[END])
    except InputError:
        return False


JSON = r"""
# values, as llama.cpp's own grammar for JSON has them
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
TABLE: list[tuple[str, list[str], list[str]]] = [
    (JSON, ['{"a": [1, -2.5, "x\\n\\u00e9", null], "b": {}}', "{}\n  "], ['{"a":1,}', "[1]", "{"]),
    (ARITHMETIC, ["a = 1\n", "a1 +(2*b) = 7 \n\nb=1\n"], ["a = 1", "a + = 1\n"]),
    ('root ::= [a-z ]+ " is " "red"', ["tom is red", "it is is red"], ["tom is blue", " is red"]),
    ('root ::= name " is red" | "(" root ")"\nname ::= [a-z ]+', ["((tom is red))"], ["(tom"]),
    ('root ::= "a" .', ["aa", "a\n", "aé"], ["a"]),
    (r'root ::= "\u0041\x42\U0001F600" "\"\\\n"', ['AB😀"\\\n'], ["AB"]),
    ("root ::= [a&&b~-]+ [^\\]x] [[]", ["a&b~-y["], ["a]["]),
    ("root ::= [😀-😂é]", ["😁", "é"], ["e"]),
    ('root ::= fooBar foo-bar 1x\nfooBar::="x"\nfoo-bar ::= "y"\n1x ::= "z"', ["xyz"], ["xy"]),
    ('root ::= "a\nb" # not # this\n  | "c"', ["a\nb", "c"], ["a"]),
    ('root ::= | "a" root', ["", "aa"], ["b"]),
    ('root ::= ("a"|"b"){2,3} "c"{2} "d"{1,} ""', ["abccd", "abaccddd"], ["abcd", "accd"]),
]


@pytest.mark.parametrize(("grammar", "texts", "others"), TABLE)
def test_texts_of_a_grammar(
    grammar: str,
    texts: list[str],
    others: list[str],
    constraints: Constraints,
    tokenizer: Tokenizer,
) -> None:
    start = constraints.grammar(grammar)
    for text in texts:
        assert takes(start.fresh(), tokenizer, text), text
    for text in others:
        assert not takes(start.fresh(), tokenizer, text), text


def test_special_tokens_by_name(constraints: Constraints) -> None:
    constraint = constraints.grammar('root ::= "a" <|tool|> "b"')
    for token_id in (constraint.forced()[0], 257):
        constraint.accept(token_id)
    assert constraint.forced() and not constraint.allowed()[END]


BAD = [
    ('root ::= "a"\nx ::= foo | bar', "line 2: rule 'x' uses 'bar'"),
    ('a ::= "b"', "no rule 'root'"),
    ('root ::= "a"\n\nx ::= ("b"', "line 3: a bracket of the rule is not closed"),
    ('root ::= "a")', "line 1: a bracket is closed that is not open"),
    ('root ::= "\\q"', "line 1.*is not an escape"),
    ('root ::= "\\x4"', "line 1.*is not an escape"),
    ("root ::= []", "line 1.*no character"),
    ('root ::= "a', "line 1.*is not GBNF"),
    ('root ::= "a"\nroot ::= "b"', "line 2.*twice"),
    ('"a"\nroot ::= "b"', "line 2: a rule begins with its name"),
    ('root ::= | * "a"', r"line 1: there is nothing before \*"),
    ("root ::=", "empty text"),
]


@pytest.mark.parametrize(("grammar", "told"), BAD)
def test_errors_name_the_line(grammar: str, told: str, constraints: Constraints) -> None:
    with pytest.raises(InputError, match=told):
        constraints.grammar(grammar)


def test_lark_is_not_taken_for_gbnf() -> None:
    assert is_gbnf("# x\nroot\t::= [a]") and not is_gbnf('start: "::=" x\nx: "a"')


# Random grammars: a node is (kind, value, ...), and its texts are found by trying.
Node = tuple[Any, ...]
TIMES = {"*": (0, 9), "+": (1, 9), "?": (0, 1), "{2}": (2, 2), "{1,2}": (1, 2)}


def make(rng: random.Random, depth: int, names: list[str]) -> Node:
    kinds = ["text", "chars", *(["name"] if names else []), *(["all", "any", "loop"] * depth)]
    kind = rng.choice(kinds)
    if kind == "text":
        return kind, "".join(rng.choices("abc", k=rng.randint(1, 2)))
    if kind == "chars":
        return kind, "".join(rng.sample("abc", rng.randint(1, 2)))
    if kind == "name":
        return kind, rng.choice(names)
    if kind == "loop":
        return kind, make(rng, depth - 1, names), rng.choice(list(TIMES))
    return kind, [make(rng, depth - 1, names) for _ in range(rng.randint(2, 3))]


def written(node: Node) -> str:
    kind, value = node[:2]
    if kind == "loop":
        return f"({written(value)}){node[2]}"
    if kind in ("all", "any"):
        return f"({(' ' if kind == 'all' else ' | ').join(map(written, value))})"
    return {"text": f'"{value}"', "chars": f"[{value}]", "name": value}[kind]


def ends(node: Node, text: str, starts: set[int], rules: dict[str, Node]) -> set[int]:
    """Where the node's texts that begin at `starts` end."""
    kind, value = node[:2]
    if kind == "text":
        return {i + len(value) for i in starts if text.startswith(value, i)}
    if kind == "chars":
        return {i + 1 for i in starts if text[i : i + 1] and text[i] in value}
    if kind == "name":
        return ends(rules[value], text, starts, rules) if starts else set()
    if kind == "any":
        return set().union(*(ends(one, text, starts, rules) for one in value))
    if kind == "all":
        for one in value:
            starts = ends(one, text, starts, rules)
        return starts
    low, high = TIMES[node[2]]
    found = set(starts) if low == 0 else set()
    for n in range(1, high + 1):
        starts = ends(value, text, starts, rules)
        found |= starts if n >= low else set()
    return found


@pytest.mark.parametrize("is_recursive", [False, True])
def test_random_grammars_equal_an_oracle(
    is_recursive: bool, constraints: Constraints, tokenizer: Tokenizer
) -> None:
    texts = ["".join(one) for n in range(5) for one in itertools.product("abc", repeat=n)]
    n_exact = 0
    for seed in range(25):
        rng = random.Random(seed)
        rules = {"x": make(rng, 2, [])}
        rules["y"] = make(rng, 1, ["x"])
        rules["root"] = make(rng, 2, ["x", "y"])
        if is_recursive:
            inner = ("all", [("text", rng.choice("abc")), ("name", "root"), make(rng, 1, ["x"])])
            rules["root"] = ("any", [rules["root"], inner])
        grammar = "\n".join(f"{name} ::= {written(node)}" for name, node in rules.items())
        start = constraints.grammar(grammar)
        expected = {text for text in texts if len(text) in ends(rules["root"], text, {0}, rules)}
        found = {text for text in texts if takes(start.fresh(), tokenizer, text)}
        assert found <= expected, grammar
        assert is_recursive or found == expected, grammar
        n_exact += found == expected
    assert n_exact >= 24  # what recursion leaves open is told in gbnf.py
