"""Core ML packages: mlprogram for iOS 17, int8 weights and activations (W8A8) or float16.

Core ML itself runs on Apple systems only; on others a package is written and read, not run.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.formats import qdq
from pipeline.formats.facts import FileFacts, Grid, conv_macs

_BlobReader = Callable[[str, int], NDArray[Any]]

RUNTIME = "coreml"

_RESCALES_ADDITIONS = "common::distributive_quantized_binary_op_scale_normalization"
"""The pass that divides the grids of an addition by one another and rounds the ratios to
float16: the file would no longer hold the scales that were learned."""


def write(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write `program` (quantized or float) to the package `path`, batch 1."""
    import coremltools as ct

    shape = next(
        n.meta["val"].shape for n in program.graph.nodes if n.name in _user_inputs(program)
    )
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({_RESCALES_ADDITIONS})
    model = ct.convert(
        program.run_decompositions({}),
        inputs=[ct.TensorType(name=qdq.INPUT, shape=(1, *(int(s) for s in shape[1:])))],
        outputs=[ct.TensorType(name=qdq.OUTPUT)],
        minimum_deployment_target=ct.target.iOS17,
        pass_pipeline=passes,
        skip_model_load=True,
    )
    model.save(str(path))
    # Written for ExecuTorch's debugger, half a megabyte that no app reads.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _user_inputs(program: torch.export.ExportedProgram) -> set[str]:
    return {str(name) for name in program.graph_signature.user_inputs}


def inspect(path: Path) -> FileFacts:
    """Read a package's specification and weight file."""
    from coremltools.models.utils import load_spec
    from coremltools.proto import MIL_pb2

    spec = load_spec(str(path))
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    made_by = {output.name: op for op in block.operations for output in op.outputs}
    read_weights = _blob_reader(path)
    ops: Counter[str] = Counter()
    grids: Counter[Grid] = Counter()
    weights: Counter[tuple[float, ...]] = Counter()
    macs = int8_macs = 0
    quantized_outputs = {_argument(op, "input") for op in block.operations if op.type == "quantize"}
    for op in block.operations:
        if op.type == "const":
            continue
        ops[op.type] += 1
        if op.type == "quantize":
            scale = _value(made_by, op, "scale", read_weights)
            zero_point = _value(made_by, op, "zero_point", read_weights)
            # coremltools writes int8 with zero point -128 as uint8 with none: the same grid.
            kind = MIL_pb2.DataType.Name(op.outputs[0].type.tensorType.dataType)
            shift = 128 if kind == "UINT8" else 0
            grids[(float(scale), int(zero_point) - shift)] += 1
        elif op.type in {"conv", "linear"}:
            weight = made_by[_argument(op, "weight")]
            if weight.type == "constexpr_affine_dequantize":
                # Equal weights are stored once: each reader counts.
                scale = _constant(weight.attributes["scale"], read_weights)
                weights[tuple(float(s) for s in np.atleast_1d(scale))] += 1
            positions = int(np.prod(_shape(op.outputs[0])[2:]))
            count = conv_macs(_shape(weight.outputs[0]), positions)
            macs += count
            data = made_by.get(_argument(op, "x"))
            int8 = (
                weight.type == "constexpr_affine_dequantize"
                and data is not None
                and data.type == "dequantize"
                and op.outputs[0].name in quantized_outputs
            )
            int8_macs += count if int8 else 0
    return FileFacts(ops=dict(ops), int8_macs=int8_macs, macs=macs, grids=grids, weights=weights)


def _argument(op: Any, name: str) -> str:
    return str(op.inputs[name].arguments[0].name)


def _shape(value: Any) -> list[int]:
    return [int(d.constant.size) for d in value.type.tensorType.dimensions]


def _value(made_by: dict[str, Any], op: Any, name: str, read: _BlobReader) -> NDArray[Any]:
    """The constant argument `name` of an operation; an absent zero point is 0."""
    if name not in op.inputs:
        return np.zeros((), np.int8)
    argument = op.inputs[name].arguments[0]
    stored = argument.value if argument.HasField("value") else None
    return _constant(stored or made_by[argument.name].attributes["val"], read)


def _constant(value: Any, read: _BlobReader) -> NDArray[Any]:
    """A constant of the specification, stored in place or in the weight file."""
    from coremltools.proto import MIL_pb2

    kind = MIL_pb2.DataType.Name(value.type.tensorType.dataType)
    if value.HasField("blobFileValue"):
        return read(kind, value.blobFileValue.offset)
    tensor = value.immediateValue.tensor
    field = tensor.WhichOneof("value")
    content = getattr(tensor, field).values
    if field == "bytes":
        return np.frombuffer(content, _NUMPY_TYPES[kind]).copy()
    return np.asarray(content)


_NUMPY_TYPES = {"FLOAT16": np.float16, "INT8": np.int8, "UINT8": np.uint8}


def _blob_reader(path: Path) -> _BlobReader:
    """Reader of the package's weight file: (data type, offset) to a flat array."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    file = next(path.rglob("weight.bin"), None)
    reader = _BlobStorageReader(str(file)) if file is not None else None

    def read(kind: str, offset: int) -> NDArray[Any]:
        if reader is None:
            raise ValueError(f"{path} names a weight file that is not there")
        if kind == "FLOAT16":
            bits = np.asarray(reader.read_fp16_data(offset))
            return bits.astype(np.uint16).view(np.float16)
        if kind == "INT8":
            return np.asarray(reader.read_int8_data(offset), np.int8)
        if kind == "FLOAT32":
            return np.asarray(reader.read_float_data(offset), np.float32)
        raise ValueError(f"{path}: cannot read weights of type {kind}")

    return read


class CoreMLRunnable:
    """A package opened in Core ML, on Apple systems only."""

    batch: int | None = 1

    def __init__(self, path: Path, threads: int) -> None:
        # Core ML chooses its own threads and compute units; the number is only recorded.
        import coremltools as ct

        self._model = ct.models.MLModel(str(path))
        self._input: dict[str, NDArray[np.float32]] = {}
        self._output: NDArray[np.float32] | None = None

    def set_input(self, images: NDArray[np.float32]) -> None:
        """Take one image (1, 3, side, side)."""
        self._input = {qdq.INPUT: images}

    def invoke(self) -> None:
        """Run the network on the image that was set."""
        self._output = np.asarray(self._model.predict(self._input)[qdq.OUTPUT], np.float32)

    def output(self) -> NDArray[np.float32]:
        """Logits (1, classes) of the last run."""
        assert self._output is not None
        return self._output


def open_file(path: Path, threads: int = 1) -> CoreMLRunnable:
    """Open a package for running."""
    return CoreMLRunnable(path, threads)


def cannot_run() -> str | None:
    """Why this host cannot run Core ML; None where it can."""
    system = platform.system()
    return None if system == "Darwin" else f"Core ML runs on Apple systems only, not on {system}"
