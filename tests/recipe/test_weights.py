"""What a recipe may say of the bits of weights."""

from __future__ import annotations

import pytest

from pipeline.base.errors import InputError
from pipeline.recipe.compression import WeightsConfig
from tests.making.recipes import device_recipe


def weights(text: str) -> WeightsConfig:
    return device_recipe(f"qat.weights={text}").qat.weights


def test_int8_is_what_is_not_said() -> None:
    found = device_recipe().qat.weights
    assert (found.forms, found.layers, found.rounding) == (("int8",), {}, "adaptive")
    assert not found.few_bits
    assert not found.chosen_by_size


def test_one_form_needs_no_limit_and_several_need_one() -> None:
    one = weights("{forms: [int4]}")
    assert one.few_bits
    assert not one.chosen_by_size
    for limit in ("size_mb: 3", "download_mb: 2.5", "accuracy_drop_pt: 0"):
        several = weights(f"{{forms: [int8, palette16], {limit}}}")
        assert several.few_bits
        assert several.chosen_by_size
    layers = weights("{layers: {stem.*: int8, head: palette64}}")
    assert layers.few_bits
    assert layers.layers == {"stem.*": "int8", "head": "palette64"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{forms: []}", "qat.weights.forms: got []; must be a list, each one of int8, int4,"),
        ("{forms: [int5]}", "qat.weights.forms.0: got 'int5'; must be one of int8, int4,"),
        ("{forms: [int4, int4]}", "forms: got int4, int4; give each once"),
        ("{forms: [int4, int8]}", "forms: with several, give one of size_mb, download_mb, "
         "accuracy_drop_pt, not none"),
        ("{forms: [int4, int8], size_mb: 1, download_mb: 1}", "forms: with several, give one of "
         "size_mb, download_mb, accuracy_drop_pt, not size_mb and download_mb"),
        ("{forms: [int4], size_mb: 1}", "size_mb: must be left out, since every layer has the only "
         "form"),
        ("{forms: [int4, int8], size_mb: 0}", "qat.weights.size_mb: got 0; must be a number > 0"),
        ("{layers: {stem: int3}}", "qat.weights.layers.stem: got 'int3'; must be one of int8, "
         "int4, int4_blocks, palette16, palette64"),
        ("{layers: {stem: }}", "qat.weights.layers.stem"),
        ("{rounding: best}", "qat.weights.rounding: got 'best'; must be one of nearest, adaptive"),
        ("{bits: 4}", "qat.weights.bits: unknown key 'bits'; allowed: forms, size_mb,"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(text: str, line: str) -> None:
    with pytest.raises(InputError) as caught:
        weights(text)
    assert line in str(caught.value)
