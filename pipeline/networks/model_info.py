"""The float network, as the report names it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.base.record import Count, MeasuredRecord, Positive, Text


class ModelInfo(MeasuredRecord):
    """The float baseline's network; `macs` are multiply-accumulates of one image.

    `block` is the kind of its blocks, None where its family has no kinds.
    """

    name: Text
    block: Text | None = None
    input_shape: Annotated[tuple[Positive, ...], Field(min_length=1)]
    num_classes: Positive
    params: Count
    macs: Count
