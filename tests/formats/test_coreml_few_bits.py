"""Weights of few bits in Core ML packages: fewer bytes, the same numbers."""

import copy
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.frontend.milproto import load as milproto
from coremltools.converters.mil.mil import types
from coremltools.models.utils import load_spec

from pipeline.formats.coreml import delegates, few_bits
from pipeline.formats.coreml import file as coreml_file
from pipeline.formats.coreml import package as coreml_package
from pipeline.formats.coreml.weights import Int8Weight, int8_weight
from pipeline.formats.file_facts import FileFacts, scales_exact
from pipeline.formats.format import Option
from pipeline.formats.formats import FORMATS
from pipeline.recipe.weight_forms import PALETTES
from tests.making import programs
from tests.making.packages import Array, answers, normal, saved_ios18

pytestmark = pytest.mark.slow

SPARSE = f"sparse {programs.MIXED}"
"""Of each kind, layer by layer, and half of all weights are zero, and may be stored so."""
KINDS: dict[str, set[str | None]] = {
    "int4": {None},
    "int4_blocks": {None, "blocks"},
    "palette16": {None, "table"},
    "palette64": {None, "table"},
    programs.MIXED: {None, "table"},
    SPARSE: {None, "sparse", "sparse table"},
}
"""The forms that weights of a program are stored in; None is the plain one."""
IOS17, IOS18 = 8, 9
"""Specification versions."""
OPERATIONS = {
    "blocks": "constexpr_blockwise_shift_scale",
    "table": "constexpr_lut_to_dense",
    "sparse": "constexpr_sparse_blockwise_shift_scale",
    "sparse table": "constexpr_lut_to_sparse",
    None: "constexpr_blockwise_shift_scale",
}
"""Behind a convolution's weight, past the one that makes it dense, by the form it is stored in."""


@dataclass(frozen=True, kw_only=True)
class Package:
    path: Path
    network: coreml_package.Network
    facts: FileFacts

    def bytes(self) -> int:
        return sum(len(content) for content in self.files().values())

    def files(self) -> dict[str, bytes]:
        files = [file for file in self.path.rglob("*") if file.is_file()]
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in files}

    def weights(self) -> dict[str, tuple[str, Int8Weight]]:
        """Of every convolution, and the operation that they are stored for, by its output."""
        made_by = self.network.producers()
        found = {}
        for op in self.network.operations:
            if op.type == "conv":
                made = made_by[op.tensor("weight")]
                weight = int8_weight(made, made_by)
                assert weight is not None
                if made.type == "constexpr_sparse_to_dense":
                    made = made_by[made.tensor("nonzero_data")]
                found[op.outputs[0].name] = made.type, weight
        return found


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A program, its package as it was before, and with weights of few bits."""

    kind: str
    program: torch.export.ExportedProgram
    plain: Package
    small: Package


def written(
    source: torch.export.ExportedProgram, path: Path, options: Collection[Option] = ()
) -> Package:
    coreml_file.write(source, path, options=options)
    return Package(path=path, network=coreml_package.read(path), facts=coreml_file.inspect(path))


def half_zero(source: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A program with every second of its weights zero, in layers of several inputs."""
    changed = copy.deepcopy(source)
    generator = torch.Generator().manual_seed(0)
    for tensor in {**changed.state_dict, **changed.constants}.values():
        if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.int8 and tensor.dim() == 4:
            tensor[torch.rand(tensor.shape, generator=generator) < 0.5] = 0
    return changed


@pytest.fixture(scope="module", params=KINDS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    folder = tmp_path_factory.mktemp("few_bits")
    source = programs.few_bits("radix2", request.param.removeprefix("sparse ")).program
    options: set[Option] = {"few_bits"}
    if request.param == SPARSE:
        source, options = half_zero(source), {"few_bits", "sparse"}
    return Stored(
        kind=request.param,
        program=source,
        plain=written(source, folder / "plain.mlpackage"),
        small=written(source, folder / "small.mlpackage", options),
    )


def test_every_tensor_is_the_same_to_the_bit(stored: Stored) -> None:
    images = programs.examples().numpy()
    one, two = (coreml_file.trace(p.path, images) for p in (stored.plain, stored.small))
    assert one.keys() == two.keys()
    assert len(one) > 40
    for name, integers in one.items():
        np.testing.assert_array_equal(integers, two[name])
    logits = []
    for package in (stored.plain, stored.small):
        runnable = coreml_file.ReferenceRunnable(package.path)
        runnable.set_input(images)
        runnable.invoke()
        logits.append(runnable.output())
    np.testing.assert_array_equal(*logits)


def test_every_code_and_scale_is_read_back(stored: Stored) -> None:
    for package in (stored.plain, stored.small):
        exact = scales_exact(stored.program, package.facts)
        assert exact is not None
        assert exact.same == exact.total > 300
        assert exact.codes_same == exact.codes_total > 500_000
        assert package.facts.int8_coverage == 1.0
    assert stored.small.facts.macs == stored.plain.facts.macs
    assert stored.small.facts.layers == stored.plain.facts.layers


def test_each_weight_is_stored_in_the_smallest_form(stored: Stored) -> None:
    found = Counter[str | None]()
    for name, (kind, weight) in stored.small.weights().items():
        form = few_bits.smallest(weight.codes, weight.scale, sparse=stored.kind == SPARSE)
        assert kind == OPERATIONS[form], name
        found[form] += 1
    assert found.keys() == KINDS[stored.kind]


def test_it_takes_the_bytes_that_were_predicted(stored: Stored) -> None:
    """What coremltools stores for iOS 18, less what each form saves; overheads are averages."""
    predicted = stored.plain.bytes()
    for _, weight in stored.small.weights().values():
        form = few_bits.smallest(weight.codes, weight.scale, sparse=stored.kind == SPARSE)
        size = few_bits.FORMS[form].bytes(weight.codes) if form else None
        predicted -= weight.codes.size - round(
            few_bits.plain_bytes(weight.codes) if size is None else size
        )
    assert stored.small.bytes() == pytest.approx(predicted, rel=0.03)
    assert stored.small.bytes() < 0.98 * stored.plain.bytes()


def test_it_says_which_system_it_needs(stored: Stored) -> None:
    for package, version, ios in ((stored.plain, IOS17, 17), (stored.small, IOS18, 18)):
        assert load_spec(str(package.path)).specificationVersion == version
        assert coreml_file.interface(package.path).ios == ios
    assert stored.plain.files().keys() == stored.small.files().keys()


def test_coremltools_takes_the_operations_back(stored: Stored) -> None:
    """It checks types and shapes of each, and that constants alone go into what is constant."""
    spec = load_spec(str(stored.small.path))
    (weights,) = stored.small.path.rglob("weights")
    program = milproto.load(
        spec, specification_version=spec.specificationVersion, file_weights_dir=str(weights)
    )
    program.validate()
    found = {op.op_type for op in program.functions["main"].operations}
    assert set(OPERATIONS.values()) & stored.small.facts.ops.keys() <= found


def test_what_apples_guide_says_of_such_weights_is_told(stored: Stored) -> None:
    """And that more is not known: nothing ran on a unit of Apple's here."""
    before, after = (
        {one.name: one for one in delegates.checked(p.path)} for p in (stored.plain, stored.small)
    )
    assert {one.note for one in before.values()} == {None}
    assert {one.verdict for one in after.values()} == {"not known"}
    said = after["Core ML, Neural Engine"].note or ""
    tables = not stored.kind.startswith("int4")
    assert ("A17 Pro" in said, "int4 weights" in said) == (tables, "palette" not in stored.kind)
    assert ("for every block" in said) == (stored.kind == "int4_blocks")
    assert "unpacked when" in (after["Core ML, CPU"].note or "")


def test_a_program_gives_the_same_bytes_again(tmp_path: Path) -> None:
    source = programs.few_bits("radix2", programs.MIXED).program
    one, two = (written(source, tmp_path / f"{n}.mlpackage", {"few_bits"}) for n in (1, 2))
    assert one.files() == two.files()


def test_int8_weights_stay_as_they_are(tmp_path: Path) -> None:
    """Those of random networks have too many different numbers for any table."""
    source = programs.quantized("basic").program
    small = written(source, tmp_path / "small.mlpackage", {"few_bits"})
    assert small.facts.ops.keys() & set(OPERATIONS.values()) == {OPERATIONS[None]}
    exact = scales_exact(source, small.facts)
    assert exact is not None
    assert exact.codes_same == exact.codes_total


def test_a_float_program_has_nothing_to_store(tmp_path: Path) -> None:
    small = written(
        programs.unquantized("basic").program, tmp_path / "small.mlpackage", {"few_bits"}
    )
    assert not small.facts.ops.keys() & set(OPERATIONS.values())


def test_smallest_counts_overhead() -> None:
    rng = np.random.default_rng(0)

    def of(values: int, *shape: int, zeros: float = 0.0) -> Array:
        weight = (rng.integers(0, values, shape) * 2 - 100).astype(np.int8)
        weight[rng.random(shape) < zeros] = 0
        return weight

    def smallest(weight: Array, *, sparse: bool = False) -> str | None:
        return few_bits.smallest(weight, np.ones((len(weight), 1), np.float16), sparse=sparse)

    assert smallest(of(15, 16, 1024)) == "table"
    assert smallest(of(15, 16, 32)) is None
    assert smallest(of(60, 64, 64)) is None  # a table of 64 for 64 weights
    assert smallest(of(60, 64, 1024)) == "table"
    assert smallest(of(100, 64, 1024)) is None
    assert smallest(of(100, 64, 1024, zeros=0.5)) is None
    assert smallest(of(100, 64, 1024, zeros=0.5), sparse=True) == "sparse"
    assert smallest(of(15, 64, 1024, zeros=0.5), sparse=True) == "sparse table"
    assert smallest(of(15, 64, 1024, zeros=0.1), sparse=True) == "table"
    assert smallest(rng.integers(-7, 8, (64, 1024)).astype(np.int8)) is None
    assert smallest(rng.integers(-1, 2, (64, 1024)).astype(np.int8)) == "table"
    assert smallest(np.zeros((64, 1024), np.int8), sparse=True) == "table"


def test_blocks_are_taken_where_their_scales_are_exact() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, (16, 128, 1, 1)) * rng.permuted(
        np.tile([16, 5, 3, 1], (16, 1)), axis=1
    ).repeat(32, 1).reshape(16, 128, 1, 1)
    short, long = (np.full((16, 1, 1, 1), step, np.float16) for step in (0.0127, 0.01))
    short = (short.view(np.uint16) & 0xFFF0).view(np.float16)  # 7 bits of its significand
    assert few_bits.smallest(codes.astype(np.int8), short) == "blocks"
    assert few_bits.smallest(codes.astype(np.int8), long) is None


ROWS = 3
READ: dict[str, Array] = {
    f"{kind}{bits}": np.arange(ROWS * 7).reshape(ROWS, 7) % 2**bits - (8 if kind == "int" else 0)
    for kind, bits in (("int", 4), ("uint", 1), ("uint", 2), ("uint", 3), ("uint", 4), ("uint", 6))
}
"""Of every type with fewer bits than 8: its integers, an odd number of them."""


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", READ)
def test_integers_of_few_bits_are_read(kind: str, in_place: bool) -> None:
    """From the weight file, and in place, where an array has fewer than ten elements."""
    wanted = READ[kind][:1] if in_place else READ[kind]
    stored_as = wanted.astype(types.nptype_from_builtin(types.string_to_builtin(kind)))
    scale = np.ones((1, 1), np.float32)
    signed = kind == "int4"

    def build(x: object) -> object:
        if signed:
            weight = mb.constexpr_blockwise_shift_scale(data=stored_as, scale=scale, name="w")
        else:
            bits = int(kind.removeprefix("uint"))
            table = np.arange(2**bits, dtype=np.float32).reshape(1, 1, -1, 1)
            weight = mb.constexpr_lut_to_dense(indices=stored_as, lut=table, name="w")
        return mb.add(x=x, y=weight)

    net = saved_ios18(build, wanted.shape)
    made_by = net.producers()
    found = np.asarray(made_by["w"].constant("data" if signed else "indices", made_by))
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == {"int4": np.int8, "uint1": bool}.get(kind, np.uint8)
    x = normal(2, *wanted.shape)
    (result,) = answers(net, x)
    np.testing.assert_array_equal(result, x + wanted.astype(np.float32))


def test_a_table_of_floats_has_no_codes() -> None:
    """As other tools write them: with no int8 number in the file there is no scale either."""
    indices = (np.arange(6 * 4).reshape(6, 4, 1, 1) % 4).astype(types.np_uint2_dtype)
    table = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 1, 4, 1)
    scale = np.ones((1,) * 6, np.float32)

    def build(x: object) -> object:
        scaled = mb.constexpr_blockwise_shift_scale(data=table, scale=scale)
        weights = [mb.constexpr_lut_to_dense(indices=indices, lut=lut) for lut in (table, scaled)]
        return [mb.conv(x=x, weight=w, name=n) for n, w in zip("ab", weights, strict=True)]

    net = saved_ios18(build, (1, 4, 5, 5))
    made_by = net.producers()
    for name in "ab":
        assert int8_weight(made_by[made_by[name].tensor("weight")], made_by) is None


def test_weights_that_floats_are_multiplied_by_stay() -> None:
    """Only convolutions of int8 data are int8; the same weights beside floats are not touched."""
    weight = np.tile(np.array([-100, 0, 3, 90], np.int8), (8, 512)).reshape(8, 2048, 1, 1)
    scale = np.full((8, 1, 1, 1), 0.5, np.float16)
    target = ct.target.iOS18

    @mb.program(  # type: ignore[untyped-decorator]
        input_specs=[mb.TensorSpec(shape=(1, 2048, 2, 2), dtype=types.fp16)], opset_version=target
    )
    def program(x: object) -> object:
        grid = {"scale": np.float16(0.1), "zero_point": np.int8(0)}
        int8 = mb.dequantize(input=mb.quantize(input=x, output_dtype="int8", **grid), **grid)
        made = [mb.constexpr_blockwise_shift_scale(data=weight, scale=scale) for _ in range(2)]
        return [
            mb.conv(x=data, weight=w, name=n)
            for data, w, n in zip((int8, x), made, ("int8", "float"), strict=True)
        ]

    few_bits.StoreInFewBits()(program)
    (function,) = program.functions.values()
    kinds = {op.name: op.weight.op.op_type for op in function.find_ops(op_type="conv")}
    assert kinds == {"int8": OPERATIONS["table"], "float": OPERATIONS[None]}


def test_a_layers_bytes_are_told_before_it_is_written() -> None:
    """What forms are chosen by: tables of every channel count, and int8 where it is less."""
    coreml = FORMATS["coreml"]
    assert coreml.weight_bytes("palette64", 64 * 1024, 64, 1, False) == 64 * 768 + 64 * 64
    assert coreml.weight_bytes("palette64", 64 * 64, 64, 1, False) == 64 * 64
    assert coreml.weight_bytes("int4", 64 * 64, 64, 1, False) == 64 * 32
    rng = np.random.default_rng(0)
    for form, values in PALETTES.items():
        weight = (rng.integers(0, values, (64, 1024)) - 100).astype(np.int8)
        predicted = coreml.weight_bytes(form, weight.size, len(weight), 32, False)
        stored = few_bits.FORMS["table"].bytes(weight)
        assert stored is not None
        assert 0 <= stored - predicted < 1024
