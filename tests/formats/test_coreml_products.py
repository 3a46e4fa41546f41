"""Products of quantized tensors in Core ML packages: other forms of them, and the known fault."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.base.children import Children
from pipeline.formats import write
from pipeline.formats.coreml import faults
from pipeline.formats.coreml import file as coreml_file
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.evaluator import Evaluator
from pipeline.formats.file_facts import scales_exact
from pipeline.formats.format import Option
from pipeline.formats.formats import FORMATS
from pipeline.measure.layers import output_scale
from pipeline.stages import golden
from pipeline.tasks import classification
from tests.making import programs
from tests.making.shared import made_once

pytestmark = pytest.mark.slow

VARIANTS = ["radix2", "radix4"]
FORMS: list[Option] = ["clipped_products", "float16_products"]


@cache
def written(variant: str, option: Option) -> Path:
    """The package of an int8 network whose products are of that form."""

    def make(folder: Path) -> None:
        program = programs.quantized(variant).program
        coreml_file.write(program, folder / "model.mlpackage", options={option})

    return made_once(f"products-{variant}-{option}", make) / "model.mlpackage"


def products(network: coreml_package.Network) -> list[coreml_package.Operation]:
    """What multiplies tensors that depend on the image, and not by a scale."""
    made_by = network.producers()

    def computed(name: str) -> bool:
        return name not in made_by or made_by[name].type != "const"

    return [
        op
        for op in network.operations
        if op.type == "mul" and computed(op.tensor("x")) and computed(op.tensor("y"))
    ]


def types_before(network: coreml_package.Network, op: coreml_package.Operation) -> set[str]:
    made_by = network.producers()
    return {made_by[op.tensor(argument)].type for argument in ("x", "y")}


def types_after(network: coreml_package.Network, op: coreml_package.Operation) -> set[str]:
    (value,) = op.outputs
    return {
        reader.type
        for reader in network.operations
        for given in reader.inputs.values()
        if isinstance(given, tuple) and value.name in given
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_products_are_quantized_where_nothing_else_is_asked_for(variant: str) -> None:
    network = coreml_package.read(programs.file_of("coreml", variant))
    found = products(network)
    assert len(found) >= 8
    for op in found:
        assert types_before(network, op) == {"dequantize"}
        assert types_after(network, op) == {"quantize"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_clipped_products_are_held_to_their_grid(variant: str) -> None:
    network = coreml_package.read(written(variant, "clipped_products"))
    made_by = network.producers()
    clips = [op for op in network.operations if op.type == "clip"]
    assert len(clips) == len(products(network)) >= 8
    for op in products(network):
        assert types_before(network, op) == {"dequantize"}
        assert types_after(network, op) == {"clip"}
    for clip in clips:
        assert types_after(network, clip) == {"quantize"}
        (quantize,) = (
            op
            for op in network.operations
            if op.type == "quantize" and op.tensor("input") == clip.outputs[0].name
        )
        scale = np.float32(quantize.constant("scale", made_by))
        zero = np.float32(quantize.constant("zero_point", made_by) or 0)
        ends = (-128, 127) if quantize.outputs[0].dtype == "int8" else (0, 255)
        held = [np.float32(clip.constant(name, made_by)) for name in ("alpha", "beta")]
        wanted = [(end - zero) * scale for end in ends]
        np.testing.assert_allclose(held, wanted, rtol=1e-3, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_products_in_float16_read_nothing_by_dequantize(variant: str) -> None:
    network = coreml_package.read(written(variant, "float16_products"))
    for op in products(network):
        assert types_before(network, op) == {"mul"}  # by a scale
        assert types_after(network, op) == {"clip"}
    left = [op for op in network.operations if op.type == "dequantize"]
    assert left  # convolutions still read integers so
    for op in left:
        assert types_after(network, op) or op.outputs[0].name in network.outputs


@pytest.mark.parametrize("option", FORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_inside_is_the_same(variant: str, option: Option) -> None:
    images = programs.examples().numpy()
    before = coreml_file.trace(programs.file_of("coreml", variant), images)
    after = coreml_file.trace(written(variant, option), images)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("option", FORMS)
def test_gates_find_all_that_they_found(option: Option) -> None:
    source = programs.quantized("radix2").program
    facts = coreml_file.inspect(written("radix2", option))
    plain = coreml_file.inspect(programs.file_of("coreml", "radix2"))
    assert (facts.int8_coverage, facts.macs, facts.layers) == (1.0, plain.macs, plain.layers)
    exact = scales_exact(source, facts)
    assert exact is not None
    assert exact.same == exact.total > 300


def test_the_child_process_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def run(
        children: Children, command: list[str], environment: object, early: tuple[str, list[str]]
    ) -> int:
        words = command[command.index("program.pt2") :]
        assert early == (words[1], words), "one that waits is told the same"
        told.append(words[3:])
        return 0

    monkeypatch.setattr(Children, "run", run)
    options: list[set[Option]] = [set(), {"clipped_products"}, {"float16_products"}]
    for asked in options:
        for name in ("tflite", "coreml"):
            write.export(Path("program.pt2"), name, Path("model"), options=asked)
    assert told == [[], [], [], ["clipped_products"], [], ["float16_products"]]


def test_a_float_package_has_no_products_to_change(tmp_path: Path) -> None:
    source = programs.unquantized("radix2").program
    plain, other = tmp_path / "plain.mlpackage", tmp_path / "other.mlpackage"
    coreml_file.write(source, plain)
    coreml_file.write(source, other, options={"float16_products"})
    for file in sorted(p.relative_to(plain) for p in plain.rglob("*") if p.is_file()):
        assert (plain / file).read_bytes() == (other / file).read_bytes()


def answers(path: Path, images: torch.Tensor) -> torch.Tensor:
    runnable = coreml_file.ReferenceRunnable(path)
    runnable.set_input(images.numpy())
    runnable.invoke()
    return torch.from_numpy(runnable.output())


def allowed(images: torch.Tensor) -> float:
    """As `golden.tolerance` has it at the least: three steps of the grid of the logits."""
    source = programs.quantized("radix2").program
    scale = output_scale(source)
    assert scale is not None
    return FORMATS["coreml"].limits.p99 * scale


def test_each_fault_moves_answers_by_more_than_may_be() -> None:
    images, path = programs.examples(), programs.file_of("coreml", "radix2")
    right = answers(path, images)
    wrong = faults.wrong_answers(path, images.numpy())
    assert wrong.keys() == faults.FAULTS.keys()
    for found in wrong.values():
        assert (torch.from_numpy(found) - right).abs().max() > 2 * allowed(images)


def test_a_fault_in_a_single_product_shows_too() -> None:
    """A compiler may give one product alone to the Neural Engine."""
    path = programs.file_of("coreml", "radix2")
    images, network = programs.examples(), coreml_package.read(path)
    right = answers(path, images)
    fault, shown = "both factors are given the product's scale", []
    for product in products(network):
        changed = faults.with_fault(network, fault, only=product.name)
        assert len(changed.operations) == len(network.operations) + 2
        runnable = coreml_file.ReferenceRunnable(path, changed)
        runnable.set_input(images.numpy())
        runnable.invoke()
        shown.append(float((torch.from_numpy(runnable.output()) - right).abs().max()))
    assert len(shown) >= 8
    assert min(shown) > 0
    assert sum(one > allowed(images) for one in shown) >= len(shown) // 2


def test_the_fault_is_the_reported_one() -> None:
    """A factor of 16 steps, read with twice its scale: the product is twice what it should be."""
    path = programs.file_of("coreml", "radix2")
    network = coreml_package.read(path)
    made_by = network.producers()
    op = products(network)[0]
    (reader,) = (
        o
        for o in network.operations
        if o.type == "quantize" and o.tensor("input") == op.outputs[0].name
    )
    factor = made_by[op.tensor("y")]
    ratio = float(reader.constant("scale", made_by)) / float(factor.constant("scale", made_by))  # type: ignore[arg-type]
    images = programs.examples().numpy()[:, None]
    name, value = network.inputs[0].value.name, op.outputs[0].name
    right = Evaluator(network, "float32").run({name: images}, [value])[value]
    wrong = Evaluator(
        faults.with_fault(network, "the second factor is given the product's scale"), "float32"
    ).run({name: images}, [value])[value]
    assert not np.isclose(ratio, 1, rtol=0.05)
    np.testing.assert_allclose(wrong, right * ratio, rtol=1e-3, atol=1e-6)


def test_other_forms_are_spared_what_they_avoid() -> None:
    """Clipped ones the product's scale, as was reported; those in float16 every one."""
    images = programs.examples().numpy()
    left = faults.wrong_answers(written("radix2", "clipped_products"), images)
    assert left.keys() == {
        "the first factor is given the second's scale",
        "the second factor is given the first's scale",
    }
    assert faults.wrong_answers(written("radix2", "float16_products"), images) == {}


def test_golden_images_show_faults_that_the_clear_ones_hide() -> None:
    logits = torch.eye(40) * 5
    path = Path("model.mlpackage")
    asked: list[int] = []

    def moved(rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        far = torch.zeros(2, len(rows))
        far[0] = 1.0  # every image shows the first
        far[1] = torch.where(rows == 33, 1.0, 0.01)
        return far

    plain = golden.chosen(classification, logits, 0.1)
    assert 33 not in plain
    found = golden.chosen(classification, logits, 0.1, moved)
    assert 33 in found
    assert len(found) == len(plain) == golden.MOST
    assert asked == [golden.MOST, 40]
    assert golden.moved_by_faults(FORMATS["tflite"], path, logits, lambda rows: rows) is None


def test_golden_images_stay_where_they_show_every_fault() -> None:
    logits = torch.eye(40) * 5
    found = golden.chosen(classification, logits, 0.1, lambda rows: torch.ones(2, len(rows)))
    assert found.equal(golden.chosen(classification, logits, 0.1))


def test_how_far_faults_move_is_taken_of_the_files_answers() -> None:
    images, path = programs.examples(), programs.file_of("coreml", "radix2")
    right = answers(path, images)
    moved = golden.moved_by_faults(FORMATS["coreml"], path, right, lambda rows: images[rows])
    assert moved is not None
    rows = torch.tensor([3, 1])
    wrong = [torch.from_numpy(w) for w in faults.wrong_answers(path, images.numpy()).values()]
    wanted = torch.stack([(w - right).abs().amax(1)[rows] for w in wrong])
    torch.testing.assert_close(moved(rows), wanted)
