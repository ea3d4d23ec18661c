"""What llama.cpp's blocks can hold, beside gguf's own reader and quantizers."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest
import torch

from edgelm.targets.gguf import bindings
from edgelm.targets.gguf.layouts import LAYOUTS
from edgelm.targets.gguf.precisions import TENSOR_TYPES

KINDS = sorted(LAYOUTS)
R, C = 24, 512


def rows() -> np.ndarray:
    """Usual weights, and blocks of what is awkward."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(R, C)).astype(np.float32)
    x[1] = 0
    x[2] = 1e-30  # below float16
    x[3] = np.abs(x[3])
    x[4] = -np.abs(x[4])
    x[5, ::32] = -40  # outliers
    x[6] = np.round(x[6] * 2) / 2  # many ties
    x[7] *= 3e-7  # float16's denormals
    x[8] = 0.25
    x[9] = np.where(rng.random(C) < 0.9, 0, x[9])
    return x


def quantized(kind: str, x: np.ndarray) -> np.ndarray:
    """llama.cpp's quantizer, (R, bytes of a row)."""
    bindings.load()
    import llama_cpp

    library = llama_cpp.llama_cpp._lib  # its ggml symbols are of the same shared objects
    quantize = library.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    number = TENSOR_TYPES[kind]
    n_bytes = gguf.quant_shape_to_byte_shape(x.shape, gguf.GGMLQuantizationType(number))
    data = np.empty(n_bytes, np.uint8)
    done = quantize(
        ctypes.c_int(number),
        x.ctypes.data_as(ctypes.c_void_p),
        data.ctypes.data_as(ctypes.c_void_p),
        ctypes.c_int64(0),
        ctypes.c_int64(len(x)),
        ctypes.c_int64(x.shape[1]),
        None,
    )
    assert done == data.nbytes
    return data


def read(kind: str, data: np.ndarray) -> np.ndarray:
    return gguf.dequantize(data, gguf.GGMLQuantizationType(TENSOR_TYPES[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_grid_holds_what_the_quantizer_wrote(kind: str):
    data = quantized(kind, rows())
    expected = torch.from_numpy(read(kind, data))
    grid = LAYOUTS[kind].grid(data)
    assert torch.equal(grid.round(expected), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_that_are_written_are_read_back(kind: str):
    data = quantized(kind, rows())
    layout = LAYOUTS[kind]
    grid = layout.grid(data)
    weight = torch.from_numpy(rows() + np.random.default_rng(1).normal(size=(R, C)) / 4).float()
    levels = grid.levels(weight)
    layout.write(data, levels.numpy())
    assert np.array_equal(read(kind, data), grid.values(levels).numpy())
    again = layout.grid(data)
    assert torch.equal(again.scale, grid.scale)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_nearest(kind: str):
    grid = LAYOUTS[kind].grid(quantized(kind, rows()))
    weight = torch.from_numpy(rows()) * 1.3
    table = grid.table
    n = grid.high - grid.low + 1
    every = torch.stack([grid.values(torch.full((R, C), float(grid.low + i))) for i in range(n)])
    least = (every - weight).abs().amin(0)
    found = (grid.round(weight) - weight).abs()
    assert table is None or len(table) == n
    assert torch.allclose(found, least, rtol=1e-5, atol=1e-6)


def test_the_largest_of_each_block_is_raised_to_the_peak():
    from edgelm.targets.grid import Grid

    grid = Grid(torch.tensor([[1.0, 1.0]]), 4, -8, 7, peak=7)
    weight = torch.tensor([[0.2, -5.2, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert grid.levels(weight).tolist() == [[0, -7, 3, 0, 0, 0, 0, 0]]
    assert grid.levels(weight * 2)[0, 1] == -8
