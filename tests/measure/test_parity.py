"""The gates: what they measure, and that each catches a writer with one thing wrong."""

from __future__ import annotations

import importlib
import math
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.compress.quantization import qat
from pipeline.compress.quantization.fake_quantize import only_round
from pipeline.compress.quantization.other_rounding import rounded_otherwise
from pipeline.formats.file_facts import learned_scales, scales_exact
from pipeline.formats.formats import FORMATS
from pipeline.formats.limits import Limits
from pipeline.measure import parity
from pipeline.measure.layers import compare_layers, integers, layers_of
from pipeline.measure.parity_record import OutputSteps
from pipeline.networks.resnest.branches import branch_form
from pipeline.networks.resnest.deploy import deploy_form
from pipeline.recipe.input_shape import square
from pipeline.tasks.task import Agreement
from tests.making import networks, programs
from tests.making.training import agreement, compare_logits

pytestmark = pytest.mark.slow

VARIANT = "radix1"
SUFFIXES = {"onnx": "model.onnx", "tflite": "model.tflite", "coreml": "model.mlpackage"}


def one_set(logits: Tensor) -> dict[str, Tensor]:
    return {"test": logits}


def winners(*classes: int) -> Tensor:
    """Logits over 7 classes in which `classes` come first."""
    return torch.nn.functional.one_hot(torch.tensor(classes), 7).float()


def test_agreement_counts_images_not_sets() -> None:
    left = {"a": winners(0, 1, 2), "b": winners(3)}
    assert agreement(left, left) == 1.0
    assert agreement(left, {"a": winners(0, 1, 3), "b": winners(3)}) == 0.75
    assert agreement(left, {"b": winners(4), "a": winners(1, 2, 3)}) == 0.0


def test_agreement_looks_at_the_class_alone() -> None:
    left = {"a": torch.tensor([[0.1, 0.2], [5.0, -5.0]])}
    assert agreement(left, {"a": torch.tensor([[-9.0, 9.0], [0.2, 0.1]])}) == 1.0
    assert agreement(left, {"a": torch.tensor([[0.2, 0.1], [0.2, 0.1]])}) == 0.5


@given(
    apart=st.lists(st.integers(-255, 255), min_size=1, max_size=300),
    step=st.floats(2**-14, 10.0),
)
def test_steps_are_counted_on_the_grid(apart: list[int], step: float) -> None:
    wanted = torch.zeros(len(apart), 1)
    found = torch.tensor(apart)[:, None] * step
    steps = parity.output_steps(one_set(found), one_set(wanted), step)
    ordered = sorted(abs(n) for n in apart)
    assert steps.largest == ordered[-1]
    assert steps.median == ordered[math.ceil(0.5 * len(ordered)) - 1]
    assert steps.p99 == ordered[math.ceil(0.99 * len(ordered)) - 1]
    assert steps.differing == pytest.approx(sum(n != 0 for n in apart) / len(apart))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_a_number_is_a_miss(bad: float) -> None:
    wanted = torch.zeros(4, 3)
    found = torch.full((4, 3), bad)
    for step in (0.5, None):
        compared = compare_logits(one_set(found), one_set(wanted + 1), step)
        assert parity.output_misses(compared, Limits())


def test_logits_that_are_not_finite_are_counted_by_set() -> None:
    logits = {"day": torch.zeros(3, 2), "night": torch.zeros(4, 2)}
    assert parity.finite_misses(logits) == []
    logits["night"][1:3, 0] = torch.tensor([math.nan, -math.inf])
    logits["night"][1, 1] = math.inf
    assert parity.finite_misses(logits) == [
        "the logits of 2 of 4 images of night are NaN or infinite"
    ]


def test_limits_hold_exactly() -> None:
    wanted = torch.arange(100.0)[:, None] * torch.tensor([1.0, -1.0])
    for p99, passes in ((2, True), (3, False)):
        found = wanted.clone()
        found[:10] += p99
        compared = compare_logits(one_set(found), one_set(wanted), 1.0)
        assert (parity.output_misses(compared, Limits(agreement=0.0)) == []) is passes
    results = Agreement(
        same="the same top-1", unit="images", units=1000, share=0.994, leads=(9.0,) * 6
    )
    agreed = parity.Compared(results=results, steps=None, difference=0.0)
    (miss,) = parity.output_misses(agreed, Limits())
    assert miss == (
        "the same top-1 on 99.40% of the images (at least 99.5%); "
        "rounding cannot explain 6 of the others"
    )
    results = replace(results, share=1.0, leads=())
    far = parity.Compared(results=results, steps=None, difference=2e-3)
    (miss,) = parity.output_misses(far, Limits())
    assert "0.002 of the largest" in miss


def moved(median: int, p99: int) -> OutputSteps:
    return OutputSteps(median=median, p99=p99, largest=2 * p99, differing=0.4)


@pytest.mark.parametrize("form", FORMATS)
@given(median=st.integers(0, 5), more=st.integers(0, 9))
def test_a_file_may_be_a_step_farther_than_the_program_from_itself(
    form: str, median: int, more: int
) -> None:
    limits, rounding = FORMATS[form].limits, moved(median, median + more)
    assert parity.widened(limits, None) == limits
    wider = parity.widened(limits, rounding)
    assert wider.median == max(limits.median, rounding.median + 1)
    assert wider.p99 == max(limits.p99, rounding.p99 + 1)
    assert (wider.agreement, wider.difference) == (limits.agreement, limits.difference)


@pytest.mark.parametrize(("p99", "passes"), [(3, True), (4, True), (5, False)])
def test_logits_of_a_small_range_are_judged_by_their_own_rounding(p99: int, passes: bool) -> None:
    wanted = torch.arange(100.0)[:, None] * torch.tensor([1.0, -1.0])
    found = wanted.clone()
    found[:10] += p99
    compared = compare_logits(one_set(found), one_set(wanted), 1.0)
    limits = FORMATS["onnx"].limits
    assert parity.output_misses(compared, limits)
    widened = parity.widened(limits, moved(0, 3))
    assert (parity.output_misses(compared, widened) == []) is passes


def copied(name: str, *changes: tuple[str, str]) -> Any:
    """A copy of a module of the package with some of its text changed."""
    original = importlib.import_module(name)
    assert original.__file__ is not None
    text = Path(original.__file__).read_text(encoding="utf-8")
    for before, after in changes:
        assert text.count(before) == 1, f"{name} no longer says {before!r} once"
        text = text.replace(before, after)
    copy = types.ModuleType(f"{name}_copy")
    copy.__file__ = original.__file__
    sys.modules[copy.__name__] = copy  # dataclasses look their module up
    exec(compile(text, original.__file__, "exec"), copy.__dict__)
    return copy


def test_a_file_that_gives_no_layers_does_not_pass() -> None:
    written = programs.quantized(VARIANT)
    learned = learned_scales(written.program)[0]
    program, images = written.program, written.images[:1]
    none = compare_layers(program, None, lambda given: {}, images)
    assert none == []
    (miss,) = parity.layer_misses(none, learned)
    assert miss.startswith(f"{len(learned)} of {len(learned)} layers are not among those that")
    whole = {n: v.numpy() for n, v in integers(program, images).items()}
    assert (
        parity.layer_misses(compare_layers(program, None, lambda given: whole, images), learned)
        == []
    )
    lost = sorted(learned)[1]
    part = {name: numbers for name, numbers in whole.items() if name != lost}
    (miss,) = parity.layer_misses(
        compare_layers(program, None, lambda given: part, images), learned
    )
    assert miss.startswith(f"1 of {len(learned)} layers")
    assert miss.endswith(f"such as {lost}")
    assert parity.layer_misses([], ()) == []


def judged(form: str, writer: Any, folder: Path) -> tuple[list[str], str]:
    """What the gates miss in a file of `writer`, and the first layer that differs."""
    module = FORMATS[form].module()
    written, path = programs.quantized(VARIANT), folder / SUFFIXES[form]
    step, limits = programs.output_scale(written.program), FORMATS[form].limits
    writer.write(written.program, path)
    facts = module.inspect(path)
    found = programs.run(module.open_file(path))
    compared = compare_logits(one_set(found), one_set(written.logits), step)
    otherwise = rounded_otherwise(written.program, limits.epsilon)(written.images)
    rounding = parity.output_steps(one_set(otherwise), one_set(written.logits), step)
    exact = scales_exact(written.program, facts)
    traced = compare_layers(written.program, None, partial(module.trace, path), written.images)
    misses = [
        *parity.file_misses(facts, exact),
        *parity.output_misses(compared, parity.widened(limits, rounding)),
        *parity.layer_misses(traced, learned_scales(written.program)[0]),
    ]
    return misses, parity.describe_first_difference(traced)


@pytest.mark.parametrize("form", SUFFIXES)
def test_an_unchanged_writer_passes(form: str, tmp_path: Path) -> None:
    misses, first = judged(form, copied(f"pipeline.formats.{form}.file"), tmp_path)
    assert misses == []
    assert "no layer" in first


def onnx_with_a_wrong_scale() -> Any:
    change = (
        "    as_onnx.drop_unused_constants(model)\n",
        "    nodes = [n for n in model.graph.node if 'conv2d_3' in n.input]\n"
        "    wrong = as_onnx.constants(model)[nodes[0].input[1]] * np.float32(1.5)\n"
        "    nodes[0].input[1] = 'wrong'\n"
        "    as_onnx.set_constant(model, 'wrong', wrong)\n"
        "    as_onnx.drop_unused_constants(model)\n",
    )
    return copied("pipeline.formats.onnx.file", change)


def tflite_with_a_wrong_scale() -> Any:
    before = "    scale = float(graph_node.inputs[1].values)\n"
    after = "    scale *= 1.5 if graph_node.inputs[0].name == 'conv2d_3' else 1\n"
    writer = copied("pipeline.formats.tflite.file")
    translations = copied("pipeline.formats.tflite.translations", (before, before + after))
    writer.own_translations = translations.own_translations
    return writer


def core_ml_with_a_wrong_scale() -> Any:
    """coremltools is given a program with one scale changed, as a pass of its own might."""
    change = ("for_coremltools(program),", "wrong_scale(for_coremltools(program)),")
    writer = copied("pipeline.formats.coreml.file", change)

    def wrong_scale(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
        quantize = next(
            n
            for n in program.graph.nodes
            if n.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
            and n.args[0].name == "conv2d_3"
        )
        for node in (quantize, *quantize.users):
            node.args = (node.args[0], node.args[1] * 1.5, *node.args[2:])
        return program

    writer.wrong_scale = wrong_scale
    return writer


WRONG_SCALES = {
    "onnx": onnx_with_a_wrong_scale,
    "tflite": tflite_with_a_wrong_scale,
    "coreml": core_ml_with_a_wrong_scale,
}


@pytest.mark.parametrize("form", WRONG_SCALES)
def test_a_wrong_scale_is_caught_and_its_layer_named(form: str, tmp_path: Path) -> None:
    misses, first = judged(form, WRONG_SCALES[form](), tmp_path)
    assert any("scales are the learned ones" in miss for miss in misses)
    assert layer_of("conv2d_3") in first


def layer_of(operation: str) -> str:
    layers = layers_of(programs.quantized(VARIANT).program)
    return next(layer.title for layer in layers if layer.operation == operation)


SWAPPED_CHANNELS = {
    "onnx": (
        "        unsigned_activations(model)\n    ",
        "        unsigned_activations(model)\n"
        "        conv = next(n for n in model.graph.node if n.op_type == 'Conv')\n"
        "        name = as_onnx.producers(model)[conv.input[1]].input[0]\n"
        "        swapped = as_onnx.constants(model)[name][:, ::-1].copy()\n"
        "        as_onnx.set_constant(model, name, swapped)\n    ",
    ),
    "tflite": (
        "            folded = weight.astype(np.float32) * scale.reshape(shape)\n",
        "            folded = weight.astype(np.float32) * scale.reshape(shape)\n"
        "            folded = folded[:, ::-1].copy() if weight.shape[1] == 3 else folded\n",
    ),
    "coreml": (
        "    passes = ct.PassPipeline.DEFAULT\n",
        "    passes = ct.PassPipeline.DEFAULT\n"
        "    import copy\n"
        "    program = copy.deepcopy(program)\n"
        "    stored = [v for v in program.state_dict.values() if v.dtype == torch.int8]\n"
        "    (stem,) = [v for v in stored if v.dim() == 4 and v.shape[1] == 3]\n"
        "    stem.copy_(stem.flip(1))\n",
    ),
}


@pytest.mark.parametrize("form", SWAPPED_CHANNELS)
def test_swapped_channels_are_caught_and_the_layer_named(form: str, tmp_path: Path) -> None:
    writer = copied(f"pipeline.formats.{form}.file", SWAPPED_CHANNELS[form])
    misses, first = judged(form, writer, tmp_path)
    assert any("steps apart" in miss for miss in misses)
    assert any(miss.startswith("1 of ") for miss in misses), "one layer alone is wrong"
    assert not any("scales" in miss for miss in misses)
    assert layer_of("conv2d") in first


def trained_and_folded(fold: Any) -> list[str]:
    """What the gate of the fold stage misses when `fold` makes the program."""
    graph = qat.prepare(deploy_form(branch_form(programs.network(VARIANT))), square(networks.SIDE))
    qat.calibrate(graph, lambda: [networks.images(32, seed=2)])
    only_round(graph)
    images = programs.examples()
    with torch.no_grad():
        trained = graph(images)
        program = fold.quantized_program(graph, torch.zeros(2, 3, networks.SIDE, networks.SIDE))
        found = program.module(check_guards=False)(images)
    step = programs.output_scale(program)
    compared = compare_logits(one_set(found), one_set(trained), step)
    return parity.output_misses(compared, parity.FOLDED)


DROPPED_FOLDS = {
    "shift": ("(bias - mean) * factor + shift", "bias * factor"),
    "scale": ("weight * factor[:, None, None, None]", "weight * 1"),
}


@pytest.mark.parametrize("dropped", DROPPED_FOLDS)
def test_a_dropped_batch_norm_fold_is_caught(dropped: str) -> None:
    assert (
        trained_and_folded(copied("pipeline.compress.quantization.fold", DROPPED_FOLDS[dropped]))
        != []
    )


def test_an_unchanged_fold_passes() -> None:
    assert trained_and_folded(copied("pipeline.compress.quantization.fold")) == []


@pytest.mark.parametrize(("lead", "misses"), [(4.0, 0), (5.0, 1)])
def test_classes_that_rounding_can_swap_do_not_count_against_agreement(
    lead: float, misses: int
) -> None:
    wanted = torch.zeros(10, 3)
    wanted[:, 0], wanted[:, 1] = 20, 20 - lead
    found = wanted.clone()
    found[0, :2] = torch.tensor([20 - lead, 20])  # one image of ten
    compared = compare_logits(one_set(found), one_set(wanted), 1.0)
    assert compared.results.share == 0.9
    assert compared.results.leads == (lead,)
    limits = Limits(median=9, p99=2)
    assert sum("top-1" in miss for miss in parity.output_misses(compared, limits)) == misses


def test_without_a_grid_every_image_counts() -> None:
    wanted = torch.eye(3)
    compared = compare_logits(one_set(wanted.roll(1, 1)), one_set(wanted), None)
    assert compared.results.leads == (math.inf,) * 3
    assert "top-1" in parity.output_misses(compared, Limits(difference=9))[0]


def test_maps_are_compared_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    found, wanted = torch.randn(2, 7, 3, 4, 5, generator=generator)
    both = {"a": found, "b": found[:2]}, {"a": wanted, "b": wanted[:2]}
    whole = parity.output_steps(*both, 0.1)
    monkeypatch.setattr(parity, "_AT_A_TIME", 100)
    assert parity.output_steps(*both, 0.1) == whole
    apart = torch.cat([(found - wanted).flatten(), (found - wanted)[:2].flatten()]).abs()
    assert whole.largest == int((apart / 0.1).round().max())
    assert whole.differing == pytest.approx(float(((apart / 0.1).round() > 0).double().mean()))
