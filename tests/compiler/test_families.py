"""Every family of encoders goes through the whole compiler, to both engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny_data import labelled_rows, write_csv

import edgelm
from edgelm.runtime.bundle import Bundle
from edgelm.runtime.engine import EngineOptions
from edgelm.runtime.verify import verify_files, verify_variant


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_compile_as_it_is(family: str, compile_tiny: Callable[..., Path], tmp_path: Path) -> None:
    data = write_csv(tmp_path / "eval.csv", labelled_rows(6))
    path = compile_tiny(
        f"family-{family}",
        family,
        train__method="none",
        data__eval=str(data),
        targets=["onnx:fp32", "gguf:f32"],
    )
    bundle = Bundle(path)
    assert verify_files(bundle).ok
    for variant in bundle.manifest.variants:
        assert variant.parity is not None
        assert variant.parity.agreement == 1.0
        # llama.cpp takes GELU from a table of half precision
        assert variant.parity.max_abs_diff < (1e-4 if variant.target == "onnx" else 1e-2)
        check = verify_variant(bundle, variant, EngineOptions(threads=1))
        assert (check.ok, check.skipped) == (True, False), check.detail

    scores = []
    for variant in bundle.manifest.variants:
        with edgelm.load(path, variant=variant.name, threads=1) as model:
            answers = model.predict(list(tiny.NASTY), all_scores=True)
        scores.append([list((a.scores or {}).values()) for a in answers])  # type: ignore[union-attr]
    np.testing.assert_allclose(*scores, atol=1e-3)
    assert not math.isclose(scores[0][0][0], scores[0][4][0], abs_tol=1e-4)  # it does look at texts
