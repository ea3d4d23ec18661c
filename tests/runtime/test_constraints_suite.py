"""The JSON Schema Test Suite on a real tokenizer: the suite's data, and answers made at random."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgelm.runtime.errors import InputError
from edgelm.runtime.generate.constraints import Constraint, Constraints

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SUITE = SHARED / "json_schema_test_suite" / "JSON-Schema-Test-Suite.tar.gz"
TOKENIZER = SHARED / "tokenizer_assets" / "tokenizer.json"
N_VOCAB, END = 6400, 2
MAX_TOKENS, HURRY_AFTER = 400, 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (SUITE.exists() and TOKENIZER.exists()), reason="needs the suite"),
]
DRAFTS = ("draft2020-12", "draft2019-09")  # their schemas name their draft


@pytest.fixture(scope="module")
def constraints() -> Constraints:
    return Constraints(TOKENIZER, [END], N_VOCAB)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TOKENIZER))


def groups(draft: str) -> list[dict[str, Any]]:
    """Schemas of the draft's required part, each with data that is valid or not."""
    with tarfile.open(SUITE) as archive:
        found = []
        for member in archive.getmembers():
            inside = f"/{member.name}".partition(f"/tests/{draft}/")[2]
            if inside.endswith(".json") and "/" not in inside:
                stream = archive.extractfile(member)
                assert stream is not None
                found += json.load(stream)
    return [group for group in found if isinstance(group["schema"], dict)]


def usable(draft: str, constraints: Constraints) -> list[tuple[dict[str, Any], Constraint]]:
    found = []
    for group in groups(draft):
        try:
            found.append((group, constraints.json_schema(group["schema"])))
        except InputError:
            continue
    assert len(found) > 150  # of about 380; the others use what the library refuses
    return found


@pytest.mark.parametrize("draft", DRAFTS)
def test_data_of_the_suite(draft: str, constraints: Constraints, tokenizer: Tokenizer) -> None:
    """All invalid data is refused. Of the valid, that with its properties in another order is."""
    taken: Counter[tuple[bool, bool]] = Counter()
    for group, start in usable(draft, constraints):
        for test in group["tests"]:
            text = json.dumps(test["data"], ensure_ascii=False)
            is_taken = takes(start.fresh(), tokenizer, text)
            assert test["valid"] or not is_taken, (group["description"], text)
            taken[test["valid"], is_taken] += 1
    assert taken[False, False] > 200 and taken[True, True] > 15 * taken[True, False]


def takes(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    try:
        for token_id in tokenizer.encode(text, add_special_tokens=False).ids:
            constraint.accept(token_id)
        return bool(constraint.allowed()[END])
    except InputError:
        return False


@pytest.mark.parametrize("draft", DRAFTS)
def test_every_answer_parses_and_validates(
    draft: str, constraints: Constraints, tokenizer: Tokenizer
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(N_VOCAB)]
    closing = np.array([any(char in text for char in '"]}') for text in texts])
    n_answers = 0
    for group, start in usable(draft, constraints):
        if "\\p{" in json.dumps(group["schema"]):
            continue  # Python's `re`, with which jsonschema checks, has no \p
        validator = jsonschema.validators.validator_for(group["schema"])(group["schema"])
        for seed in range(5):
            text = walk(start.fresh(), tokenizer, closing, seed)
            validator.validate(json.loads(text))
            n_answers += 1
    assert n_answers > 800


def walk(
    constraint: Constraint, tokenizer: Tokenizer, closing: np.ndarray[Any, Any], seed: int
) -> str:
    """An answer of a random model that would like to finish after some tokens."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    while not constraint.is_complete:
        assert len(ids) < MAX_TOKENS, tokenizer.decode(ids)
        logits = rng.standard_normal(N_VOCAB, dtype=np.float32)
        logits[END] += 3
        if len(ids) > HURRY_AFTER:
            logits += 100 * closing
            logits[END] += 200
        constraint.mask(logits)
        token_id = int(logits.argmax())
        constraint.accept(token_id)
        ids.append(token_id)
    return tokenizer.decode(ids)
