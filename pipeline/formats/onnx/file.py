"""ONNX files: QDQ form, opset 21 or 17, run by ONNX Runtime."""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.base.errors import InputError, following
from pipeline.base.machine import cpu_flags
from pipeline.formats import as_onnx
from pipeline.formats.file_facts import NO_GRID, Codes, FileFacts, Grid, codes_of, conv_macs
from pipeline.formats.format import ComputedBy, Option
from pipeline.formats.onnx.amx import gemm_form
from pipeline.formats.onnx.describe import describe as describe
from pipeline.formats.onnx.describe import interface as interface
from pipeline.formats.onnx.elsewhere import laid_out, numbers, quantized_tensors, tapped
from pipeline.formats.onnx.few_bits import pack, unpacked
from pipeline.formats.onnx.float_layers import half, keep_float
from pipeline.formats.onnx.pads import pad_in_convolutions
from pipeline.formats.onnx.resizing import enlarge_by_convolution
from pipeline.formats.pixels import refuse_learned_input, take_pixels

OLDER_OPSET, _OLDER_IR = 17, 8
"""An opset that mobile runtimes of 2023 have, and the IR version that belongs to it."""
_NONE = np.zeros(0, np.float32)


def load_writer() -> None:
    """Nothing: what writes is loaded with this module."""


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    pixels: bool = False,
    options: Collection[Option] = (),
) -> None:
    """Write `program` (quantized or float) to the ONNX file `path`.

    Args:
        program: from the fold stage.
        path: of the file.
        pixels: the program takes pixel values 0..255; the file then takes 8-bit RGB images.
        options: with x86_amx, weights are stored so that ONNX Runtime multiplies them with AMX,
            which other x86 CPUs are slower with; with float16, all numbers of a float program
            but what goes in and comes out are such; with few_bits, weights of at most 16
            different numbers take 4 bits; with opset17, the file is of that opset.
    """
    if pixels:
        refuse_learned_input(program)
    model = as_onnx.to_onnx(program)
    pad_in_convolutions(model)
    enlarge_by_convolution(model)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        quantize_biases(model)
        own_weights(model)
        keep_float(model)
        unsigned_activations(model)
    if pixels:
        take_pixels(model)
    if "x86_amx" in options:
        gemm_form(model)
    as_onnx.drop_unused_constants(model)
    if "float16" in options:
        model = half(model)
    if "opset17" in options:
        as_older(model)
    if "few_bits" in options:
        pack(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def as_older(model: onnx.ModelProto) -> None:
    """Say that a model is of opset 17, in place; nothing in it changes.

    The operations that programs become are the same in opsets 17 to 21: later ones added types,
    and attributes that are not used here.

    before: opset 21, IR version 10
    after:  opset 17, IR version 8

    Raises:
        InputError: an operation is not, such as GELU, which opset 20 brought.
    """
    for imported in model.opset_import:
        if imported.domain == "":
            imported.version = OLDER_OPSET
    model.ir_version = _OLDER_IR
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"target.opset: got {OLDER_OPSET}; the network has an operation that came later "
            f"({first}); give {as_onnx.OPSET}"
        ) from None


def quantize_biases(model: onnx.ModelProto) -> None:
    """Store convolution biases as int32 at input scale x weight scale, in place.

    The program's biases lie on that grid already, so the division is exact to the nearest
    integer; ONNX Runtime fuses a quantized convolution only with its bias in this form.

    before: bias float32 -> Conv
    after:  bias int32, input scale x weight scale -> DequantizeLinear -> Conv
    """
    made_by, values = as_onnx.producers(model), as_onnx.constants(model)
    added: list[tuple[int, onnx.NodeProto]] = []
    initializers: list[onnx.TensorProto] = []
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        data, weight = made_by.get(node.input[0]), made_by.get(node.input[1])
        if data is None or weight is None:
            continue
        if {data.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        scale = values[data.input[1]].astype(np.float64) * values[weight.input[1]]
        name = f"{node.output[0]}.bias"
        steps = np.rint(values[node.input[2]].astype(np.float64) / scale).astype(np.int32)
        initializers += [
            numpy_helper.from_array(steps, f"{name}.int32"),
            numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"),
        ]
        inputs = [f"{name}.int32", f"{name}.scale"]
        added.append((index, helper.make_node("DequantizeLinear", inputs, [name], axis=0)))
        node.input[2] = name
    for index, node in reversed(added):
        model.graph.node.insert(index, node)
    model.graph.initializer.extend(initializers)


def own_weights(model: onnx.ModelProto) -> None:
    """Give every quantized weight initializers of its own, in place.

    ONNX Runtime 1.23 makes an unsigned copy per reader in its exact x86 mode, under one name,
    and fails to load a file where two weights share an initializer (and crashes on a weight
    without a zero point).

    before: weight int8 -> DequantizeLinear -> Conv A and Conv B
    after:  weight int8 -> DequantizeLinear -> Conv A; a copy -> DequantizeLinear -> Conv B
    """
    values, made_by = as_onnx.constants(model), as_onnx.producers(model)
    nodes: list[onnx.NodeProto] = []
    taken: set[str] = set()
    # What is no convolution keeps the weight that it reads.
    kept = {n for node in model.graph.node if node.op_type != "Conv" for n in node.input}
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = made_by.get(node.input[1])
            if weight is not None and weight.op_type == "DequantizeLinear":
                own = _own_weight(weight, node.output[0], taken, values)
                model.graph.initializer.extend(own[1])
                nodes.append(own[0])
                node.input[1] = own[0].output[0]
        is_weight = node.op_type == "DequantizeLinear" and (
            values.get(node.input[0], _NONE).dtype == np.int8
        )
        if not is_weight or node.output[0] in kept:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _own_weight(
    weight: onnx.NodeProto, reader: str, taken: set[str], values: dict[str, as_onnx.Array]
) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A copy of a weight's DequantizeLinear for one reader, and the initializers it adds."""
    names, added = list(weight.input), []
    for index in (0, 2):
        if names[index] in taken:
            name = f"{reader}.weight.{('int8', 'scale', 'zero_point')[index]}"
            added.append(numpy_helper.from_array(values[names[index]], name))
            names[index] = name
        taken.add(names[index])
    copied = helper.make_node("DequantizeLinear", names, [f"{reader}.weight"], axis=0)
    return copied, added


def unsigned_activations(model: onnx.ModelProto) -> None:
    """Move activations from int8 to uint8, in place: zero point + 128 is the same grid.

    x86 kernels multiply unsigned by signed; ONNX Runtime measures twice as fast with it.

    before: x -> QuantizeLinear(int8, zero point z) -> DequantizeLinear(z) -> Conv
    after:  x -> QuantizeLinear(uint8, z + 128) -> DequantizeLinear(z + 128) -> Conv
    """
    values = as_onnx.constants(model)
    for node in model.graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        if node.input[0] in values:
            continue  # weights and biases stay signed
        zero_point = values[node.input[2]]
        name = f"{node.input[2]}.uint8"
        if name not in values:
            moved = (zero_point.astype(np.int16) + 128).astype(np.uint8)
            values[name] = moved
            model.graph.initializer.append(numpy_helper.from_array(moved, name))
        node.input[2] = name
    del model.graph.value_info[:]  # it still says int8; runtimes infer it again


@following("an ONNX graph")
def inspect(path: Path) -> FileFacts:
    """Read an ONNX file: its own grids, and the graph ONNX Runtime makes of it to run."""
    model = unpacked(onnx.load(path))
    values = as_onnx.constants(model)
    weights: Counter[tuple[float, ...]] = Counter()
    codes: Counter[Codes] = Counter()
    tensors = quantized_tensors(model).items()
    layers = {name: _grid(node, values) for name, node in tensors}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        name, stored = node.input[0], values.get(node.input[0])
        if stored is not None and stored.dtype in (np.int8, np.uint8):
            weights[tuple(float(s) for s in values[node.input[1]].reshape(-1))] += 1
            codes[codes_of(_signed(stored))] += 1
        elif name in layers and _grid(node, values) != layers[name]:
            layers[name] = NO_GRID
    optimized = _optimized(path)
    return FileFacts(
        ops=dict(Counter(node.op_type for node in optimized.graph.node)),
        int8_macs=_macs(model, optimized, {"QLinearConv"}),
        macs=_macs(model, model, {"Conv"}),
        layers=layers,
        weights=weights,
        codes=codes,
    )


def _signed(weight: as_onnx.Array) -> NDArray[np.int8]:
    """Weights as int8; uint8 has the zero point 128 (`amx`)."""
    return weight if weight.dtype == np.int8 else numbers(weight)


def _grid(node: onnx.NodeProto, values: dict[str, as_onnx.Array]) -> Grid:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear, the latter as for int8."""
    scale, zero_point = values[node.input[1]], values[node.input[2]]
    shift = 128 if zero_point.dtype == np.uint8 else 0
    return float(scale), int(zero_point) - shift


def _optimized(path: Path) -> onnx.ModelProto:
    """The graph after ONNX Runtime's fusions, before its layout changes."""
    import onnxruntime

    options = session_options(threads=1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as scratch:
        optimized = Path(scratch, "optimized.onnx")
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(optimized)


def _macs(model: onnx.ModelProto, graph: onnx.ModelProto, types: set[str]) -> int:
    """MACs for one image of the convolutions of `graph`, shapes inferred on `model`."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for value in single.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    weights = {**as_onnx.constants(model), **as_onnx.constants(graph)}
    made_by = as_onnx.producers(graph)
    total = 0
    for node in graph.graph.node:
        if node.op_type not in types:
            continue
        weight = node.input[3 if node.op_type == "QLinearConv" else 1]
        if weight not in weights:
            weight = made_by[weight].input[0]
        positions = int(np.prod(shapes[node.output[0]][2:]))
        total += conv_macs(weights[weight].shape, positions)
    return total


def session_options(threads: int) -> Any:
    """Options of every session: threads, no messages, and exact int8 kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if needs_exact_kernels():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


class OnnxRunnable:
    """An ONNX file opened in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(
            str(path), session_options(threads), providers=["CPUExecutionProvider"]
        )
        image = self._session.get_inputs()[0]
        self._takes_pixels = image.type == "tensor(uint8)"
        self._given = self._session.get_outputs()[0].name
        self._input: dict[str, Any] = {}
        self._output: NDArray[np.float32] | None = None
        # Files of other tools may be made for one number of images.
        self.batch: int | None = image.shape[0] if isinstance(image.shape[0], int) else None

    def set_input(self, images: NDArray[np.float32]) -> None:
        """Take images (batch, 3, side, side), normalised or pixel values as the file wants."""
        self._input = {as_onnx.INPUT: laid_out(images, pixels=self._takes_pixels)}

    def invoke(self) -> None:
        """Run the network on the images that were set."""
        self._output = self._session.run([self._given], self._input)[0]

    def output(self) -> NDArray[np.float32]:
        """Logits or probabilities (batch, classes) of the last run."""
        assert self._output is not None
        return self._output

    def outputs(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Run the network and return the outputs `names`."""
        return dict(zip(names, self._session.run(list(names), self._input), strict=True))


def needs_exact_kernels() -> bool:
    """Whether this CPU's fast kernel for uint8 x int8 would saturate.

    x86 without VNNI adds pairs of products in 16 bits. ONNX Runtime's own switch
    (`session.x64quantprecision`) takes the slower kernel that is exact; ARM and VNNI need none.
    """
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    return not any("vnni" in flag for flag in cpu_flags() or ())


@following("an ONNX graph")
def open_file(path: Path, threads: int = 1) -> OnnxRunnable:
    """Open an ONNX file for running."""
    return OnnxRunnable(path, threads)


@following("an ONNX graph")
def trace(path: Path, images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
    """Every quantized tensor inside the file, as ONNX Runtime computes it.

    Args:
        path: the file.
        images: (batch, 3, side, side), as for `set_input`.

    Returns:
        Integers (batch, channels, height, width) on the program's grid (uint8 - 128), by the
        name of the program's layer.
    """
    copy = tapped(path)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "tapped.onnx")
        file.write_bytes(copy.content)
        runnable = OnnxRunnable(file, threads=1)
    runnable.set_input(images)
    return {name: numbers(values) for name, values in runnable.outputs(copy.names).items()}


def cannot_time() -> str | None:
    """Why this host cannot time ONNX files; None, since every host can."""
    return None


def evaluated() -> ComputedBy:
    """What computes the answers here: the runtime itself."""
    return "runtime"
