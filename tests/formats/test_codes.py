"""What a file's weights are, whole number by whole number, beside the program's."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from pipeline.formats.file_facts import Codes, FileFacts, codes_of, learned_codes, scales_exact
from pipeline.formats.scales import ScalesExact
from pipeline.measure.parity import file_misses
from tests.making import programs


def test_one_other_weight_costs_its_tensor() -> None:
    source = programs.quantized("radix2").program
    learned = learned_codes(source)
    first = next(iter(learned))
    others = learned - Counter([first])
    facts = FileFacts(
        ops={}, int8_macs=1, macs=1, layers={}, weights=Counter(), codes=Counter(others)
    )
    found = scales_exact(source, facts)
    assert found is not None
    total = sum(codes.numbers * count for codes, count in learned.items())
    assert (found.codes_same, found.codes_total) == (total - first.numbers, total)
    told = f"{total - first.numbers} of {total} weights are the learned ones (all must be)"
    assert told in file_misses(facts, found)


def test_codes_tell_weights_apart_by_their_order() -> None:
    weight = np.arange(-4, 4, dtype=np.int8).reshape(2, 2, 2, 1)
    assert codes_of(weight) == codes_of(weight.reshape(2, 4))
    assert codes_of(weight) != codes_of(weight.transpose(1, 0, 2, 3))
    assert codes_of(weight).numbers == 8
    assert isinstance(codes_of(weight), Codes)


def test_reports_of_before_say_nothing_of_weights() -> None:
    before = ScalesExact.model_validate_json(json.dumps({"same": 3, "total": 3}))
    assert (before.codes_same, before.codes_total) == (0, 0)
    with pytest.raises(ValueError, match="codes_same: got 2; must be <= codes_total, which is 1"):
        ScalesExact(same=1, total=1, codes_same=2, codes_total=1)
