"""Int8 ONNX files as ONNX Runtime's and Intel's quantizers make them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

Images = NDArray[np.float32]


@dataclass
class _Reader:
    """Images one by one, the way ONNX Runtime's calibration asks for them."""

    images: Iterator[Images]

    def get_next(self) -> dict[str, Images] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


def quantize_static(source: Path, images: Images, path: Path) -> None:
    """Write `path` as ONNX Runtime's documentation recommends for x86: uint8 by int8, QDQ.

    On a ResNeSt-50 of CIFAR-10 entropy and percentile calibration were no more accurate beyond
    noise, a moving average of the ranges was less.

    Args:
        source: a float ONNX file with input `image`.
        images: float32 (N, 3, S, S), as the network takes them.
        path: of the file.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = Path("prepared.onnx").absolute()
    quant_pre_process(str(source), str(prepared))
    quantization.quantize_static(
        str(prepared),
        str(path),
        _Reader(iter(images)),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )


@dataclass
class _Loader:
    """Images with a label each, the way neural-compressor's calibration asks for them."""

    images: Images
    batch_size: int = 1

    def __iter__(self) -> Iterator[tuple[Images, int]]:
        return ((image[None], 0) for image in self.images)


class _Errors(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def neural_compressor(source: Path, images: Images, path: Path) -> None:
    """Write `path` by neural-compressor's static post-training quantization, its defaults.

    Two things have to be worked around: onnx has lost the table of types it looks up, and its
    rewriting of Gemm to MatMul leaves a shape behind that is no longer true.

    Args:
        source: a float ONNX file with input `image`.
        images: float32 (N, 3, S, S), as the network takes them.
        path: of the file.

    Raises:
        RuntimeError: neural-compressor gave up; it says why.
    """
    if not hasattr(onnx, "mapping"):
        onnx.mapping = _types()  # type: ignore[attr-defined]
    from neural_compressor import quantization
    from neural_compressor.config import PostTrainingQuantConfig

    errors = _Errors()
    logging.getLogger("neural_compressor").addHandler(errors)
    config = PostTrainingQuantConfig(
        approach="static",
        calibration_sampling_size=[len(images)],
        recipes={"gemm_to_matmul": False},
    )
    # It logs what goes wrong and returns nothing.
    quantized = quantization.fit(str(source), config, calib_dataloader=_Loader(images))
    if quantized is None:
        raise RuntimeError(errors.messages[0] if errors.messages else "gave no model and no error")
    quantized.save(str(path))


def _types() -> Any:
    """What `onnx.mapping` held up to onnx 1.17, as far as neural-compressor reads it."""
    types = [onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32]
    numpy_types = {value: helper.tensor_dtype_to_np_dtype(value) for value in types}
    return SimpleNamespace(
        TENSOR_TYPE_TO_NP_TYPE=numpy_types,
        NP_TYPE_TO_TENSOR_TYPE={dtype: value for value, dtype in numpy_types.items()},
    )
