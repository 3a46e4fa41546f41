"""Model files that are well formed and mean something else: one number, name or list changed.

Changed bytes rarely get past a reader's checks. What is changed here is read as it stands, and
reaches the runtime.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tests.soak.mutate import damaged

_NUMBERS = (-(2**31), -2, -1, 0, 1, 2, 3, 7, 255, 2**16, 2**24, 2**31 - 1)
_FLOATS = (0.0, -1.0, 1e-45, 1e38, float("inf"), float("nan"))


def changed_tflite(content: bytes, rng: random.Random) -> bytes:
    """A TFLite file with one to three values of its flatbuffer changed."""
    from ai_edge_litert import schema_py_generated as schema

    from pipeline.formats.tflite.flatbuffer import pack

    for _ in range(20):
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        for _ in range(rng.choice((1, 1, 2, 3))):
            _change_object(model, rng)
        try:
            return pack(model)
        # A number that its field cannot hold.
        except (TypeError, ValueError, OverflowError, AttributeError, IndexError):
            continue
    return damaged(content, rng)


def _change_object(thing: Any, rng: random.Random) -> None:
    """Change a flatbuffer's object, or one of those it holds."""
    while True:
        named = {name: value for name, value in vars(thing).items() if value is not None}
        name = rng.choice(list(named))
        value = named[name]
        inner = rng.choice(value) if isinstance(value, list) and value else value
        if hasattr(inner, "__dict__") and rng.random() < 0.9:
            thing = inner
            continue
        if isinstance(value, bool):
            setattr(thing, name, not value)
        elif isinstance(value, int):
            setattr(thing, name, _number(value, rng))
        elif isinstance(value, float):
            setattr(thing, name, rng.choice(_FLOATS))
        elif isinstance(value, list | np.ndarray) and len(value):
            setattr(thing, name, _several(value, rng))
        return


def _number(value: int, rng: random.Random) -> int:
    return rng.choice((value + 1, value - 1, value * 2, value // 2, rng.choice(_NUMBERS)))


def _several(values: Any, rng: random.Random) -> Any:
    """A list or an array with an element changed, moved, missing or twice."""
    if isinstance(values, np.ndarray) and len(values) > 64 and values.dtype == np.uint8:
        content = np.frombuffer(damaged(values.tobytes(), rng), np.uint8)
        return rng.choice((content, values[: rng.randrange(len(values))], values[:0]))
    rest = list(values)
    at = rng.randrange(len(rest))
    does = rng.randrange(5)
    if does == 0:
        del rest[at]
    elif does == 1:
        rest.insert(at, rest[rng.randrange(len(rest))])
    elif does == 2:
        rest = []
    elif isinstance(rest[at], int | np.integer):
        rest[at] = _number(int(rest[at]), rng)
    elif isinstance(rest[at], float | np.floating):
        rest[at] = rng.choice(_FLOATS)
    else:
        rest[at] = rest[rng.randrange(len(rest))]
    return np.array(rest, values.dtype) if isinstance(values, np.ndarray) else rest


def changed_onnx(content: bytes, rng: random.Random) -> bytes:
    """An ONNX file with one to three fields changed."""
    import onnx

    return _changed_message(onnx.ModelProto, content, rng)


def changed_mlmodel(content: bytes, rng: random.Random) -> bytes:
    """The specification of a Core ML package with one to three fields changed."""
    from coremltools.proto import Model_pb2

    return _changed_message(Model_pb2.Model, content, rng)


def _changed_message(kind: Any, content: bytes, rng: random.Random) -> bytes:
    for _ in range(20):
        message = kind.FromString(content)
        for _ in range(rng.choice((1, 1, 2, 3))):
            try:
                _change_message(message, rng)
            except (TypeError, ValueError, IndexError, KeyError):  # not a value of that field
                continue
        changed: bytes = message.SerializeToString()
        if changed != content:
            return changed
    return damaged(content, rng)


def _change_message(message: Any, rng: random.Random) -> None:
    """Change a field of a message, or of one that it holds."""
    while fields := message.ListFields():
        field, value = rng.choice(fields)
        deeper = rng.random() < 0.9
        if field.message_type is None:
            if field.label == field.LABEL_REPEATED:
                _change_repeated(value, rng)
            else:
                setattr(message, field.name, _scalar(value, rng))
            return
        if field.message_type.GetOptions().map_entry:
            key = rng.choice(sorted(value))
            if not deeper or not hasattr(value[key], "ListFields"):
                value.pop(key)
                return
            message = value[key]
        elif field.label == field.LABEL_REPEATED:
            if not deeper:
                _change_repeated(value, rng)
                return
            message = value[rng.randrange(len(value))]
        elif deeper:
            message = value
        else:
            message.ClearField(field.name)
            return


def _change_repeated(values: Any, rng: random.Random) -> None:
    at = rng.randrange(len(values))
    does = rng.randrange(4)
    if does == 0:
        del values[at]
    elif does == 1:
        del values[:]
    elif does == 2 or hasattr(values[at], "ListFields"):
        values.append(values[at])
    else:
        values[at] = _scalar(values[at], rng)


def _scalar(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((_number(value, rng), rng.choice((2**40, 2**62, -(2**62)))))
    if isinstance(value, float):
        return rng.choice(_FLOATS)
    if isinstance(value, bytes):
        return rng.choice((damaged(value, rng), value[: len(value) // 2], b""))
    return rng.choice((f"{value}x", value[:-1], "", "image", "logits", value[::-1], "a" * 3000))
