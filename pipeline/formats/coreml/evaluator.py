"""The answers of a Core ML network, computed by torch on any host.

Each operation has the meaning that coremltools' definitions give it (`mil_ops`). This is a
reference, not a copy of a runtime: Core ML says neither in which order nor with how many bits it
adds up a convolution, and may fuse operations whose results are rounded one by one here.

    network = mil.read(Path("model.mlpackage"))
    answers = Evaluator(network).run({"image": images[:, None]}, ["logits"])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.base.errors import following
from pipeline.formats.coreml.ops import CHOOSING, OPS, to_grid_and_back
from pipeline.formats.coreml.package import Constant, Network, Operation, Value

Arithmetic = Literal["float16", "float32"]

_FLOATS = {"float16", "float32"}
_AT_ONCE = 64
"""Examples evaluated together, at most; twice as many were 7 % faster."""
_WORKING_BYTES = 128 * 2**20
"""Intermediate tensors held at once, about; large images are evaluated fewer at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """An operation with its function.

    Attributes:
        operation: as in the file.
        function: of `OPS`.
        fixed: its arguments that are no tensors.
        reads: names of its tensors, or of several, by argument.
        drops: tensors that no later step reads.
        rounded: whether what it gives has the type that the file declares without being rounded.
    """

    operation: Operation
    function: Callable[..., Any]
    fixed: dict[str, Any] = field(default_factory=dict)
    reads: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    drops: tuple[str, ...] = ()
    rounded: bool = False

    def tensors(self) -> list[str]:
        return [n for r in self.reads.values() for n in ([r] if isinstance(r, str) else r)]


class Evaluator:
    """A network, ready to be evaluated.

    With arithmetic "float16" tensors have the types that the file declares: each operation
    computes in float32, and its result is rounded to float16 where the file says so. With
    "float32" such tensors keep what float32 gives; stored constants are those of the file.
    Integers are integers in both.
    """

    def __init__(self, network: Network, arithmetic: Arithmetic = "float16") -> None:
        """Bind every operation to its function; compute what depends on constants alone.

        Raises:
            NotImplementedError: an operation, or an argument of one, that is not known here.
        """
        self._rounds = arithmetic == "float16"
        self._inputs = tuple(i.value for i in network.inputs)
        self._constants: dict[str, Tensor] = {}
        self._bound_steps = self._bound(network)
        self._outputs = network.outputs
        self._plans: dict[frozenset[str], list[_Step]] = {}
        peak = _peak_bytes(_with_drops(self._bound_steps, self._outputs), self._inputs)
        self._at_once = max(1, min(_AT_ONCE, _WORKING_BYTES // peak))

    @following("a Core ML package")
    def run(
        self, inputs: Mapping[str, NDArray[Any]], names: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Evaluate the network on several examples, each as if it were alone.

        Args:
            inputs: for every input an array (examples, *its shape in the file).
            names: of the tensors asked for, any in the network.

        Returns:
            Arrays (examples, *shape in the file) of float32, or of integers as in the file.

        Raises:
            ValueError: an input of another shape.
        """
        given: dict[str, Sequence[Tensor]] = {}
        for value in self._inputs:
            array = inputs[value.name]
            if array.shape[1:] != value.shape:
                wanted = ", ".join(map(str, value.shape))
                raise ValueError(
                    f"input '{value.name}' has shape {array.shape}; must be (examples, {wanted})"
                )
            stored = self._stored(_tensor(array), value.dtype)
            given[value.name] = torch.split(stored, self._at_once)
        asked = frozenset(names)
        if asked not in self._plans:
            kept = asked.union(self._outputs)
            self._plans[asked] = _with_drops(_without_integers(self._bound_steps, kept), kept)
        steps = self._plans[asked]
        # Every operation sees one example, in the file's shapes; vmap computes many at a time.
        evaluate = torch.func.vmap(lambda chunk: self._evaluate(steps, chunk, names))
        with torch.no_grad():
            found = [
                evaluate(dict(zip(given, parts, strict=True)))
                for parts in zip(*given.values(), strict=True)
            ]
        return {name: torch.cat([part[name] for part in found]).numpy() for name in names}

    def _bound(self, network: Network) -> list[_Step]:
        stored: dict[str, Constant] = {}
        steps = []
        declared = {value.name: value.dtype for value in self._inputs}
        for op in network.operations:
            declared |= {value.name: value.dtype for value in op.outputs}
            if op.type == "const":
                stored[op.outputs[0].name] = op.attributes["val"]
                continue
            step, constants = _bind(op, stored)
            step = replace(step, rounded=_is_rounded(step, declared))
            known = self._constants
            read = {n: _tensor(c) for n, c in constants.items() if n not in known}
            if all(name in known or name in read for name in step.tensors()):
                known |= self._results(step, known | read)
            else:
                known |= read
                steps.append(step)
        return steps

    def _evaluate(
        self, steps: Sequence[_Step], inputs: dict[str, Tensor], names: Sequence[str]
    ) -> dict[str, Tensor]:
        values = self._constants | inputs
        for step in steps:
            values |= self._results(step, values)
            for name in step.drops:
                del values[name]
        return {name: values[name] for name in names}

    def _results(self, step: _Step, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        op = step.operation
        tensors = {
            name: values[read] if isinstance(read, str) else tuple(values[n] for n in read)
            for name, read in step.reads.items()
        }
        try:
            made = step.function(**step.fixed, **tensors)
        except NotImplementedError as error:
            raise NotImplementedError(f"{op.type} '{op.name}': {error}") from error
        except Exception as error:
            error.add_note(f"in {op.type} '{op.name}'")
            raise
        results = {}
        for tensor, value in zip(_several(made), op.outputs, strict=True):
            floating = value.dtype in _FLOATS
            if tuple(tensor.shape) != value.shape or tensor.is_floating_point() != floating:
                raise RuntimeError(
                    f"{op.type} '{op.name}' gave {tensor.dtype} {tuple(tensor.shape)}; the file "
                    f"declares {value.dtype} {value.shape}"
                )
            results[value.name] = tensor if step.rounded else self._stored(tensor, value.dtype)
        return results

    def _stored(self, tensor: Tensor, dtype: str) -> Tensor:
        if dtype not in _FLOATS:
            return tensor.to(getattr(torch, dtype))
        return tensor.half().float() if dtype == "float16" and self._rounds else tensor.float()


def _several(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (made,) if isinstance(made, Tensor) else made


def _tensor(constant: Constant) -> Tensor:
    """A tensor of its own memory; floats of any length become float32, which holds them all."""
    tensor = torch.from_numpy(np.array(constant))
    return tensor.float() if tensor.is_floating_point() else tensor


def _bind(op: Operation, stored: Mapping[str, Constant]) -> tuple[_Step, dict[str, Constant]]:
    """Sort an operation's arguments as its function takes them.

    Returns:
        The step, and the constants it reads as tensors, by name.
    """
    if op.type not in OPS:
        known = ", ".join(sorted(OPS))
        raise NotImplementedError(f"{op.type} '{op.name}' cannot be evaluated; known are {known}")
    step = _Step(operation=op, function=OPS[op.type])
    hints = get_type_hints(step.function)
    constants: dict[str, Constant] = {}
    for argument, given in {**op.attributes, **op.inputs}.items():
        place = f"{op.type} '{op.name}': argument '{argument}'"
        hint = hints.get(argument)
        if hint is None:
            raise NotImplementedError(f"{place} is not known")
        if hint in (Tensor, Tensor | None, tuple[Tensor, ...]):
            if not isinstance(given, tuple):
                name = f"{op.outputs[0].name}.{argument}"
                constants[name], given = given, (name,)
            constants |= {name: stored[name] for name in given if name in stored}
            step.reads[argument] = given if hint == tuple[Tensor, ...] else given[0]
            continue
        if isinstance(given, tuple):
            if given[0] not in stored:
                raise NotImplementedError(f"{place} is computed; only a constant is known")
            given = stored[given[0]]
        step.fixed[argument] = given if isinstance(given, str) else given.tolist()
    return step, constants


def _is_rounded(step: _Step, declared: Mapping[str, str]) -> bool:
    """Whether float16 numbers go in and come out as they are: half of a step's time is rounding."""
    given = [declared.get(name) for name in step.tensors()]
    types = {*given, *(value.dtype for value in step.operation.outputs)}
    return step.operation.type in CHOOSING and types == {"float16"}


def _without_integers(steps: Sequence[_Step], kept: Collection[str]) -> list[_Step]:
    """The steps, each pair that quantizes and dequantizes a tensor as one.

    before: q = quantize(x);  y = dequantize(q)
    after:  y = to_grid_and_back(x), the same numbers in half of the time

    Tensors of `kept`, and those that others read, stay.
    """
    readers: dict[str, list[_Step]] = {}
    for step in steps:
        for name in step.tensors():
            readers.setdefault(name, []).append(step)
    found: list[_Step] = []
    waiting: dict[str, _Step] = {}
    for step in steps:
        name = step.operation.outputs[0].name
        reading = [one.operation.type for one in readers.get(name, [])]
        given = step.reads.get("input")
        if step.operation.type == "quantize" and reading == ["dequantize"] and name not in kept:
            waiting[name] = step
        elif isinstance(given, str) and given in waiting:
            found.append(_as_one(waiting[given], step))
        else:
            found.append(step)
    return found


def _as_one(quantize: _Step, dequantize: _Step) -> _Step:
    back = {f"back_{k}": read for k, read in dequantize.reads.items() if k != "input"}
    return _Step(
        operation=dequantize.operation,
        function=to_grid_and_back,
        fixed={**quantize.fixed, **{f"back_{k}": value for k, value in dequantize.fixed.items()}},
        reads={**quantize.reads, **back},
    )


def _with_drops(steps: Sequence[_Step], outputs: Collection[str]) -> list[_Step]:
    """The steps, each with the tensors that are made inside and not needed after it."""
    made = {value.name for step in steps for value in step.operation.outputs}
    needed = set(outputs)
    backwards = []
    for step in reversed(steps):
        touched = {*step.tensors(), *(value.name for value in step.operation.outputs)}
        drops = (touched & made) - needed
        needed |= touched
        backwards.append(replace(step, drops=tuple(sorted(drops))))
    return backwards[::-1]


def _peak_bytes(steps: Sequence[_Step], inputs: Sequence[Value]) -> int:
    """Most bytes of tensors held at once for one example, all of them float32."""
    sizes = {v.name: 4 * math.prod(v.shape) for s in steps for v in s.operation.outputs}
    held = peak = sum(4 * math.prod(value.shape) for value in inputs)
    for step in steps:
        held += sum(sizes[value.name] for value in step.operation.outputs)
        peak = max(peak, held)
        held -= sum(sizes[name] for name in step.drops)
    return peak
