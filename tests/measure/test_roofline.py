"""Shares of the peak: what a product of matrices is, what layers do, and what is made of times."""

import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import shape_inference

from pipeline.base.errors import InputError
from pipeline.formats.formats import FORMATS
from pipeline.formats.gemm import Gemm, Work, candidates, windowed
from pipeline.formats.layer_times import OTHER
from pipeline.formats.onnx import gemm as onnx_gemm
from pipeline.formats.onnx.file import session_options
from pipeline.formats.tflite import gemm as tflite_gemm
from pipeline.measure import roofline, timing
from pipeline.measure.latency import Latency, latency_of
from pipeline.measure.roofline import LayerRate, OpRate, Peak, Rate, Roofline, describe, layer_rates
from tests.making import programs

pytestmark = pytest.mark.slow

SMALL = Gemm(operation="1x1 convolution", side=5, inputs=16, outputs=24)
PRODUCT = dataclasses.replace(SMALL, operation="matrix product")
MADE_BY = {
    ("1x1 convolution", "int8"): "QLinearConv",
    ("1x1 convolution", "float"): "Conv",
    ("matrix product", "int8"): "MatMulInteger",
    ("matrix product", "float"): "MatMul",
}


MEASURED = [name for name, form in FORMATS.items() if form.gemm is not None]
"""Formats whose matrix products can be written and timed."""


def module_of(format_name: str) -> Any:
    return FORMATS[format_name].gemm()


@functools.cache
def content(format_name: str, precision: str) -> bytes:
    """The file of a small ResNeSt of two blocks."""
    if precision == "int8":
        return programs.file_of(format_name, "basic").read_bytes()
    source = programs.unquantized("basic")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        FORMATS[format_name].module().write(source.program, path)
        return path.read_bytes()


FILES = [(name, precision) for name in ("onnx", "tflite") for precision in roofline.PRECISIONS]


@pytest.mark.parametrize(("operation", "precision"), MADE_BY)
def test_onnx_products_are_one_operation_of_that_size(operation: Any, precision: str) -> None:
    import onnxruntime

    gemm = dataclasses.replace(SMALL, operation=operation)
    with tempfile.TemporaryDirectory() as folder:
        options, path = session_options(1), Path(folder, "optimized.onnx")
        level = onnxruntime.GraphOptimizationLevel
        # Float convolutions are laid out anew at the last level, for which ONNX has no names.
        if precision == "float":
            options.graph_optimization_level = level.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        source = onnx_gemm.gemm_file(gemm, precision)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        run = onnx.load(path)
    assert [node.op_type for node in run.graph.node] == [MADE_BY[operation, precision]]
    graph = shape_inference.infer_shapes(onnx.load_from_string(source), strict_mode=True).graph
    (weight,) = (i.dims for i in graph.initializer if i.name == "weight")
    rows = np.prod([d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]) / SMALL.inputs
    assert rows * np.prod(weight) == gemm.macs == 5 * 5 * 16 * 24
    (out,) = (tuple(np.shape(values)) for values in onnx_gemm.opened(source, 1)())  # type: ignore[attr-defined]
    assert np.prod(out) == rows * SMALL.outputs


@pytest.mark.parametrize("precision", roofline.PRECISIONS)
def test_tflite_product_is_one_operation_that_xnnpack_runs(precision: str, tmp_path: Path) -> None:
    from pipeline.formats.tflite.file import inspect

    path = tmp_path / "gemm.tflite"
    path.write_bytes(tflite_gemm.gemm_file(SMALL, precision))
    facts = inspect(path)
    assert facts.ops == {"CONV_2D": 1}
    assert facts.partitions == 1
    assert facts.macs == SMALL.macs == 5 * 5 * 16 * 24
    assert facts.int8_macs == (SMALL.macs if precision == "int8" else 0)
    (work,) = tflite_gemm.layer_work(path.read_bytes()).values()
    assert work == Work(op="CONV_2D 1x1", shape="16x5x5 to 24x5x5", macs=SMALL.macs)


@pytest.mark.alone
@pytest.mark.parametrize("format_name", MEASURED)
def test_products_are_those_of_the_runtime(format_name: str) -> None:
    """A product sixteen times as large takes longer, so that the whole of it is computed."""
    module = module_of(format_name)
    for operation in module.OPERATIONS:
        taken = []
        for side in (16, 64):
            gemm = Gemm(operation=operation, side=side, inputs=256, outputs=256)
            run = module.opened(module.gemm_file(gemm, "int8"), 1)
            taken.append(min(timed(run) for _ in range(20)))
        assert taken[1] > 6 * taken[0]


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


@pytest.mark.parametrize(("format_name", "precision"), FILES)
def test_work_of_the_layers_is_that_of_the_file(
    format_name: str, precision: str, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.write_bytes(content(format_name, precision))
    form = FORMATS[format_name].module()
    layers = FORMATS[format_name].layers()
    work = module_of(format_name).layer_work(path.read_bytes())
    assert sum(layer.macs for layer in work.values()) == form.inspect(path).macs
    times = layers.layer_times(path.read_bytes(), rounds=1, threads=1)
    assert times.keys() - {OTHER} <= work.keys()
    if precision == "int8":
        weighed = {name for name, layer in work.items() if layer.macs}
        assert weighed <= times.keys()
    for layer in work.values():
        assert (layer.macs > 0) == ("conv" in layer.op.lower())


def test_work_says_what_a_layer_is() -> None:
    found = {
        name: {(layer.op, layer.shape): layer.macs for layer in work.values()}
        for name in MEASURED
        for work in [module_of(name).layer_work(content(name, "int8"))]
    }
    # A padding of its own stands before the convolution in TFLite.
    assert found["onnx"]["Conv 3x3", "3x32x32 to 8x16x16"] == 9 * 3 * 8 * 16 * 16
    assert found["tflite"]["CONV_2D 3x3", "3x34x34 to 8x16x16"] == 9 * 3 * 8 * 16 * 16
    assert found["onnx"]["MaxPool", "16x16x16 to 16x8x8"] == 0
    assert found["tflite"]["MAX_POOL_2D", "16x18x18 to 16x8x8"] == 0
    # The average pool over two by two pixels of a shortcut.
    assert found["onnx"]["Conv 2x2 depthwise", "16x8x8 to 16x4x4"] == 4 * 16 * 4 * 4
    assert found["tflite"]["DEPTHWISE_CONV_2D 2x2", "16x8x8 to 16x4x4"] == 4 * 16 * 4 * 4


def test_groups_are_named() -> None:
    assert windowed("Conv", (3, 1), 1, 8) == "Conv 3x1"
    assert windowed("Conv", (3, 3), 4, 8) == "Conv 3x3 in 4 groups"
    assert windowed("Conv", (3, 3), 8, 8) == "Conv 3x3 depthwise"


WORK = {
    "wide": Work(op="Conv 1x1", shape="8x4x4 to 8x4x4", macs=6_000_000),
    "deep": Work(op="Conv 3x3", shape="8x4x4 to 8x4x4", macs=3_000_000),
    "narrow": Work(op="Conv 1x1", shape="8x4x4 to 1x4x4", macs=1_000_000),
    "pool": Work(op="MaxPool", shape="8x8x8 to 8x4x4", macs=0),
}
TIMES = {"wide": 1.0, "deep": 1.5, "narrow": 0.5, "pool": 1.5, OTHER: 0.5}
TRIED = (
    Rate(operation="matrix product", shape="a", macs_per_second=8e9),
    Rate(operation="matrix product", shape="b", macs_per_second=4e9),
    Rate(operation="1x1 convolution", shape="c", macs_per_second=1e9),
    Rate(operation="1x1 convolution", shape="d", macs_per_second=2e9),
)
PEAK = Peak(operation="matrix product", shape="a", macs_per_second=4e9, tried=TRIED)


def test_layers_waste_what_they_take_beyond_the_peak() -> None:
    """The file takes twice what its layers take alone; the peak is 4 million a millisecond."""
    rates = {rate.name: rate for rate in layer_rates(WORK, TIMES, ms=10.0, peak=PEAK)}
    assert {name: rate.ms for name, rate in rates.items()} == {
        name: pytest.approx(2 * ms) for name, ms in TIMES.items()
    }
    assert {name: rate.wasted_ms for name, rate in rates.items()} == pytest.approx(
        {"wide": 0.5, "deep": 2.25, "narrow": 0.75, "pool": 3.0, OTHER: 1.0}
    )
    assert {name: rate.share_of_peak for name, rate in rates.items()} == pytest.approx(
        {"wide": 0.75, "deep": 0.25, "narrow": 0.25, "pool": 0.0, OTHER: 0.0}
    )
    wasted = sum(rate.wasted_ms for rate in rates.values())
    assert wasted == pytest.approx(10.0 - sum(work.macs for work in WORK.values()) / 4e6)
    assert (rates[OTHER].op, rates[OTHER].macs) == (OTHER, 0)


def latencies(**samples: list[float]) -> dict[str, Latency]:
    return {name: latency_of(taken, threads=1, batch=1) for name, taken in samples.items()}


def test_peak_is_the_fastest_of_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes a millisecond, five make a burst, and all bursts take ten but one."""

    def interleaved(runs: dict[str, Any], **options: int) -> dict[str, Latency]:
        if list(runs) == [""]:
            return latencies(**{"": [1.0]})
        assert options["threads"] == 2
        samples = {name: [10.0] for name in runs} | {"2": [1.0, 2.0, 60.0]}
        return latencies(**samples)

    monkeypatch.setattr(timing, "interleaved", interleaved)
    found = roofline.peak("tflite", "int8", threads=2)
    gemms = candidates(tflite_gemm.OPERATIONS)
    assert [rate.macs_per_second for rate in found.tried] == pytest.approx(
        [5 * gemm.macs / (2 if gemm is gemms[2] else 10) * 1e3 for gemm in gemms]
    )
    assert (found.operation, found.shape) == (gemms[2].operation, gemms[2].shape)
    assert found.macs_per_second == found.tried[2].macs_per_second


def test_file_and_product_are_compared_run_by_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A machine that is a third as fast at times: the ratio of the medians would be 1.5."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content("onnx", "int8"))

    def compared(runs: dict[str, Any], **options: int) -> dict[str, Latency]:
        for run in runs.values():
            run()
        return latencies(file=[30.0, 10.0, 10.0], gemm=[15.0, 5.0, 15.0])

    monkeypatch.setattr(roofline, "peak", lambda *_: PEAK)
    monkeypatch.setattr(timing, "compared", compared)
    alone = iter([8.0, 2.0])  # the file, then the product: four of them make a burst
    monkeypatch.setattr(timing, "interleaved", lambda runs, **_: latencies(**{"": [next(alone)]}))
    found = roofline.roofline(path, "onnx", "int8", threads=1)
    assert found.ms == 10.0
    gemm = candidates(onnx_gemm.OPERATIONS)[1]  # the second of TRIED has the rate of PEAK
    assert found.peak.macs_per_second == pytest.approx(4 * gemm.macs / 5.0 * 1e3)
    assert found.peak.tried == TRIED
    assert found.share_of_peak == pytest.approx(found.macs / 10.0 / (4 * gemm.macs / 5.0))


@pytest.mark.alone
@pytest.mark.parametrize(("format_name", "precision"), FILES)
def test_roofline_of_a_file(format_name: str, precision: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(content(format_name, precision))
    found = roofline.roofline(path, format_name, precision, threads=1)
    assert (found.format, found.precision, found.threads) == (format_name, precision, 1)
    assert 0 < found.share_of_peak < 1
    rate = found.macs / found.ms * 1e3
    assert found.share_of_peak == pytest.approx(rate / found.peak.macs_per_second)
    assert found.macs == sum(
        w.macs for w in module_of(format_name).layer_work(content(format_name, precision)).values()
    )
    assert sum(op.ms for op in found.by_op.values()) == pytest.approx(found.ms)
    assert [op.ms for op in found.by_op.values()] == sorted(
        (op.ms for op in found.by_op.values()), reverse=True
    )
    assert len(found.worst) == roofline.WORST
    wasted = [layer.wasted_ms for layer in found.worst]
    assert wasted == sorted(wasted, reverse=True)
    as_json = json.loads(json.dumps(dataclasses.asdict(found)))
    assert as_json["worst"][0]["name"] == found.worst[0].name
    assert as_json["peak"]["tried"][0]["macs_per_second"] > 0


def test_time_that_is_known_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(content("onnx", "int8"))
    monkeypatch.setattr(roofline, "peak", lambda *_: PEAK)
    found = roofline.roofline(path, "onnx", "int8", threads=1, ms=50.0)
    assert (found.ms, found.peak) == (50.0, PEAK)
    assert found.share_of_peak == pytest.approx(found.macs / 50.0 / 4e6)
    assert sum(op.ms for op in found.by_op.values()) == pytest.approx(50.0)


def test_layers_without_weights_can_waste_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline.formats.onnx import layers as onnx_layers

    path = tmp_path / "model"
    path.write_bytes(content("onnx", "int8"))
    work = onnx_gemm.layer_work(path.read_bytes())
    (pool,) = (name for name, layer in work.items() if layer.op == "MaxPool")
    times = dict.fromkeys(work, 0.1) | {pool: 3.0, OTHER: 2.0}
    monkeypatch.setattr(roofline, "peak", lambda *_: PEAK)
    monkeypatch.setattr(onnx_layers, "layer_times", lambda *_, **__: times)
    found = roofline.roofline(path, "onnx", "int8", threads=1, ms=sum(times.values()))
    assert [layer.name for layer in found.worst[:2]] == [pool, OTHER]
    assert found.by_op["MaxPool"] == OpRate(
        layers=1, macs=0, ms=pytest.approx(3.0), share_of_peak=0.0, wasted_ms=pytest.approx(3.0)
    )
    assert found.layers_ms == pytest.approx(found.ms)


def test_text_names_the_share_the_layers_and_the_operations() -> None:
    ops = {
        "Conv 3x3": OpRate(layers=2, macs=2440, ms=9.0, share_of_peak=0.6, wasted_ms=3.6),
        "Add": OpRate(layers=1, macs=0, ms=0.95, share_of_peak=0.0, wasted_ms=0.95),
        "Relu": OpRate(layers=3, macs=0, ms=0.03, share_of_peak=0.0, wasted_ms=0.03),
        "Sigmoid": OpRate(layers=4, macs=0, ms=0.02, share_of_peak=0.0, wasted_ms=0.02),
    }
    layer = LayerRate(
        name="first;second", op="Conv 3x3", shape="1x2x3 to 4x5x6", macs=2440,
        ms=4.5, share_of_peak=0.5, wasted_ms=2.25,
    )  # fmt: skip
    found = Roofline(
        format="onnx", precision="int8", threads=2, peak=PEAK, macs=24_400_000, ms=10.0,
        layers_ms=8.0, share_of_peak=0.61, worst=(layer,), by_op=ops,
    )  # fmt: skip
    assert describe(found) == [
        "this file runs at 61 % of this CPU's int8 peak in onnx, 2 threads",
        "  file: 0.0244 G multiply-accumulates in 10 ms, 2 G/s",
        "  peak: 4 G/s, matrix product a",
        "  1x1 convolution d: 25 % of the peak",
        "layers that waste most (2.25 ms together):",
        "  2.250 of 4.500 ms, 50 % of the peak: Conv 3x3, 1x2x3 to 4x5x6 (first)",
        "by operation:",
        "  9.000 ms, 90 % of the time, 60 % of the peak, 3.600 ms wasted: Conv 3x3 (2)",
        "  0.950 ms, 10 % of the time, 0 % of the peak, 0.950 ms wasted: Add (1)",
        "  0.050 ms: 2 other operations",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "coreml"}, "format: got 'coreml'; there is a peak for onnx and tflite"),
        ({"precision": "int4"}, "precision: got 'int4'; there is a peak for int8 and float"),
        ({"file": Path("nowhere.onnx")}, "nowhere.onnx: there is no such file"),
        ({"ms": 0.0}, "ms: got 0.0; give milliseconds above 0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    given = {"file": path, "format": "onnx", "precision": "int8", "threads": 1} | changes
    with pytest.raises(InputError, match=message):
        roofline.roofline(**given)
