"""A look at an ONNX file's structure before ONNX Runtime sees it.

Everything is walked: graphs, graphs within nodes, functions, tensors wherever they stand. Refused
are operators and fields that edgelm writes none of, tensors whose bytes are not as many as their
shape says, and data outside the file that is not wholly in a file of the same variant.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgelm.runtime.errors import BundleError
from edgelm.runtime.manifest import Variant
from edgelm.targets.onnx.operators import OPERATORS
from edgelm.targets.onnx.protobuf import BYTES, VARINT, Field, Malformed, fields, signed, varint

MAX_DEPTH = 8  # of graphs within graphs
MAX_NODES = 200_000
MAX_TENSORS = 200_000
MAX_DIMS = 16
MAX_TEXT_BYTES = 1 << 16
MAX_DIM = 2**48

# TensorProto.data_type -> bits of an element; those that edgelm writes
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64}
_BITS |= {16: 16, 21: 4, 22: 4}  # bfloat16; uint4, int4
_STRING = 8
# TensorProto's typed data -> (the least bytes of an element there, the types that use it)
_TYPED = {4: (4, {1}), 5: (1, {2, 3, 4, 5, 6, 9, 10, 16, 21, 22}), 7: (1, {7}), 10: (8, {11})}
_TYPED |= {11: (1, {12, 13})}
_VALUES = frozenset({4, 5, 6, 7, 9, 10, 11})


def check_model(root: Path, name: str, variant: Variant) -> None:
    """Raise BundleError unless the file `name` of the variant, below `root`, may be opened."""
    path = root / name
    folder = name.rpartition("/")[0]
    beside = {
        entry.path.rpartition("/")[2]: entry.size_bytes
        for entry in variant.files
        if entry.path.rpartition("/")[0] == folder and entry.path != name
    }
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            _Walk(data, beside).model()
    except Malformed as err:
        raise BundleError(f"{path}: not a usable ONNX file: {err}") from err
    except (OSError, ValueError) as err:  # ValueError: an empty file cannot be mapped
        raise BundleError(f"{path}: cannot be read: {err}") from err


class _Walk:
    """Over one file. Methods take the place of a message and raise Malformed."""

    def __init__(self, data: memoryview, beside: Mapping[str, int]) -> None:
        self.data = data
        self.beside = beside  # files that may hold tensors, and their sizes
        self.n_nodes = 0
        self.n_tensors = 0

    def model(self) -> None:
        found = list(fields(self.data, 0, len(self.data)))
        # no functions (25): ONNX Runtime takes an operator of its own of that name before them
        self._known(found, "model", {1, 2, 3, 4, 5, 6, 7, 8, 14})
        graphs = [f for f in found if f.number == 7]
        if len(graphs) != 1 or not any(f.number == 8 for f in found):
            raise Malformed(f"{len(graphs)} graphs, or no opset")
        for f in (f for f in found if f.number == 8):
            self._texts(f, "opset", {1, 2})
        self._graph(graphs[0], 0)

    def _graph(self, graph: Field, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Malformed(f"graphs nested deeper than {MAX_DEPTH}")
        for f in self._known(self._message(graph), "graph", {1, 2, 5, 10, 11, 12, 13, 14, 16}):
            if f.number == 1:
                self._node(f, depth)
            elif f.number == 5:
                self._tensor(f)
            elif f.number in (11, 12, 13):
                self._value_info(f)

    def _node(self, node: Field, depth: int) -> None:
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise Malformed(f"more than {MAX_NODES} nodes")
        operator = domain = ""
        for f in self._known(self._message(node), "node", {1, 2, 3, 4, 5, 6, 7, 8, 9}):
            if f.number == 4:
                operator = self._text(f)
            elif f.number == 7:
                domain = self._text(f)
            elif f.number == 5:
                self._attribute(f, depth)
        if operator not in OPERATORS.get(domain, ()):
            raise Malformed(f"the operator {domain or 'ai.onnx'}:{operator[:80]} is not allowed")

    def _attribute(self, attribute: Field, depth: int) -> None:
        found = self._message(attribute)
        # neither sparse tensors (22, 23) nor type protos (14, 15)
        self._known(found, "attribute", {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 20, 21})
        for f in found:
            if f.number in (5, 10):
                self._tensor(f)
            elif f.number in (6, 11):
                self._graph(f, depth + 1)

    def _tensor(self, tensor: Field) -> None:
        self.n_tensors += 1
        if self.n_tensors > MAX_TENSORS:
            raise Malformed(f"more than {MAX_TENSORS} tensors")
        known = {1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16}
        found = self._known(self._message(tensor), "tensor", known)
        dims = [dim for f in found if f.number == 1 for dim in self._numbers(f)]
        kind = sum(f.value for f in found if f.number == 2)
        places = [f for f in found if f.number == 13]
        external = any(f.number == 14 and f.value == 1 for f in found)
        held = [f for f in found if f.number in _VALUES]
        n = math.prod(dims)
        if len(dims) > MAX_DIMS or any(not 0 <= d <= MAX_DIM for d in dims) or n > 2**63 - 1:
            raise Malformed(f"a tensor of the shape {dims[:MAX_DIMS]}")
        if external or places:
            if not external or held or kind not in _BITS:
                raise Malformed(f"a tensor of the type {kind} that is in the file and outside")
            self._external(places, _n_bytes(n, kind))
        elif kind == _STRING:
            if len(held) != n or any(f.number != 6 for f in held):
                raise Malformed(f"a tensor with {len(held)} of its {n} texts")
        elif kind in _BITS:
            self._inside(held, kind, n, _n_bytes(n, kind))
        else:
            raise Malformed(f"a tensor of the type {kind}")

    def _inside(self, held: list[Field], kind: int, n: int, n_bytes: int) -> None:
        raw = [f for f in held if f.number == 9]
        if raw:
            if len(held) != 1 or raw[0].wire != BYTES or raw[0].end - raw[0].start != n_bytes:
                raise Malformed(f"a tensor whose bytes are not the {n_bytes} of its shape")
            return
        count = 0
        for f in held:
            least, kinds = _TYPED.get(f.number, (1, set()))
            if kind not in kinds:
                raise Malformed(f"a tensor of the type {kind} with the field {f.number}")
            if f.wire == BYTES and least == 1:
                count += sum(1 for _ in self._numbers(f))
            else:
                count += (f.end - f.start) // least if f.wire == BYTES else 1
        if count != (n_bytes if _BITS[kind] == 4 else n):
            raise Malformed(f"a tensor with {count} of its {n} values")

    def _external(self, places: list[Field], n_bytes: int) -> None:
        found: dict[str, str] = {}
        for f in places:
            pair = {inner.number: self._text(inner) for inner in self._message(f)}
            key = pair.get(1, "")
            if key not in ("location", "offset", "length", "checksum") or key in found:
                raise Malformed(f"external data with the key {key[:40]!r}")
            found[key] = pair.get(2, "")
        location = found.get("location", "")
        size = self.beside.get(location)
        if size is None:
            raise Malformed(f"external data in {location[:80]!r}, which is no file of the variant")
        offset, length = (found.get(k, d) for k, d in (("offset", "0"), ("length", str(n_bytes))))
        if not all(v.isascii() and v.isdigit() and len(v) < 20 for v in (offset, length)):
            raise Malformed("external data whose offset or length is no number")
        if int(length) != n_bytes or int(offset) + n_bytes > size:
            raise Malformed(f"external data of {length[:20]} bytes, the tensor has {n_bytes}")

    def _value_info(self, info: Field) -> None:
        for f in self._known(self._message(info), "value", {1, 2, 3, 4}):
            if f.number == 2:
                self._type(f)

    def _type(self, kind: Field) -> None:
        """Tensors alone; dims are numbers of 0 or more, or names."""
        for f in self._known(self._message(kind), "type", {1, 6}):
            for inner in self._message(f) if f.number == 1 else ():
                if inner.number != 2:
                    continue
                dims = [d for d in self._message(inner) if d.number == 1]
                if len(dims) > MAX_DIMS:
                    raise Malformed(f"a value of {len(dims)} dimensions")
                for dim in dims:
                    self._dim(dim)

    def _dim(self, dim: Field) -> None:
        for f in self._message(dim):
            if f.number == 1 and not 0 <= signed(f.value) <= MAX_DIM:
                raise Malformed(f"a value with a dimension of {signed(f.value)}")

    def _message(self, f: Field) -> list[Field]:
        if f.wire != BYTES:
            raise Malformed(f"the field {f.number} holds no message")
        return list(fields(self.data, f.start, f.end))

    def _known(self, found: list[Field], what: str, numbers: set[int]) -> list[Field]:
        for f in found:
            if f.number not in numbers:
                raise Malformed(f"a {what} with the field {f.number}, which edgelm does not write")
        return found

    def _texts(self, message: Field, what: str, numbers: set[int]) -> None:
        for f in self._known(self._message(message), what, numbers):
            if f.number == 1:
                self._text(f)

    def _text(self, f: Field) -> str:
        if f.wire != BYTES or f.end - f.start > MAX_TEXT_BYTES:
            raise Malformed(f"the field {f.number} is no text of at most {MAX_TEXT_BYTES} bytes")
        try:
            return bytes(self.data[f.start : f.end]).decode("utf-8")
        except UnicodeDecodeError as err:
            raise Malformed("a text that is not UTF-8") from err

    def _numbers(self, f: Field) -> Iterator[int]:
        """One number, or several packed."""
        if f.wire == VARINT:
            yield signed(f.value)
            return
        if f.wire != BYTES:
            raise Malformed(f"the field {f.number} holds no whole numbers")
        at = f.start
        while at < f.end:
            value, at = varint(self.data, at, f.end)
            yield signed(value)


def _n_bytes(n: int, kind: int) -> int:
    return -(-n * _BITS[kind] // 8)
