"""Files that give probabilities: the same file as the one with logits, and an operation more."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.formats.coreml import package
from pipeline.formats.coreml.head import CLASS, DICTIONARY
from pipeline.formats.formats import FORMATS
from pipeline.formats.ports import Port
from pipeline.measure.probabilities import logits_of, probabilities_of, told
from pipeline.measure.timing import size_bytes
from pipeline.recipe.task import Link
from tests.making import networks, programs
from tests.making.shared import made_once

pytestmark = pytest.mark.slow

NAMES = [f"class {n}" for n in range(networks.CLASSES)]


@functools.cache
def with_head(form: str, link: Link, *, classifier: bool = False) -> Path:
    """A copy of `programs.file_of(form)` that gives probabilities. Do not change."""
    plain, known = programs.file_of(form), FORMATS[form]

    def write(folder: Path) -> None:
        path = folder / plain.name
        (shutil.copytree if plain.is_dir() else shutil.copy2)(plain, path)
        assert known.head is not None
        known.head().add(path, link, NAMES if classifier else None)

    return made_once(f"{form}-{link}{'-classifier' * classifier}", write) / plain.name


def answers(path: Path, form: str) -> Tensor:
    return programs.run(FORMATS[form].module().open_file(path))


LINKS = pytest.mark.parametrize("link", ["softmax", "sigmoid"])


@LINKS
@pytest.mark.parametrize("form", FORMATS)
def test_probabilities_are_those_of_the_logits(form: str, link: Link) -> None:
    logits = answers(programs.file_of(form), form)
    found = answers(with_head(form, link), form)
    wanted = probabilities_of(logits, link)
    assert float(((found - wanted) / wanted).abs().max()) < 2e-6
    assert torch.equal(told(found, logits, link), logits), "nothing else changed"
    moved = logits.clone()
    moved[:, 0] += programs.output_scale(programs.quantized("radix2").program)
    assert not torch.equal(told(found, moved, link), moved), "a step of one logit is seen"


@LINKS
@pytest.mark.parametrize("form", FORMATS)
def test_the_rest_of_the_file_stays_what_it_is(form: str, link: Link) -> None:
    module, path = FORMATS[form].module(), with_head(form, link)
    plain, found = module.inspect(programs.file_of(form)), module.inspect(path)
    assert (found.layers, found.weights) == (plain.layers, plain.weights)
    assert (found.int8_macs, found.macs) == (plain.int8_macs, plain.macs)
    assert (found.partitions, found.outside) == (plain.partitions, plain.outside)
    more = {name: count - plain.ops.get(name, 0) for name, count in found.ops.items()}
    assert sum(more.values()) == (2 if form == "coreml" else 1)
    images = programs.examples()[:2].numpy()
    before, after = (module.trace(one, images) for one in (programs.file_of(form), path))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert size_bytes(path) - size_bytes(programs.file_of(form)) < 2500
    output = module.interface(path).output
    assert (output.name, output.dtype, output.kind) == ("probabilities", "float32", "tensor")


def test_a_classifier_names_its_classes() -> None:
    path = with_head("coreml", "softmax", classifier=True)
    module = FORMATS["coreml"].module()
    assert torch.equal(answers(path, "coreml"), answers(with_head("coreml", "softmax"), "coreml"))
    network = package.read(path)
    assert network.labels == tuple(NAMES)
    assert network.outputs == ("probabilities",)
    assert module.inspect(path).ops["classify"] == 1
    shape = (1, networks.CLASSES)
    assert module.interface(path).output == Port(
        name=DICTIONARY, shape=shape, dtype="float64", kind="dictionary"
    )
    description = package.specification(path).description
    assert description.predictedFeatureName == CLASS
    assert description.predictedProbabilitiesName == DICTIONARY


def test_a_classifier_is_written_as_coremltools_writes_one() -> None:
    """Their converter on a network of one operation; ours of the same without its classifier."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    taken = [mb.TensorSpec(shape=(1, len(NAMES)))]

    @mb.program(input_specs=taken, opset_version=ct.target.iOS17)  # type: ignore[untyped-decorator]
    def network(image):  # type: ignore[no-untyped-def]
        return mb.softmax(x=image, axis=-1, name="probabilities")

    theirs = ct.convert(
        network,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        classifier_config=ct.ClassifierConfig(NAMES),
        skip_model_load=True,
    ).get_spec()
    ours = package.specification(with_head("coreml", "softmax", classifier=True))

    def last(spec: object, count: int) -> list[object]:
        function = spec.mlProgram.functions["main"]  # type: ignore[attr-defined]
        operations = function.block_specializations[function.opset].operations
        return list(operations)[-count:]

    assert list(ours.description.output) != []
    for found, wanted in zip(ours.description.output, theirs.description.output, strict=True):
        assert (found.name, found.type) == (wanted.name, wanted.type)
    (found,), (wanted,) = last(ours, 1), last(theirs, 1)
    for operation in (found, wanted):
        del operation.attributes["name"]  # type: ignore[attr-defined]
    assert found == wanted
    (found, wanted) = (last(spec, 2)[0] for spec in (ours, theirs))
    assert found.type == wanted.type == "softmax"  # type: ignore[attr-defined]
    assert found.outputs[0].type == wanted.outputs[0].type  # type: ignore[attr-defined]


def test_logits_that_probabilities_cannot_tell_count_as_the_wanted_ones() -> None:
    wanted = torch.tensor([[-200.0, 0.0, 40.0], [3.0, 2.0, 1.0]])
    for link in ("softmax", "sigmoid"):
        found = probabilities_of(wanted, link).float()  # type: ignore[arg-type]
        assert torch.equal(told(found, wanted, link), wanted)  # type: ignore[arg-type]
        assert logits_of(found, link).isfinite().all()  # type: ignore[arg-type]


def test_a_wrong_probability_is_told() -> None:
    wanted = torch.tensor([[3.0, 2.0, 1.0]])
    moved = torch.tensor([[3.0, 2.5, 1.0]])
    other = told(probabilities_of(moved, "softmax").float(), wanted, "softmax")
    assert torch.allclose(other, moved, atol=1e-5)
    broken = told(torch.tensor([[0.5, float("nan"), 0.5]]), wanted, "softmax")
    assert not broken.isfinite().all()
