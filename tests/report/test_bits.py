"""The bits of weights in a report: by form, layer by layer, and what was predicted of them."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from pipeline.compress.quantization.chosen import ChosenForm, Expected, Weights, weights_of
from pipeline.report import bits, charts, html
from pipeline.report.markdown import render
from pipeline.report.records import Report
from pipeline.report.write import json_schema
from tests.making import reports
from tests.making.markup import Page, rows

TITLE = "## Bits of the weights"


def test_forms_are_counted_in_their_order() -> None:
    found = reports.few_bits(("palette16", "int8", "palette16"))
    assert list(found.forms) == ["int8", "palette16"]
    palettes = found.forms["palette16"]
    assert (palettes.layers, palettes.weights, palettes.megabytes) == (2, 4_000_000, 2.0)
    assert Weights.model_validate_json(found.model_dump_json()) == found


def test_totals_that_are_not_those_of_the_layers_are_refused() -> None:
    found = reports.few_bits()
    with pytest.raises(ValueError, match="forms: are not those of layers"):
        Weights.model_validate(dict(found) | {"layers": found.layers[:2]})


def test_a_report_with_bits_reads_back_and_fits_its_schema() -> None:
    whole = reports.report(reports.target(weights=reports.few_bits()))
    tree = json.loads(whole.model_dump_json())
    jsonschema.validate(tree, json_schema())
    assert Report.model_validate_json(whole.model_dump_json()) == whole
    assert tree["targets"][0]["weights"]["forms"]["int4"]["layers"] == 1
    del tree["targets"][0]["weights"]
    assert Report.model_validate_json(json.dumps(tree)).targets[0].weights is None


def test_the_table_has_a_row_for_each_form() -> None:
    text = render(reports.report(reports.target(weights=reports.few_bits())))
    section = text.split(TITLE)[1].split("\n## ")[0]
    assert re.findall(r"^\| (android \|.*) \|$", section, re.M) == [
        "android | int8 | 8 | 1 | 1.00 M | 16.67 % | 1.00",
        "android | int4 | 4 | 1 | 2.00 M | 33.33 % | 1.00",
        "android | palette16 | 4 | 1 | 3.00 M | 50.00 % | 1.50",
    ]
    assert (
        "- android: size 6.80 MB, where 6.90 was predicted (+1.5 %); download 6.10 MB, where 6.00 "
        "was predicted (-1.6 %); before any training, rounding moves the answers by 0.0055 nats an "
        "image, where 0.006 was predicted" in section
    )


def test_what_was_not_predicted_is_left_out() -> None:
    layer = ChosenForm(layer="stem", form="int4", weights=10, megabytes=0.1, loss=None)
    found = weights_of([layer], Expected(size_mb=6.8))
    report = reports.report(reports.target(weights=found))
    assert bits.notes(report) == ["android: size 6.80 MB, where 6.80 was predicted (+0.0 %)"]
    assert bits.layer_row(layer)[-1] == "n/a"


def test_plain_int8_and_float_files_have_no_such_section() -> None:
    whole = reports.report()
    assert TITLE not in render(whole)
    assert "Bits of the weights" not in html.render(whole)
    with_some = reports.report(reports.target(weights=reports.few_bits()), reports.target("other"))
    assert [row[0] for row in bits.rows(with_some)] == ["android"] * 3


def test_the_page_draws_every_layer_and_has_its_figures_in_a_table() -> None:
    content = html.render(reports.report(reports.target(weights=reports.few_bits())))
    page = Page(content)
    label = "Bits of the weights of android, layer by layer. 1 in int8, 1 in int4, 1 in palette16."
    assert label in page.all_of("aria-label")
    for cell in ("layer1.conv", "layer3.conv", "palette16", "16.67 %"):
        assert cell in page.text


def test_a_bar_is_as_high_as_its_bits_and_has_the_colour_of_its_form() -> None:
    names = ("int8", "int4")
    svg = charts.heights((8.0, 4.0, 4.0), (0, 1, 1), names)
    drawn = [
        (max(ys) - min(ys), colour)
        for path, colour in re.findall(r'<path d="([^"]*)"[^>]*style="fill: (var\(--s\d\))', svg)
        if (ys := [float(y) for y in re.findall(r"[\d.]+ ([\d.]+)", path)])
    ]
    bars = [one for one in drawn if one[0] > 20]  # the others are the key
    assert [colour for _, colour in bars] == ["var(--s0)", "var(--s1)", "var(--s1)"]
    whole, *halves = (height for height, _ in bars)
    assert halves == pytest.approx([whole / 2] * 2, rel=1e-3)
    assert all(name in svg for name in names)


def test_files_are_compared_by_what_is_sent() -> None:
    few = reports.target("few", download_bytes=3_000_000, weights=reports.few_bits())
    page = Page(html.render(reports.report(few, reports.target("plain"))))
    (label,) = [
        one for one in page.all_of("aria-label") if one.startswith("Top-1 against download")
    ]
    assert "few: 97.55 % in 3.00 MB; plain: 97.55 % in 6.10 MB" in label
    assert label.endswith("Not beaten by any other: few, float weights.")
    alone = html.render(reports.report(few))
    assert "against download" not in alone


def test_weights_as_learned_stand_beside_the_scales() -> None:
    content = Page(html.render(reports.report())).text
    assert "191/192 9999/10000" in content
    assert rows(render(reports.report()))["android"]["weights"] == "9999/10000"
