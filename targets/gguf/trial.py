"""A file of a stranger's opened for the first time: in a process of its own.

llama.cpp may end the process on what its own script wrote. That must not be ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from edgelm.runtime.engine import Chunk, DecoderOptions, EngineOptions, TokenBatch
from edgelm.runtime.errors import EdgelmError, ModelError
from edgelm.runtime.manifest import Task, TextLimits, Variant
from edgelm.runtime.schema import decode, encode
from edgelm.targets.child import run_python

_CHILD = """\
import sys
sys.path.append(sys.argv[1])
from edgelm.targets.gguf.trial import main
main()
"""
N_TOKENS = 3


def try_out(folder: Path, variant: Variant, task: Task, text: TextLimits) -> None:
    """Run some tokens through the variant's files. Raises ModelError with llama.cpp's reason."""
    place = str(Path(__file__).absolute().parents[3])
    asked = json.dumps([str(folder.resolve()), *map(encode, (variant, task, text))])
    done = run_python(["-c", _CHILD, place], {"GGML_NO_BACKTRACE": "1"}, asked)
    if done.code != 0:
        raise ModelError(
            f"llama.cpp does not run the converted file: {done.lines[-1]}",
            hint="choose another target for this model, such as onnx",
        )


def main() -> None:
    """The other process's side."""
    folder, variant, task, text = json.load(sys.stdin)
    try:
        _run(Path(folder), decode(Variant, variant), decode(Task, task), decode(TextLimits, text))
    except EdgelmError as err:
        sys.exit(err.message)


def _run(folder: Path, variant: Variant, task: Task, text: TextLimits) -> None:
    from edgelm.targets.gguf import TARGET

    ids = np.arange(N_TOKENS, dtype=np.int32)
    if task.kind == "text-generation":
        decoder = TARGET.open_decoder(folder, variant, text, DecoderOptions("cpu", 1))
        decoder.extend([Chunk(0, ids, N_TOKENS)])
        decoder.truncate(0, 1)
        decoder.close()
        return
    session = TARGET.open(folder, variant, task, EngineOptions("cpu", 1))
    lengths = np.array([N_TOKENS], np.int32)
    session.run(TokenBatch(ids[None], lengths, np.zeros_like(ids[None])))
    session.close()
