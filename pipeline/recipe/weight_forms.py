"""The forms that the weights of a layer can have."""

from __future__ import annotations

from typing import Literal, get_args

WeightForm = Literal["int8", "int4", "palette16", "palette64"]
WEIGHT_FORMS: tuple[WeightForm, ...] = get_args(WeightForm)

WEIGHT_LIMITS = ("size_mb", "download_mb", "accuracy_drop_pt")
"""What forms of layers can be chosen for: keys of `qat.weights`."""

INT4_QMAX = 7
"""Weights of 4 bits use -7..7: TFLite's kernels take a symmetric range, as for int8."""

BITS: dict[WeightForm, int] = {"int8": 8, "int4": 4, "palette16": 4, "palette64": 6}
"""That tell the values of a weight apart."""

PALETTES: dict[WeightForm, int] = {"palette16": 16, "palette64": 64}
"""Number of values, by the form."""
