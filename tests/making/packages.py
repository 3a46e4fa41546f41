"""Core ML packages of a few operations, built with coremltools, written, and read back."""

import gc
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil import Builder as mb
from numpy.typing import NDArray
from torch import Tensor

from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.evaluator import Evaluator

# coremltools collects garbage after every conversion, a third of a second among all these modules.
gc.freeze()

IOS17 = ct.target.iOS17

Array = NDArray[Any]
Build = Callable[[Any], Any]
"""From coremltools' variable `x` to one or several others."""
Case = tuple[Build, Callable[[Array], Array | Tensor]]
"""An operation in a package, and what its result must be."""


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of_torch(function: Callable[..., Tensor], **arguments: Any) -> Callable[[Array], Tensor]:
    return lambda x: function(torch.from_numpy(x), **arguments)


def of_x(operation: str, /, **arguments: Any) -> Build:
    """`operation` of x; coremltools takes arguments by name only."""
    return lambda x: getattr(mb, operation)(x=x, **arguments)


def network(build: Build, shape: Sequence[int], *, float16: bool = False) -> coreml_package.Network:
    """A network of one input `x` after its way through a package on disk."""

    @mb.program(input_specs=[mb.TensorSpec(shape=tuple(shape))], opset_version=IOS17)
    def program(x: Any) -> Any:
        return build(x)

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=IOS17,
        skip_model_load=True,
        # No pass may take away what is to be tested.
        pass_pipeline=ct.PassPipeline(["common::add_fp16_cast"] if float16 else [], "as built"),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.mlpackage")
        model.save(str(path))
        return coreml_package.read(path)


def saved_ios18(build: Build, shape: Sequence[int]) -> coreml_package.Network:
    """A network of iOS 18 operations after its way through a package, with no pass in between."""
    target = ct.target.iOS18

    @mb.program(input_specs=[mb.TensorSpec(shape=tuple(shape))], opset_version=target)
    def program(x: Any) -> Any:
        return build(x)

    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        skip_model_load=True,
        pass_pipeline=ct.PassPipeline([], "as built"),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.mlpackage")
        model.save(str(path))
        return coreml_package.read(path)


def answers(net: coreml_package.Network, x: Array, arithmetic: Any = "float16") -> list[Array]:
    """The outputs, in their order, for examples `x`."""
    found = Evaluator(net, arithmetic).run({"x": x}, net.outputs)
    return [found[name] for name in net.outputs]


def check(cases: Iterable[Case], x: Array) -> None:
    """Put all operations in one package, and compare their results for three examples."""
    cases = list(cases)
    examples = np.stack([x, 0.5 * x, np.flip(x)]).astype(np.float32)
    found = answers(network(lambda v: [build(v) for build, _ in cases], x.shape), examples)
    for (_, reference), results in zip(cases, found, strict=True):
        for example, result in zip(examples, results, strict=True):
            wanted = np.asarray(reference(example))
            assert result.shape == wanted.shape
            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
