"""What each layer alone costs in int8, all others being float."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from pipeline.commands.debug.programs import int8_programs
from pipeline.compress.quantization import running
from pipeline.compress.quantization.other_rounding import QUANTIZE
from pipeline.compress.quantization.program import graph_of
from pipeline.formats.file_facts import learned_scales
from pipeline.measure.layers import DEQUANTIZE, Layer, decibels, float_nodes, layers_of
from pipeline.stages.carried import images_of_tests
from pipeline.stages.finished_run import Finished
from pipeline.tasks.images.batches import batches
from pipeline.tasks.images.dataset import Dataset, pixel_values
from pipeline.tasks.task import TaskModule
from pipeline.tasks.tasks import task_of

_BATCH = 4
"""Images at a time: every layer's values are held twice, 0.25 GB for an image of 224 x 224."""
EVERY = "all layers"


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer; the attributes are the columns of the CSV file, in this order.

    Attributes:
        layer: name of the quantized tensor in program and file.
        module: where its operation stands in the network in deploy form.
        operation: the operation that makes it.
        figure: the task's primary figure with this layer in int8, its weights and its output.
        lost_pt: percentage points that it is below the float network's; below 0 when gained.
        agreement: share of the float network's results that stay.
        sqnr_db: signal-to-quantization-noise ratio of the network's answers.
    """

    layer: str
    module: str
    operation: str
    figure: float
    lost_pt: float
    agreement: float
    sqnr_db: float


def run_costs(run: Finished, images: int) -> list[LayerCost]:
    """`layer_costs` of a finished run.

    Args:
        run: of an int8 target.
        images: of the first test set, at most, from all over it.

    Raises:
        InputError: as of `compared_layers`.
    """
    folded, twin = int8_programs(run)
    dataset = images_of_tests(run, images)
    if run.recipe.target.takes_pixels:
        dataset = pixel_values(dataset)
    return layer_costs(folded, twin, dataset, task_of(run.recipe))


def layer_costs(
    program: torch.export.ExportedProgram,
    twin: torch.export.ExportedProgram,
    dataset: Dataset,
    task: TaskModule,
) -> list[LayerCost]:
    """What each layer of a program costs alone, the dearest first; before them, all together.

    The dearest is the one that adds most noise to the network's answers: on some hundred images
    that tells layers apart which cost the same images, or none.

    Args:
        program: quantized.
        twin: its float network.
        dataset: whose first test set is answered, as the program takes it.
        task: judges the answers.
    """
    (name, images), *_ = dataset.tests.items()
    one = replace(dataset, tests={name: images})
    learned = learned_scales(program)[0]
    layers = [layer for layer in layers_of(program) if layer.name in learned]
    answers: dict[str, list[Tensor]] = defaultdict(list)
    with torch.inference_mode():
        network = OneInInt8(program, twin)
        for batch, _ in batches(images, _BATCH, dataset):
            for key, found in network.answers(batch, layers).items():
                answers[key].append(found)
    every = {key: torch.cat(parts) for key, parts in answers.items()}
    exact = every.pop(_FLOAT)

    def figure(found: Tensor) -> float:
        return task.accuracies({name: found}, one)[name].figure

    def cost(layer: Layer | None) -> LayerCost:
        found = every[EVERY if layer is None else layer.name]
        return LayerCost(
            layer="" if layer is None else layer.name,
            module="" if layer is None else layer.module,
            operation=EVERY if layer is None else layer.operation,
            figure=figure(found),
            lost_pt=round((figure(exact) - figure(found)) * 100, 9),
            agreement=task.compare({name: found}, {name: exact}, None).share,
            sqnr_db=decibels(_power(exact), _power(found - exact)),
        )

    return [cost(None), *sorted(map(cost, layers), key=lambda row: row.sqnr_db)]


def _power(numbers: Tensor) -> float:
    return float(numbers.double().square().sum())


_FLOAT = "float"


class OneInInt8:
    """A float network that can have one layer in int8."""

    def __init__(
        self, program: torch.export.ExportedProgram, twin: torch.export.ExportedProgram
    ) -> None:
        self._program = running.rounding_at_once(program)
        self._places = float_nodes(program, twin)
        self._rounding = _Alone(program)
        graph = graph_of(twin)
        self._twin = _Kept(graph)
        self._nodes = {node.name: node for node in graph.graph.nodes}

    def answers(self, images: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Answers by the name of the layer that is in int8; those of none, and of all."""
        exact = self._twin.run(images)
        values = {layer: self._twin.kept[node] for layer, node in self._nodes_of().items()}
        alone = self._rounding.values(images, values)
        found = {_FLOAT: exact, EVERY: self._program(images)}
        for layer in layers:
            place = self._nodes[self._places[layer.name]]
            found[layer.name] = self._twin.again(place, alone[layer.name])
        return found

    def _nodes_of(self) -> Mapping[str, fx.Node]:
        return {layer: self._nodes[node] for layer, node in self._places.items()}


class _Kept(fx.Interpreter):
    """Runs a graph, keeps every value, and runs again what follows from another value."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph, garbage_collect_values=False)
        self.kept: dict[fx.Node, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """As the graph itself."""
        found = super().run(*args, **kwargs)
        self.kept = dict(self.env)
        return found

    def again(self, place: fx.Node, value: Tensor) -> Tensor:
        """The graph's answer where the node `place` has another value."""
        changed = {place}
        self.env = {**self.kept, place: value}
        for node in self.module.graph.nodes:  # type: ignore[union-attr]
            if node is not place and not changed.isdisjoint(node.all_input_nodes):
                changed.add(node)
                self.env[node] = self.run_node(node)
        answer: Any = self.env[next(n for n in self.module.graph.nodes if n.op == "output")]  # type: ignore[union-attr]
        found: Tensor = answer[0] if isinstance(answer, tuple | list) else answer
        return found


class _Alone(fx.Interpreter):
    """Computes every layer of a program from the float network's numbers, with its own weights."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        graph = program.module(check_guards=False)
        assert isinstance(graph, fx.GraphModule)
        super().__init__(graph)
        self._exact: Mapping[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}

    def values(self, images: Tensor, exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each layer gives, by its name; `exact` are the float network's values."""
        self._exact, self._found = exact, {}
        self.run(images)
        return self._found

    def run_node(self, node: fx.Node) -> Any:
        """Go on with the float network's numbers after each rounding."""
        if node.target is QUANTIZE:
            args, _ = self.fetch_args_kwargs_from_env(node)
            self._found[node.name] = running.rounded(*args)
            return self._exact[node.name]
        if node.target in DEQUANTIZE and node.args[0].target is QUANTIZE:  # type: ignore[union-attr]
            return self.env[node.args[0]]  # type: ignore[index]
        return super().run_node(node)
