"""Core ML packages: mlprogram for iOS 17, int8 weights and activations (W8A8) or float16.

Weights with many zeros can be stored sparsely, those that are few different numbers in fewer bits
than 8; either takes iOS 18.

Core ML itself runs on Apple systems only. Elsewhere the reference evaluator of `mil_evaluator`
answers for a package; nothing but Core ML is timed.
"""

from __future__ import annotations

import json
import platform
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.base.errors import following
from pipeline.formats import as_onnx
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.aten import for_coremltools
from pipeline.formats.coreml.describe import describe as describe
from pipeline.formats.coreml.describe import interface as interface
from pipeline.formats.coreml.evaluator import Evaluator
from pipeline.formats.coreml.imports import import_coremltools
from pipeline.formats.coreml.names import grid_of, quantize_names, stamp_names
from pipeline.formats.coreml.weights import int8_weight
from pipeline.formats.file_facts import (
    NO_GRID,
    Codes,
    FileFacts,
    Grid,
    codes_of,
    conv_macs,
    learned_scales,
)
from pipeline.formats.format import ComputedBy, Option
from pipeline.formats.pixels import camera_pixels, refuse_learned_input
from pipeline.formats.refusals import refuse_divisors

_RESCALES_ADDITIONS = "common::distributive_quantized_binary_op_scale_normalization"
"""The pass that divides the grids of an addition by one another and rounds the ratios to
float16: the file would no longer hold the scales that were learned."""
_NEED_IOS18: frozenset[Option] = frozenset({"sparse", "few_bits"})


def _input(program: torch.export.ExportedProgram, pixels: bool) -> Any:
    """The program's one input as coremltools has it, batch 1: an image, or a tensor."""
    import coremltools as ct

    (taken,) = program.graph_signature.user_inputs
    placeholder = next(node for node in program.graph.nodes if node.name == taken)
    shape = (1, *(int(size) for size in placeholder.meta["val"].shape[1:]))
    if not pixels:
        return ct.TensorType(name=as_onnx.INPUT, shape=shape)
    refuse_learned_input(program)
    # ImageType's own scale is one number for three channels: it cannot divide by a standard
    # deviation per channel, so it changes nothing and the network normalises.
    grey = shape[1] == 1
    return ct.ImageType(
        name=as_onnx.INPUT,
        shape=shape,
        color_layout=ct.colorlayout.GRAYSCALE if grey else ct.colorlayout.RGB,
        scale=1.0,
        bias=0.0 if grey else [0.0, 0.0, 0.0],
    )


def load_writer() -> None:
    """Import coremltools."""
    import_coremltools()


def write(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    pixels: bool = False,
    options: Collection[Option] = (),
) -> None:
    """Write `program` (quantized or float) to the package `path`, batch 1.

    Args:
        program: from the fold stage.
        path: of the package.
        pixels: the program takes pixel values 0..255; the file then takes 8-bit RGB images.
        options: with sparse, int8 weights that are smaller so are stored as their nonzero values
            and a bit per weight. With few_bits, those that are smaller so are stored in fewer bits
            than 8; with both, in what is smallest. The package then needs iOS 18, whether or not
            there are any. With clipped_products or float16_products, products are written as
            `products` says.

    Raises:
        InputError: an operation that Core ML does not have.
        RuntimeError: a quantized tensor of the package is none of the program's.
    """
    import_coremltools()
    import coremltools as ct

    refuse_divisors(program)
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({_RESCALES_ADDITIONS})
    _append_weights(passes, options)
    _append_products(passes, options)
    later = not _NEED_IOS18.isdisjoint(options)
    with _only_equal_constants_are_one(), _unchecked_between_passes():
        model = ct.convert(
            for_coremltools(program),
            inputs=[_input(program, pixels)],
            outputs=[ct.TensorType(name=as_onnx.OUTPUT)],
            minimum_deployment_target=ct.target.iOS18 if later else ct.target.iOS17,
            pass_pipeline=passes,
            skip_model_load=True,
        )
    model.save(str(path))
    # Written for ExecuTorch's debugger, half a megabyte that no app reads.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)
    stamp_names(path, quantize_names(program), learned_scales(program)[0])
    _number_the_parts(path)


def _append_weights(passes: Any, options: Collection[Option]) -> None:
    """Add the pass that stores int8 weights in another way, where one was asked for."""
    if "few_bits" in options:
        from pipeline.formats.coreml import few_bits

        passes.append_pass(few_bits.NAME_SPARSE if "sparse" in options else few_bits.NAME)
    elif "sparse" in options:
        from pipeline.formats.coreml import sparse

        passes.append_pass(sparse.NAME)


def _append_products(passes: Any, options: Collection[Option]) -> None:
    """Add the pass that writes products in another way, where one was asked for."""
    from pipeline.formats.coreml import products

    if "float16_products" in options:
        passes.append_pass(products.UNQUANTIZE)
    elif "clipped_products" in options:
        passes.append_pass(products.CLIP)


@contextmanager
def _only_equal_constants_are_one() -> Iterator[None]:
    """Keep coremltools from storing constants once that are nearly the same.

    It takes float16 numbers less than 6e-8 apart for equal, which the two smallest scales are.
    """
    from coremltools.converters.mil.mil.passes.defs.cleanup.const_deduplication import (
        const_deduplication,
    )

    before = const_deduplication.DTYPE2ATOL
    const_deduplication.DTYPE2ATOL = dict.fromkeys(before, 0.0)
    try:
        yield
    finally:
        const_deduplication.DTYPE2ATOL = before


@contextmanager
def _unchecked_between_passes() -> Iterator[None]:
    """Keep coremltools from checking the whole network after each of its hundred passes.

    That takes a third of the time, and finds faults of passes alone. The file is read again, and
    computed layer by layer, when it is verified.
    """
    from coremltools.converters.mil.mil import Program

    before = Program.validate
    Program.validate = lambda self, check_essential_scope=False: None
    try:
        yield
    finally:
        Program.validate = before


def _number_the_parts(path: Path) -> None:
    """Give the package's parts identifiers that depend on their paths, not random ones.

    The same program so gives the same package, byte for byte.
    """
    from coremltools.models.utils import load_spec

    file = path / coreml_package.MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8"))
    parts = {
        old: str(uuid.uuid5(uuid.NAMESPACE_URL, part["path"]))
        for old, part in manifest["itemInfoEntries"].items()
    }
    manifest["itemInfoEntries"] = {
        new: manifest["itemInfoEntries"][old]
        for old, new in sorted(parts.items(), key=lambda pair: pair[1])
    }
    manifest["rootModelIdentifier"] = parts[manifest["rootModelIdentifier"]]
    file.write_text(json.dumps(manifest), encoding="utf-8")
    # Core ML's library writes it anew whenever it opens a package: once in that form, it stays.
    load_spec(str(path))


@following("a Core ML package")
def inspect(path: Path) -> FileFacts:
    """Read a package's specification and weight file."""
    network = coreml_package.read(path)
    made_by = network.producers()
    ops: Counter[str] = Counter()
    layers: dict[str, Grid] = {}
    weights: Counter[tuple[float, ...]] = Counter()
    codes: Counter[Codes] = Counter()
    macs = int8_macs = 0
    read_as_int8 = {op.tensor("input") for op in network.operations if op.type == "quantize"}
    for op in network.operations:
        if op.type == "const":
            continue
        ops[op.type] += 1
        if op.type == "quantize":
            layers[op.outputs[0].name] = grid_of(op, made_by, op.outputs[0].dtype)
        elif op.type in {"conv", "linear"}:
            weight, data = made_by[op.tensor("weight")], made_by.get(op.tensor("x"))
            stored = int8_weight(weight, made_by)
            if stored is not None:
                # Equal weights are stored once: each reader counts.
                weights[tuple(float(s) for s in np.ravel(stored.scale))] += 1
                codes[codes_of(stored.codes)] += 1
            output = op.outputs[0]
            count = conv_macs(weight.outputs[0].shape, int(np.prod(output.shape[2:])))
            macs += count
            has_int8_data = data is not None and data.type == "dequantize"
            if stored is not None and has_int8_data and output.name in read_as_int8:
                int8_macs += count
    ops.update(["classify"] if network.labels else [])
    for op in network.operations:
        # A tensor that is read on another grid than it is written on does not have either.
        if op.type == "dequantize" and (name := op.tensor("input")) in layers:
            found = grid_of(op, made_by, made_by[name].outputs[0].dtype)
            if found != layers[name]:
                layers[name] = NO_GRID
    return FileFacts(
        ops=dict(ops),
        int8_macs=int8_macs,
        macs=macs,
        layers=layers,
        weights=weights,
        codes=codes,
    )


class CoreMLRunnable:
    """A package opened in Core ML, on Apple systems only."""

    batch: int | None = 1

    def __init__(self, path: Path, threads: int) -> None:
        # Core ML chooses its own threads and compute units; the number is only recorded.
        import_coremltools()
        import coremltools as ct

        self._model = ct.models.MLModel(str(path))
        (feature,) = self._model.get_spec().description.input
        self._takes_pixels = coreml_package.input_kind(feature) == "image"
        network = coreml_package.read(path)
        self._labels, self._name = network.labels, network.outputs[0]
        if network.labels is not None:
            self._name = self._model.get_spec().description.predictedProbabilitiesName
        self._input: dict[str, Any] = {}
        self._output: NDArray[np.float32] | None = None

    def set_input(self, images: NDArray[np.float32]) -> None:
        """Take one image (1, 3, side, side), normalised or pixel values as the file wants."""
        from PIL import Image

        if not self._takes_pixels:
            self._input = {as_onnx.INPUT: images}
            return
        pixels = camera_pixels(images)[0]
        grey = pixels.shape[-1] == 1
        self._input = {as_onnx.INPUT: Image.fromarray(pixels[..., 0] if grey else pixels)}

    def invoke(self) -> None:
        """Run the network on the image that was set."""
        found = self._model.predict(self._input)[self._name]
        if self._labels is not None:
            found = [[found[label] for label in self._labels]]
        self._output = np.asarray(found, np.float32)

    def output(self) -> NDArray[np.float32]:
        """Logits or probabilities (1, classes) of the last run."""
        assert self._output is not None
        return self._output


class ReferenceRunnable:
    """A package opened in the reference evaluator, on any system."""

    batch: int | None = None

    def __init__(self, path: Path, network: coreml_package.Network | None = None) -> None:
        # Of a package as it is, or as `faults` has changed it.
        network = coreml_package.read(path) if network is None else network
        (self._taken,), (self._given,) = network.inputs, network.outputs
        self._evaluator = Evaluator(network)
        self.quantized = [op.outputs[0].name for op in network.operations if op.type == "quantize"]
        self._input: NDArray[np.float32] | None = None
        self._output: NDArray[np.float32] | None = None

    def set_input(self, images: NDArray[np.float32]) -> None:
        """Take images (batch, 3, side, side), normalised or pixel values as the file wants."""
        if self._taken.kind == "image":
            images = camera_pixels(images).transpose(0, 3, 1, 2).astype(np.float32)
        self._input = images

    def invoke(self) -> None:
        """Evaluate the network on the images that were set."""
        self._output = self.tensors([self._given])[self._given]

    def output(self) -> NDArray[np.float32]:
        """Logits or probabilities (batch, classes) of the last run."""
        assert self._output is not None
        return self._output

    def tensors(self, names: list[str]) -> dict[str, NDArray[Any]]:
        """The tensors `names`, each (batch, ...), for the images that were set."""
        assert self._input is not None
        # Files have batch 1: each image is an example of its own.
        found = self._evaluator.run({self._taken.value.name: self._input[:, None]}, names)
        return {name: values[:, 0] for name, values in found.items()}


@following("a Core ML package")
def open_file(path: Path, threads: int = 1) -> CoreMLRunnable | ReferenceRunnable:
    """Open a package for running; where Core ML does not run, for evaluation.

    `threads` is for Core ML; the evaluator uses torch's.
    """
    return CoreMLRunnable(path, threads) if evaluated() == "runtime" else ReferenceRunnable(path)


@following("a Core ML package")
def trace(path: Path, images: NDArray[np.float32]) -> dict[str, NDArray[np.int8]]:
    """Every quantized tensor inside the package, by the reference evaluator on every host.

    Core ML gives out no tensor inside a network.

    Args:
        path: the package.
        images: (batch, 3, side, side), as for `set_input`.

    Returns:
        Integers (batch, ...) on the program's grid (uint8 - 128), by the name of the program's
        layer.
    """
    runnable = ReferenceRunnable(path)
    runnable.set_input(images)
    return {n: _signed(values) for n, values in runnable.tensors(runnable.quantized).items()}


def _signed(values: NDArray[Any]) -> NDArray[np.int8]:
    return values if values.dtype == np.int8 else (values.astype(np.int16) - 128).astype(np.int8)


def cannot_time() -> str | None:
    """Why this host cannot time Core ML; None where it can."""
    system = platform.system()
    return None if system == "Darwin" else f"Core ML runs on Apple systems only, not on {system}"


def evaluated() -> ComputedBy:
    """What computes the answers here: Core ML itself, or the reference evaluator."""
    return "runtime" if cannot_time() is None else "reference"
