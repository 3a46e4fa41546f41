"""A module of a network that was left in float, as the report keeps it."""

from __future__ import annotations

from pipeline.base.record import Count, MeasuredRecord, Text


class FloatLayer(MeasuredRecord):
    """What of a module stays in float.

    Attributes:
        module: its path.
        operations: what it computes there, in order, by torch's names.
        macs: multiply-accumulates of it for one image, 0 without weights.
    """

    module: Text
    operations: tuple[Text, ...]
    macs: Count
