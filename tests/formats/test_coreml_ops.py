"""Every other operation of the reference evaluator, against numpy and torch."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil.ops.defs.iOS18 import compression
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.formats.coreml.evaluator import Evaluator
from pipeline.formats.coreml.ops import OPS
from tests.making.packages import Array, Build, Case, check, network, normal, of_torch, of_x

# A batching rule that torch lacks makes one operation of many images a slow loop.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error:There is a performance drop")]

FEW = settings(max_examples=4, deadline=None, derandomize=True)
"""Every example is a package with several operations."""
SHAPE = (4, 5, 6)


def several(case: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(case, min_size=8, max_size=8)


def of_square(name: str, **arguments: Any) -> Build:
    return lambda x: getattr(mb, name)(x=mb.mul(x=x, y=x), **arguments)


def test_functions_of_each_element_are_torchs() -> None:
    third, tenth = np.float32(0.3), np.float32(0.1)
    check(
        [
            (of_x("relu"), of_torch(F.relu)),
            (of_x("relu6"), of_torch(F.relu6)),
            (of_x("sigmoid"), of_torch(torch.sigmoid)),
            (of_x("tanh"), of_torch(torch.tanh)),
            (of_x("leaky_relu", alpha=tenth), of_torch(partial(F.leaky_relu, negative_slope=0.1))),
            (of_x("elu", alpha=np.float32(1)), of_torch(F.elu)),
            (of_x("gelu", mode="EXACT"), of_torch(F.gelu)),
            (
                of_x("gelu", mode="TANH_APPROXIMATION"),
                of_torch(partial(F.gelu, approximate="tanh")),
            ),
            (of_x("exp"), of_torch(torch.exp)),
            (of_x("abs"), np.abs),
            (of_x("cos"), np.cos),
            (of_x("sin"), np.sin),
            (of_x("silu"), of_torch(F.silu)),
            (of_square("log", epsilon=tenth), lambda x: np.log(x * x + tenth)),
            (
                lambda x: mb.pow(x=mb.mul(x=x, y=x), y=np.float32(1.5)),
                lambda x: np.abs(x) ** 3,
            ),
            (of_x("identity"), lambda x: x),
            (of_x("clip", alpha=-tenth, beta=third), lambda x: x.clip(-tenth, third)),
            (of_x("cast", dtype="int32"), lambda x: np.trunc(x).astype(np.int32)),
            (of_x("cast", dtype="bool"), lambda x: x != 0),
            (of_square("sqrt"), np.abs),
            (of_square("rsqrt", epsilon=tenth), lambda x: 1 / np.sqrt(x * x + tenth)),
        ],
        4 * normal(2, 3, 5),
    )


BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@FEW
@given(st.lists(st.sets(st.integers(0, 2)), min_size=len(BINARY), max_size=len(BINARY)))
def test_two_operands_broadcast_as_numpys(single: list[set[int]]) -> None:
    cases: list[Case] = []
    for ones, (name, function) in zip(single, BINARY.items(), strict=True):
        other = normal(*(1 if axis in ones else size for axis, size in enumerate(SHAPE)), seed=3)
        cases.append((of_x(name, y=other), partial(_swapped, function, other)))
        # And the other way round; divided by nothing near zero.
        cases.append((partial(_of_sum, name, other), partial(_of_sum_in_numpy, function, other)))
    check(cases, normal(*SHAPE))


def _swapped(function: Any, other: Array, x: Array) -> Array:
    return np.asarray(function(x, other))


def _of_sum(name: str, other: Array, x: Any) -> Any:
    return getattr(mb, name)(x=other, y=mb.add(x=x, y=np.float32(9)))


def _of_sum_in_numpy(function: Any, other: Array, x: Array) -> Array:
    return np.asarray(function(other, x + 9))


@FEW
@given(several(st.tuples(st.sets(st.integers(-3, -1), min_size=1), st.booleans())))
def test_reductions_are_numpys(drawn: list[Any]) -> None:
    functions = {"reduce_mean": np.mean, "reduce_sum": np.sum, "reduce_max": np.max}
    cases: list[Case] = [
        (of_x(n, keep_dims=True), partial(f, keepdims=True)) for n, f in functions.items()
    ]  # type: ignore[misc]
    for axes, keep in drawn:
        for name, function in functions.items():
            theirs = partial(function, axis=tuple(axes), keepdims=keep)  # type: ignore[call-overload]
            cases.append((of_x(name, axes=sorted(axes), keep_dims=keep), theirs))
    check(cases, normal(*SHAPE))


def test_softmax_and_batch_norm_are_torchs() -> None:
    mean, gamma, beta = (normal(3, seed=seed) for seed in range(3))
    variance = normal(3, seed=4) ** 2
    tensors = [torch.from_numpy(v) for v in (mean, variance, gamma, beta)]
    epsilon = np.float32(0.01)
    plain = of_x("batch_norm", mean=mean, variance=variance)
    full = of_x("batch_norm", mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=epsilon)
    check(
        [
            (of_x("softmax"), of_torch(torch.softmax, dim=-1)),
            (of_x("softmax", axis=1), of_torch(torch.softmax, dim=1)),
            (plain, lambda x: F.batch_norm(torch.from_numpy(x), *tensors[:2])),
            (full, lambda x: F.batch_norm(torch.from_numpy(x), *tensors, eps=0.01)),
        ],
        normal(1, 3, 4, 5),
    )


def test_products_are_numpys() -> None:
    weight, bias, square = normal(7, 6), normal(7), normal(6, 6)
    check(
        [
            (of_x("linear", weight=weight, bias=bias), lambda x: x @ weight.T + bias),
            (of_x("linear", weight=weight), lambda x: x @ weight.T),
            (of_x("matmul", y=square), lambda x: x @ square),
            (of_x("matmul", y=square, transpose_y=True), lambda x: x @ square.T),
            (lambda x: mb.matmul(x=x, y=x, transpose_x=True), lambda x: x.swapaxes(1, 2) @ x),
        ],
        normal(*SHAPE),
    )


@st.composite
def slices(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Arguments of slice_by_index, and the same in numpy's words; never empty."""
    names = ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")
    arguments: dict[str, list[Any]] = {name: [] for name in names}
    words: list[Any] = []
    for size in SHAPE:
        squeeze, step = draw(st.integers(0, 3)) == 0, draw(st.sampled_from([1, 1, 2, 3, -1, -2]))
        bounds = st.sets(st.integers(0, size - 1), min_size=2, max_size=2)
        begin, end = sorted(draw(bounds), reverse=step < 0)
        begin, end = (n - size * draw(st.booleans()) for n in (begin, end))
        no_begin, no_end = draw(st.booleans()), draw(st.booleans())
        if squeeze:  # one index; nothing else counts
            step, no_begin = 1, False
        values = (begin, end, step, no_begin, no_end, squeeze)
        for name, value in zip(names, values, strict=True):
            arguments[name].append(value)
        whole = slice(None if no_begin else begin, None if no_end else end, step)
        words.append(begin if squeeze else whole)
    return arguments, tuple(words)


@FEW
@given(several(slices()))
def test_slices_are_numpys(drawn: list[Any]) -> None:
    cases: list[Case] = [
        (of_x("slice_by_index", **arguments), partial(_indexed, words))
        for arguments, words in drawn
        if not all(arguments["squeeze_mask"])  # coremltools makes no scalar
    ]
    cases += [
        (of_x("slice_by_index", begin=[1, 0, 2], end=[3, 5, -1]), lambda x: x[1:3, :, 2:-1]),
        (of_x("slice_by_size", begin=[1, 0, 2], size=[2, -1, 3]), lambda x: x[1:3, :, 2:5]),
        (of_x("slice_by_size", begin=[-2, 1, 0], size=[1, 4, -1]), lambda x: x[2:3, 1:]),
    ]
    check(cases, normal(*SHAPE))


def _indexed(words: tuple[Any, ...], x: Array) -> Array:
    return np.asarray(x[words])


@FEW
@given(st.permutations([0, 1, 2]), st.integers(-3, 2), st.integers(1, 3))
def test_rearrangements_are_numpys(perm: list[int], axis: int, first: int) -> None:
    sizes, other = [first, SHAPE[axis] - first], normal(*SHAPE, seed=1)
    cases: list[Case] = [
        (of_x("transpose", perm=perm), lambda x: x.transpose(perm)),
        (
            lambda x: mb.split(x=x, axis=axis, split_sizes=sizes)[1],
            lambda x: np.split(x, [first], axis)[1],
        ),
        (lambda x: mb.split(x=x, axis=2, num_splits=3)[1], lambda x: np.split(x, 3, 2)[1]),
        (
            lambda x: mb.concat(values=[x, other, mb.relu(x=x)], axis=axis),
            lambda x: np.concatenate([x, other, x.clip(0)], axis),
        ),
        (of_x("expand_dims", axes=[axis]), lambda x: np.expand_dims(x, axis)),
        (of_x("expand_dims", axes=[0, -1]), lambda x: x[None, ..., None]),
        (
            lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2]), axes=[0, 1]),
            lambda x: x[:, None],  # axis 1 has four elements and stays
        ),
        (lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2])), lambda x: x),
    ]
    check(cases, normal(*SHAPE))


def test_pixel_shuffle_is_torchs() -> None:
    shuffled = partial(F.pixel_shuffle, upscale_factor=2)
    check([(of_x("pixel_shuffle", upscale_factor=2), of_torch(shuffled))], normal(2, 8, 3, 5))


@FEW
@given(st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_reshape_and_pad_are_numpys(pad: list[int]) -> None:
    pads = np.reshape(pad, (3, 2)).tolist()
    value = np.float32(0.5)
    cases: list[Case] = [
        (of_x("reshape", shape=[10, -1]), lambda x: x.reshape(10, 12)),
        # A zero is the size at its place, counted from the last, and 1 where there is none.
        (of_x("reshape", shape=[0, 2, 2, -1, 0]), lambda x: x.reshape(1, 2, 2, 5, 6)),
        (
            of_x("pad", pad=pad, constant_val=value),
            lambda x: np.pad(x, pads, constant_values=0.5),
        ),
        (of_x("pad", pad=pad[2:]), lambda x: np.pad(x, [(0, 0), *pads[1:]])),
    ]
    check(cases, normal(*SHAPE))


def made_by(kind: str, build: Build, x: Array) -> list[Array]:
    """What every operation of a type gives; as outputs of a file int8 would become int32."""
    net = network(build, x.shape[1:])
    names = [op.outputs[0].name for op in net.operations if op.type == kind]
    found = Evaluator(net).run({"x": x}, names)
    return [found[name] for name in names]


def test_quantize_rounds_halves_to_even_and_saturates() -> None:
    x = np.array([-1000, -1.25, -0.75, -0.25, 0, 0.25, 0.75, 1.25, 1000], np.float32)
    steps = np.array([-2000, -2, -2, 0, 0, 0, 2, 2, 2000])
    points = [np.int8(0), np.int8(-3), np.uint8(7)]

    def quantized(x: Any) -> list[Any]:
        quantize = partial(mb.quantize, input=x, scale=np.float32(0.5))
        without = quantize(output_dtype="int8")
        return [without, *(quantize(zero_point=p, output_dtype=p.dtype.name) for p in points[1:])]

    for point, values in zip(points, made_by("quantize", quantized, x[None]), strict=True):
        info = np.iinfo(point.dtype)
        assert values.dtype == point.dtype
        assert values[0].tolist() == (steps + int(point)).clip(info.min, info.max).tolist()


@FEW
@given(st.integers(-3, 2), st.sampled_from([np.int8, np.uint8]))
def test_scales_and_zero_points_lie_along_their_axis(axis: int, dtype: Any) -> None:
    rng, info, size = np.random.default_rng(0), np.iinfo(dtype), SHAPE[axis]
    scale, point = rng.uniform(0.01, 0.1, size).astype(np.float32), rng.integers(0, 9, size)
    weight = rng.integers(0, 100, SHAPE).astype(dtype)
    grid: dict[str, Any] = {"scale": scale, "zero_point": point.astype(dtype), "axis": axis}
    scales, points = (
        np.expand_dims(v, [a for a in range(3) if a != axis % 3]) for v in (scale, point)
    )

    def steps(x: Array) -> Array:
        return np.asarray((np.rint(x / scales) + points).clip(info.min, info.max))

    def quantize(x: Any) -> Any:
        return mb.quantize(input=x, output_dtype=info.dtype.name, **grid)

    def add_weight(x: Any) -> Any:
        return mb.add(x=x, y=mb.constexpr_affine_dequantize(quantized_data=weight, **grid))

    check(
        [
            (quantize, lambda x: steps(x).astype(dtype)),
            (
                lambda x: mb.dequantize(input=quantize(x), **grid),
                lambda x: scales * (steps(x) - points),
            ),
            (add_weight, lambda x: x + scales * (weight.astype(np.int32) - points)),
        ],
        normal(*SHAPE),
    )


@FEW
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=2, max_size=4))
def test_blocks_of_weights_share_a_scale_as_coremltools_says(drawn: list[tuple[int, int]]) -> None:
    """Dense and sparse; only the elements that are not zero are in a sparse tensor."""
    rng = np.random.default_rng(0)
    blocks, shape = tuple(n for n, _ in drawn), tuple(n * size for n, size in drawn)
    data = rng.integers(-127, 127, shape).astype(np.int8)
    mask = rng.random(shape) < 0.6
    scale = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    values = data[mask]
    shift_scale, sparse_shift_scale, to_dense = (
        OPS[name]
        for name in (
            "constexpr_blockwise_shift_scale",
            "constexpr_sparse_blockwise_shift_scale",
            "constexpr_sparse_to_dense",
        )
    )
    for offset in (None, rng.integers(-9, 9, blocks).astype(np.int8)):
        grid = [scale] if offset is None else [scale, offset]
        ours = shift_scale(*map(torch.from_numpy, (data, *grid)))
        theirs = compression.constexpr_blockwise_shift_scale.decompress(data, scale, offset)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)

        kept, ours = sparse_shift_scale(*map(torch.from_numpy, (mask, values, *grid)))
        _, theirs = compression.constexpr_sparse_blockwise_shift_scale.decompress(
            mask, values, scale, offset
        )
        np.testing.assert_array_equal(kept, mask)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        dense = compression.constexpr_sparse_to_dense.decompress(theirs, mask)
        np.testing.assert_array_equal(to_dense(torch.from_numpy(theirs), kept), dense)


@FEW
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 4, 6, 8]),
)
def test_blocks_of_weights_share_a_table_as_coremltools_says(
    drawn: list[tuple[int, int]], bits: int
) -> None:
    """Dense and sparse, of int8 numbers and of floats."""
    rng = np.random.default_rng(0)
    blocks, shape = tuple(n for n, _ in drawn), tuple(n * size for n, size in drawn)
    indices = rng.integers(0, 2**bits, shape).astype(bool if bits == 1 else np.uint8)
    mask = rng.random(shape) < 0.6
    to_dense, to_sparse = (
        OPS[name] for name in ("constexpr_lut_to_dense", "constexpr_lut_to_sparse")
    )
    integers = rng.integers(-127, 128, (*blocks, 2**bits, 1)).astype(np.int8)
    for lut in (integers, integers.astype(np.float32) / 3):
        ours = to_dense(*map(torch.from_numpy, (indices, lut)))
        theirs = compression.constexpr_lut_to_dense.decompress(indices.astype(np.uint8), lut, None)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.numpy().dtype == lut.dtype

        kept, ours = to_sparse(*map(torch.from_numpy, (mask, indices[mask], lut)))
        np.testing.assert_array_equal(kept, mask)
        np.testing.assert_array_equal(ours, theirs[mask])


def test_tables_of_vectors_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="vectors of 2"):
        OPS["constexpr_lut_to_dense"](torch.zeros(4, dtype=torch.uint8), torch.zeros(1, 16, 2))


def test_integers_stay_integers() -> None:
    def build(x: Any) -> Any:
        q = mb.quantize(input=x, scale=np.float32(0.01), output_dtype="uint8")
        left = mb.slice_by_size(x=q, begin=[0, 0], size=[2, 2])
        right = mb.slice_by_size(x=q, begin=[0, 2], size=[2, 2])
        turned = mb.transpose(x=mb.concat(values=[right, left], axis=1), perm=[1, 0])
        return mb.slice_by_index(x=turned, begin=[3, 0], end=[0, 2], stride=[-1, 1])

    x = np.random.default_rng(0).uniform(0, 2.55, (5, 2, 4)).astype(np.float32)
    (q,), (turned,) = (made_by(kind, build, x) for kind in ("quantize", "slice_by_index"))
    assert q.dtype == turned.dtype == np.uint8
    assert np.array_equal(turned, q[:, :, [2, 3, 0, 1]].swapaxes(1, 2)[:, 3:0:-1])
