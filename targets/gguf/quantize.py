"""llama.cpp's own quantizer, through llama-cpp-python."""

from __future__ import annotations

import ctypes
from pathlib import Path

from edgelm.runtime.errors import ModelError
from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.precisions import QUANTIZED_FILE_TYPES

F16, Q8_0 = 1, 8  # ggml's numbers of tensor types
_BLOCK = 32  # values in a q8_0 block
# The head decides the label, and is small: it is kept at float16, its last matrix at float32.
_HEAD_TYPES = (("^cls\\.weight$", F16), ("^cls\\.output\\.weight$", 0))


def quantize_file(
    source: Path, target: Path, precision: str, n_embd: int, *, keep_table: bool
) -> None:
    """Quantize the f32 file `source` into `target`. `keep_table` holds the token table at 8 bits.

    Raises ModelError with llama.cpp's reason."""
    library = bindings.load()
    params = library.llama_model_quantize_default_params()
    params.ftype = QUANTIZED_FILE_TYPES[precision]
    if keep_table:
        params.token_embedding_type = F16 if n_embd % _BLOCK else Q8_0
    override = library.llama_model_tensor_override
    overrides = (override * (len(_HEAD_TYPES) + 1))()  # the last one stays empty: the end
    for slot, (pattern, tensor_type) in zip(overrides, _HEAD_TYPES, strict=False):
        slot.pattern, slot.type = pattern.encode(), tensor_type
    params.tt_overrides = ctypes.cast(overrides, ctypes.POINTER(override))
    bindings.last_errors()
    status = library.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if status != 0:
        target.unlink(missing_ok=True)
        raise ModelError(
            f"llama.cpp cannot quantize this model to {precision}: {bindings.last_errors()}"
        )
