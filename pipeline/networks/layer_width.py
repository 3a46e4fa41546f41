"""Output channels of one layer, before and after."""

from __future__ import annotations

from pipeline.base.record import Count, Positive, Record, Text


class LayerWidth(Record):
    """Output channels of one layer of the network in branch form.

    Attributes:
        name: of the layer.
        kernel: such as `3x3`.
        before: in the network as it was trained.
        after: in the network that was written.
    """

    name: Text
    kernel: Text
    before: Positive
    after: Count
