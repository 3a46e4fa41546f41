"""The file formats. A further one is a folder beside this module and an entry of `FORMATS`.

    FORMATS["tflite"].suffix                                # ".tflite", without torch
    FORMATS["tflite"].module().open_file(path, threads=1)   # imports its runtime

The table lies above the recipe, whose `target.format` is one of its keys: a recipe is given them
when it is loaded (`pipeline.recipe.known`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from pipeline.compress.pruning.stored import Bytes
from pipeline.formats.format import (
    DelegatesModule,
    ElsewhereModule,
    FaultsModule,
    Format,
    FormatModule,
    GemmModule,
    HeadModule,
    LayersModule,
)
from pipeline.formats.limits import FLOAT16_EPSILON, Limits


def _onnx() -> FormatModule:
    from pipeline.formats.onnx import file

    return file


def _onnx_head() -> HeadModule:
    from pipeline.formats.onnx import head

    return head


def _onnx_delegates() -> DelegatesModule:
    from pipeline.formats.onnx import delegates

    return delegates


def _onnx_layers() -> LayersModule:
    from pipeline.formats.onnx import layers

    return layers


def _onnx_gemm() -> GemmModule:
    from pipeline.formats.onnx import gemm

    return gemm


def _onnx_elsewhere() -> ElsewhereModule:
    from pipeline.formats.onnx import elsewhere

    return elsewhere


def _tflite() -> FormatModule:
    from pipeline.formats.tflite import file

    return file


def _tflite_head() -> HeadModule:
    from pipeline.formats.tflite import head

    return head


def _tflite_delegates() -> DelegatesModule:
    from pipeline.formats.tflite import delegates

    return delegates


def _tflite_layers() -> LayersModule:
    from pipeline.formats.tflite import layers

    return layers


def _tflite_gemm() -> GemmModule:
    from pipeline.formats.tflite import gemm

    return gemm


def _tflite_elsewhere() -> ElsewhereModule:
    from pipeline.formats.tflite import elsewhere

    return elsewhere


def _coreml() -> FormatModule:
    from pipeline.formats.coreml import file

    return file


def _coreml_faults() -> FaultsModule:
    from pipeline.formats.coreml import faults

    return faults


def _coreml_head() -> HeadModule:
    from pipeline.formats.coreml import head

    return head


def _coreml_delegates() -> DelegatesModule:
    from pipeline.formats.coreml import delegates

    return delegates


# Limits: runtimes round a few numbers of a layer otherwise than torch, by one step, and Core ML,
# whose tensors and biases are float16, some more. In a deep network one step here moves others
# there, until about half of the logits may be a step off, so that their median is 0 or 1 by chance.
# How far that goes depends on the network (`parity.widened`). That each layer alone computes what
# the program does is a gate of its own (`parity.layer_misses`).
# Bytes of a channel: scale, bias and the bias's scale; ONNX has a zero point too, and no bias where
# a convolution stands for a pool. Core ML keeps scale and bias in float16, and describes every
# operation at length.
FORMATS: dict[str, Format] = {
    "onnx": Format(
        suffix=".onnx",
        title="ONNX",
        package="onnxruntime",
        writers=("onnx", "onnxscript"),
        runtime="onnxruntime",
        runtime_title="ONNX Runtime",
        traced_by="runtime",
        in_process=True,
        limits=Limits(median=1),
        bytes={
            "int8": Bytes(weight=1, channel=13, pool_channel=5, layer=1040),
            "float": Bytes(weight=4, channel=4, pool_channel=0, layer=410),
        },
        few_bits={"int4": 4, "int4_blocks": 4, "palette16": 4},
        few_bits_block={"int4_blocks": 1},
        few_bits_layer={"int4": 300, "int4_blocks": 700, "palette16": 780},
        options=frozenset({"few_bits", "float16", "opset17", "x86_amx"}),
        oldest={None: "1.18.1", "opset17": "1.15.1"},
        module=_onnx,
        head=_onnx_head,
        delegates=_onnx_delegates,
        layers=_onnx_layers,
        gemm=_onnx_gemm,
        elsewhere=_onnx_elsewhere,
    ),
    "tflite": Format(
        suffix=".tflite",
        title="TFLite",
        package="ai-edge-litert",
        writers=("onnx", "onnxscript", "onnxruntime", "onnx2tf", "tensorflow"),
        runtime="litert",
        runtime_title="LiteRT",
        traced_by="runtime",
        limits=Limits(median=1),
        bytes={
            "int8": Bytes(weight=1, channel=12, pool_channel=12, layer=590),
            "float": Bytes(weight=4, channel=4, pool_channel=4, layer=527),
        },
        few_bits_pointwise={"int4": 4},
        options=frozenset({"float16", "few_bits"}),
        oldest={None: "1.0.1", "few_bits": "1.3.0"},
        module=_tflite,
        head=_tflite_head,
        delegates=_tflite_delegates,
        layers=_tflite_layers,
        gemm=_tflite_gemm,
        elsewhere=_tflite_elsewhere,
    ),
    "coreml": Format(
        suffix=".mlpackage",
        title="Core ML",
        package="coremltools",
        runtime="coreml",
        runtime_title="Core ML",
        traced_by="reference",
        folder=True,
        own_threads=True,
        limits=Limits(median=1, p99=3, difference=1e-2, epsilon=FLOAT16_EPSILON),
        bytes={
            "int8": Bytes(weight=1, channel=5, pool_channel=5, layer=3426),
            "float": Bytes(weight=2, channel=2, pool_channel=0, layer=1709),
        },
        few_bits={"int4": 4, "int4_blocks": 4, "palette16": 4, "palette64": 6},
        few_bits_block={"int4_blocks": 2},
        few_bits_channel={"palette16": 16, "palette64": 64},
        options=frozenset(
            {"classifier", "sparse", "few_bits", "clipped_products", "float16_products"}
        ),
        module=_coreml,
        head=_coreml_head,
        delegates=_coreml_delegates,
        faults=_coreml_faults,
    ),
}
"""By the name that recipes and reports have."""


def _in_table(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"got {name!r}; must be one of {', '.join(FORMATS)}")
    return name


FormatName = Annotated[
    str, AfterValidator(_in_table), WithJsonSchema({"type": "string", "enum": list(FORMATS)})
]
"""A key of `FORMATS`, as records hold it."""
