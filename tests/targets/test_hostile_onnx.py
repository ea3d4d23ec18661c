"""ONNX files made to hurt: each is refused by the look before, so ONNX Runtime never sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgelm.runtime.errors import BundleError
from edgelm.runtime.manifest import FileEntry, Variant
from edgelm.targets.onnx.check import check_model

onnx = pytest.importorskip("onnx")
helper, T = onnx.helper, onnx.TensorProto
NAME, DATA = "variants/v/model.onnx", "variants/v/model.onnx.data"
SIZE = 256


def good():
    """One product, a tensor inside and one outside of the file, a graph within a node."""
    inside = helper.make_tensor("inside", T.FLOAT, [2, 2], bytes(16), raw=True)
    typed = helper.make_tensor("typed", T.INT64, [3], [1, 2, 3])
    outside = T(name="outside", data_type=T.FLOAT, dims=[2, 2], data_location=T.EXTERNAL)
    for key, value in (("location", "model.onnx.data"), ("offset", "64"), ("length", "16")):
        outside.external_data.add(key=key, value=value)
    then = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "branch",
        [],
        [helper.make_tensor_value_info("y", T.FLOAT, [2, 2])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "inside"], ["a"]),
            helper.make_node("Constant", [], ["c"], value=typed),
            helper.make_node("If", ["b"], ["d"], then_branch=then, else_branch=then),
            helper.make_node("MatMulNBits", ["a", "outside"], ["e"], domain="com.microsoft", K=2),
        ],
        "main",
        [helper.make_tensor_value_info("x", T.FLOAT, ["B", 2])],
        [helper.make_tensor_value_info("e", T.FLOAT, ["B", 2])],
        [inside, typed, outside],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def check(root: Path, raw: bytes) -> None:
    (root / "variants/v").mkdir(parents=True, exist_ok=True)
    (root / NAME).write_bytes(raw)
    files = (FileEntry(NAME, "0" * 64, len(raw)), FileEntry(DATA, "0" * 64, SIZE))
    check_model(root, NAME, Variant("v", "onnx", "fp32", files))


def test_a_good_file_passes(tmp_path: Path) -> None:
    check(tmp_path, good().SerializeToString())


def place(**values: str) -> Callable:
    """Of the tensor outside."""

    def change(model) -> None:
        outside = model.graph.initializer[2]
        kept = {e.key: e.value for e in outside.external_data} | values
        del outside.external_data[:]
        for key, value in kept.items():
            outside.external_data.add(key=key, value=value)

    return change


def tensor(i: int = 0, **values) -> Callable:
    def change(model) -> None:
        found = model.graph.initializer[i]
        for name, value in values.items():
            if isinstance(value, list):
                found.ClearField(name)
                getattr(found, name).extend(value)
            else:
                setattr(found, name, value)

    return change


def operator(name: str, domain: str = "") -> Callable:
    def change(model) -> None:
        model.graph.node[0].op_type, model.graph.node[0].domain = name, domain

    return change


def in_branch(name: str) -> Callable:
    def change(model) -> None:
        model.graph.node[2].attribute[0].g.node[0].op_type = name

    return change


def attribute_tensor(**values) -> Callable:
    def change(model) -> None:
        for name, value in values.items():
            setattr(model.graph.node[1].attribute[0].t, name, value)

    return change


def sparse(model) -> None:
    made = model.graph.sparse_initializer.add()
    made.values.CopyFrom(model.graph.initializer[0])


def sparse_constant(model) -> None:
    attribute = model.graph.node[1].attribute[0]
    attribute.ClearField("t")
    attribute.sparse_tensor.values.CopyFrom(model.graph.initializer[0])


def sparse_outside(model) -> None:
    sparse(model)
    model.graph.sparse_initializer[0].values.CopyFrom(model.graph.initializer[2])


def function(domain: str, inner: str) -> Callable:
    def change(model) -> None:
        node = helper.make_node(inner, ["x"], ["y"])
        opset = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function(domain, "F", ["x"], ["y"], [node], opset))

    return change


def function_with_outside_tensor(model) -> None:
    function("own", "Identity")(model)
    constant = model.functions[0].node.add(op_type="Constant", output=["z"])
    constant.attribute.add(name="value", type=4).t.CopyFrom(model.graph.initializer[2])
    constant.attribute[0].t.external_data[0].value = "/etc/passwd"


def deep(model) -> None:
    graph = model.graph.node[2].attribute[0].g
    for _ in range(12):
        node = graph.node.add(op_type="If", output=["z"])
        graph = node.attribute.add(name="then_branch", type=5).g


def twice(model) -> None:
    model.graph.initializer[2].external_data.add(key="location", value="/etc/passwd")


def inside_and_outside(model) -> None:
    model.graph.initializer[2].raw_data = bytes(16)


def place_of_an_inner_tensor(model) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="model.onnx.data")


def many_dims(model) -> None:
    model.graph.initializer[0].dims.extend([1] * 100)


def training(model) -> None:
    model.training_info.add()


def sequence_input(model) -> None:
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = T.FLOAT


def negative_input(model) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -5


def no_opset(model) -> None:
    del model.opset_import[:]


def no_graph(model) -> None:
    model.ClearField("graph")


def empty(model) -> None:
    model.Clear()


def text_tensor(model) -> None:
    model.graph.initializer[0].CopyFrom(helper.make_tensor("t", T.STRING, [2], [b"a", b"b"]))
    model.graph.initializer[0].dims[0] = 2**40


def endless_operator(model) -> None:
    model.graph.node[0].op_type = "x" * 100_000


CHANGES = {
    # data outside: CVE-2022-25882, -2024-27318, -2024-5187, -2025-51480, -2026-27489
    "location-absolute": place(location="/etc/passwd"),
    "location-parent": place(location="../../edgelm.json"),
    "location-parent-inside": place(location="x/../model.onnx.data"),
    "location-folder": place(location="sub/model.onnx.data"),
    "location-dot": place(location="./model.onnx.data"),
    "location-other-file": place(location="model2.onnx.data"),
    "location-the-model-itself": place(location="model.onnx"),
    "location-empty": place(location=""),
    "location-nul": place(location="model.onnx.data\0/etc/passwd"),
    "location-backslash": place(location="..\\model.onnx.data"),
    "location-memory-marker": place(location="*/_ORT_MEM_ADDR_/*"),
    "location-url": place(location="file:///etc/passwd"),
    "location-twice": twice,
    "key-unknown": place(basepath="/etc"),
    "key-attribute": place(__class__="x"),  # CVE-2026-34445
    "offset-behind-the-end": place(offset="256"),
    "offset-huge": place(offset=str(2**63)),
    "offset-negative": place(offset="-16"),
    "offset-no-number": place(offset="1e3"),
    "offset-other-digits": place(offset="١"),
    "length-short": place(length="8"),
    "length-long": place(length="17"),
    "length-negative": place(length="-1"),
    "length-huge": place(length="9" * 400),
    "outside-larger-than-the-file": tensor(2, dims=[1000, 1000]),
    "outside-and-inside": inside_and_outside,
    "inside-with-a-place": place_of_an_inner_tensor,
    # sparse tensors and constants, which checks elsewhere forgot
    "sparse-initializer": sparse,
    "sparse-outside": sparse_outside,
    "sparse-constant": sparse_constant,
    "constant-outside": attribute_tensor(data_location=T.EXTERNAL),
    "constant-too-short": attribute_tensor(raw_data=b"1234"),
    # shapes that say more than there is
    "dims-overflow": tensor(dims=[2**32, 2**32]),
    "dims-product-wraps": tensor(dims=[2**33, 2**31, 4]),
    "dims-negative": tensor(dims=[-2, -2]),
    "dims-too-many": many_dims,
    "raw-too-short": tensor(raw_data=bytes(15)),
    "raw-too-long": tensor(raw_data=bytes(17)),
    "raw-none": tensor(raw_data=b""),
    "typed-too-few": tensor(1, int64_data=[1, 2]),
    "typed-of-another-type": tensor(1, data_type=T.FLOAT),
    "type-unknown": tensor(data_type=77),
    "type-undefined": tensor(data_type=0),
    "type-complex": tensor(data_type=T.COMPLEX128),
    "texts-too-few": text_tensor,
    # operators
    "op-python": operator("PyOp", "com.microsoft"),
    "op-custom-domain": operator("Run", "evil.ops"),
    "op-loop": operator("Loop"),
    "op-scan": operator("Scan"),
    "op-image": operator("ImageDecoder"),
    "op-random": operator("RandomNormal"),
    "op-sequence": operator("SequenceConstruct"),
    "op-training": operator("Gradient", "ai.onnx.preview.training"),
    "op-without-a-name": operator(""),
    "op-endless-name": endless_operator,
    "op-in-a-branch": in_branch("PyOp"),
    "function-with-python": function("own", "PyOp"),
    "function-over-an-operator": function("", "Identity"),
    "function-in-microsofts-domain": function("com.microsoft", "Identity"),
    "function-over-a-closed-operator": function("ai.onnx.ml", "Neg"),
    "function-outside-tensor": function_with_outside_tensor,
    "graphs-too-deep": deep,
    # messages
    "training-info": training,
    "input-a-sequence": sequence_input,
    "input-negative": negative_input,
    "no-opset": no_opset,
    "no-graph": no_graph,
    "empty": empty,
}
RAW = {
    "field-zero": b"\x00\x01",
    "group": b"\x0b\x0c",
    "length-past-the-end": b"\x3a\xff\xff\xff\xff\x0f",
    "length-of-64-bits": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    "varint-without-an-end": b"\x08" + b"\xff" * 20,
    "varint-over-64-bits": b"\x08" + b"\xff" * 9 + b"\x7f",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    "zip": b"PK\x03\x04" + bytes(100),
    "noise": bytes(range(256)) * 4,
    "flatbuffer": b"\x20\x00\x00\x00ORTM" + bytes(64),
    "graph-as-a-number": b"\x38\x01\x42\x02\x10\x12",
}


@pytest.mark.parametrize("name", CHANGES)
def test_hostile_models(tmp_path: Path, name: str) -> None:
    model = good()
    before = model.SerializeToString()
    CHANGES[name](model)
    raw = model.SerializeToString()
    assert raw != before
    with pytest.raises(BundleError, match=r"model\.onnx"):
        check(tmp_path, raw)


@pytest.mark.parametrize("name", RAW)
def test_hostile_bytes(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"model\.onnx"):
        check(tmp_path, RAW[name])


GOOD = good().SerializeToString()


@settings(max_examples=300)
@given(
    flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 2**31),
    insert=st.binary(max_size=8),
)
def test_mutations_raise_nothing_else(tmp_path_factory, flips, cut, insert) -> None:
    raw = bytearray(GOOD)
    for at, value in flips:
        raw[at % len(raw)] = value
    if cut is not None:
        raw[cut % len(raw) :] = insert
    with contextlib.suppress(BundleError):
        check(tmp_path_factory.getbasetemp() / "mutations", bytes(raw))


def test_the_engine_is_not_reached(tmp_path: Path, monkeypatch) -> None:
    ort = pytest.importorskip("onnxruntime")
    from edgelm.runtime.engine import EngineOptions
    from edgelm.runtime.manifest import Task
    from edgelm.targets.onnx import TARGET

    entered: list[object] = []
    monkeypatch.setattr(ort, "InferenceSession", lambda *a, **k: entered.append(a))
    model = good()
    CHANGES["location-absolute"](model)
    (tmp_path / "variants/v").mkdir(parents=True)
    (tmp_path / NAME).write_bytes(model.SerializeToString())
    variant = Variant("v", "onnx", "fp32", (FileEntry(NAME, "0" * 64, 1),))
    task = Task("text-classification", ("a", "b"))
    with pytest.raises(BundleError, match="external data"):
        TARGET.open(tmp_path, variant, task, EngineOptions())
    assert entered == []
