"""Recipes that extend others, settings over them, and any text at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.base.errors import InputError
from pipeline.recipe.recipe import Recipe, load_recipes, resolved_yaml
from tests.making.recipe_texts import FOLDERS, WHOLE, changed, load, problems


def test_extends_merges_deeply_along_a_chain(folder: Path) -> None:
    Path("sub").mkdir()
    Path("mid.yaml").write_text(
        changed("train: {momentum: 0.5}\nprune: {macs: 0.5, finetune: &t\n"
                "  {epochs: 1, batch_size: 4, learning_rate: 1.e-2}}\n")
    )  # fmt: skip
    recipe = load("extends: ../mid.yaml\ntrain: {epochs: 7}\n", name="sub/leaf.yaml")
    assert (recipe.train.epochs, recipe.train.momentum, recipe.train.batch_size) == (7, 0.5, 32)
    assert recipe.prune is not None
    assert recipe.prune.finetune.learning_rate == 0.01
    assert load("extends: ../mid.yaml\nprune: null\n", name="sub/leaf.yaml").prune is None
    base = Path("mid.yaml").read_text() + FOLDERS
    Path("mid.yaml").write_text(base)
    text = "extends: mid.yaml\ndata: {kind: digits, train: null, test: null}\n"
    assert load(text).data.kind == "digits"


def test_a_fault_in_a_base_names_who_extends_it(folder: Path) -> None:
    Path("y.yaml").write_bytes(b"extends: z.yaml\n")
    Path("z.yaml").write_bytes(b"a\0b")
    (problem,) = problems("\nextends: y.yaml\n")
    assert problem.startswith("z.yaml:1: holds the control character")
    assert problem.endswith(" (y.yaml:1 extends it)")
    Path("y.yaml").write_bytes(b"[")
    (problem,) = problems("\nextends: y.yaml\n")
    assert problem.endswith(" (x.yaml:2 extends it)")


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("x.yaml", "x.yaml:1: extends: goes round in a circle: x.yaml -> x.yaml; remove one"),
        ("nope.yaml", "x.yaml:1: extends: nope.yaml: no such file; check the name"),
        (".", "x.yaml:1: extends: .: is a folder; name the YAML file itself"),
        ("[a, b]", "x.yaml:1: extends: got ['a', 'b']; must be one file, such as base.yaml"),
        ("", "x.yaml:1: extends: got null; must be one file, such as base.yaml"),
    ],
)
def test_a_bad_extends_is_refused(folder: Path, value: str, line: str) -> None:
    (problem,) = problems(f"extends: {value}\n")
    assert problem.startswith(line), problem


def test_a_longer_circle_is_shown_whole(folder: Path) -> None:
    Path("y.yaml").write_text("seed: 1\nextends: z.yaml\n")
    Path("z.yaml").write_text("extends: ./x.yaml\n")
    assert problems("extends: y.yaml\n") == [
        "z.yaml:1: extends: goes round in a circle: x.yaml -> y.yaml -> z.yaml -> x.yaml; "
        "remove one 'extends'"
    ]


def test_paths_are_relative_to_the_file_that_names_them(folder: Path) -> None:
    Path("sub").mkdir()
    Path("sub/base.yaml").write_text(
        WHOLE.replace("kind: digits", "{kind: image_folder, train: a, test: {real: ../b}}")
    )
    text = "extends: sub/base.yaml\nmodel: {checkpoint: w.pth}\ndata: {test: {far: /c}}\n"
    recipe = load(text, "data.train=d", name="x.yaml")
    assert recipe.model.checkpoint == str(folder / "w.pth")
    assert recipe.data.kind == "image_folder"
    assert recipe.data.train == folder / "d"
    assert recipe.data.test == {"real": folder / "b", "far": Path("/c")}
    home = load(text, "model.checkpoint=~/w.pt").model.checkpoint
    assert home == os.path.expanduser("~/w.pt")
    hub = load(text, "model.checkpoint=sub/resnest50d.in1k/").model.checkpoint
    assert hub == str(folder / "sub" / "resnest50d.in1k") + "/"


def test_only_a_checkpoint_has_raw_weights(folder: Path) -> None:
    given = load(WHOLE, "model.checkpoint=w.pt", "model.weights=raw").model
    assert given.weights == "raw"
    (line,) = problems(WHOLE, "model.weights=raw")
    assert "model.weights: got 'raw'; " in line
    assert "raw needs model.checkpoint" in line


def test_overrides_are_yaml_and_the_last_one_wins(folder: Path) -> None:
    recipe = load(
        WHOLE, "seed=1", "seed=7", "train.learning_rate=1e-4", "train={epochs: 9}",
        "model.layers=[1, 1, 1, 1]", "target.device=a b", "qat.milestones={}", "budgets.size_mb=",
    )  # fmt: skip
    assert (recipe.seed, recipe.train.epochs, recipe.train.batch_size) == (7, 9, 32)
    assert recipe.train.learning_rate == 1e-4
    assert recipe.model.layers == (1, 1, 1, 1)
    assert recipe.target.device == "a b"
    assert recipe.budgets.size_mb is None


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("=1", "--set =1: must be key=value"),
        ("a..b=1", "--set a..b=1: must be key=value"),
        ("extends=y", "--set extends=y: 'extends' cannot be set here"),
        ("seed=[", "--set seed=[: the value is not valid YAML: expected the node content"),
        ("seed=a\nb: c", "--set 'seed=a\\nb: c': the value is not valid YAML: mapping values"),
        ("seed=\a", "--set 'seed=\\x07': the value is not valid YAML: put the value in quotes"),
        ("seed=!!set {}", "--set seed=!!set {}: the tag"),
        ("seed.x=1", "--set seed.x=1: seed: got {x: 1}; must be a whole number"),
        ("target=null", "--set target=null: target: removed by null, but needed; add it"),
        ("epochs=1", "--set epochs=1: epochs: unknown key 'epochs'; allowed: extends, name"),
    ],
)
def test_a_bad_override_is_refused(folder: Path, setting: str, line: str) -> None:
    (problem,) = problems(WHOLE, setting)
    assert problem.startswith(line), problem


def test_what_an_override_lacks_is_missing_in_the_file(folder: Path) -> None:
    assert problems(WHOLE, "prune.macs=0.5") == [
        "--set prune.macs=0.5: prune.finetune: missing; add it: a mapping with the keys epochs, "
        "batch_size, accumulate, sync_bn, learning_rate, learning_rate_batch, "
        "momentum, weight_decay, warmup_epochs, milestones, "
        "label_smoothing, mixup, cutmix, dropblock, dropout, ema, clip_norm, "
        "precision, sizes, shrink, augment"
    ]
    (line,) = problems(WHOLE.replace("  device: test\n", ""), "target.format=tflite")
    assert (
        line == "x.yaml:11: target.device: missing; add it: text, not empty, at most 200 characters"
    )


@pytest.mark.parametrize("part", ["train", "prune.finetune"])
def test_a_part_larger_than_the_image_is_refused(folder: Path, part: str) -> None:
    finetune = "{epochs: 1, batch_size: 8, learning_rate: 0.1}"
    prune = f"prune={{macs: 0.5, finetune: {finetune}}}"
    sizes = f"{part}.sizes=[64, 256]"
    load(WHOLE, prune, sizes)
    (line,) = problems(WHOLE, prune, sizes, f"{part}.shrink=crop")
    assert "sizes: got 256; a part cut out of an image is at most model.input_size" in line


def test_two_recipes_of_one_name_are_refused(folder: Path) -> None:
    Path("y.yaml").write_text(changed("name: whole\n"))
    with pytest.raises(InputError) as caught:
        load_recipes([Path("whole.yaml"), Path("y.yaml")])
    assert str(caught.value) == (
        "y.yaml:2: name: got 'whole', the name of whole.yaml too; "
        "give every recipe of a run its own"
    )
    (problem,) = problems_of_file("My Phone.yaml")
    assert problem.startswith("My Phone.yaml:1: name: got 'My Phone'; must be up to 100 of a-z")


def problems_of_file(name: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(WHOLE, name=name)
    return str(caught.value).splitlines()


numbers = st.floats(min_value=1e-12, max_value=1e12)


@settings(max_examples=25, deadline=None)
@given(
    device=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
    | st.sampled_from(["1e5", "0o17", "yes", "~", "null", "1:30", "2020-01-01", "<<", "=", ".5"]),
    rate=numbers,
    name=st.from_regex(r"[a-z0-9](\.?[a-z0-9_-]){0,20}", fullmatch=True),
)
def test_a_resolved_recipe_loads_as_itself(
    module_folder: Path, device: str, rate: float, name: str
) -> None:
    data = yaml.safe_load(WHOLE) | {"name": name}
    data["qat"]["train"]["learning_rate"] = rate
    data["target"]["device"] = device
    recipe = Recipe.model_validate(data)
    path = module_folder / "resolved.yaml"
    path.write_text(resolved_yaml(recipe))
    assert load_recipes([path]) == [recipe]
    assert resolved_yaml(load_recipes([path])[0]) == resolved_yaml(recipe)


@settings(max_examples=25, deadline=None)
@given(
    section=st.sampled_from(["", "model.", "data.", "train.augment.", "qat.milestones."]),
    key=st.text(min_size=1, max_size=12).filter(lambda k: not set(k) & set("=.") and k.strip()),
)
def test_an_unknown_key_never_passes(module_folder: Path, section: str, key: str) -> None:
    path = module_folder / "unknown.yaml"
    path.write_text(WHOLE)
    key = f"_{key.strip()}"  # no known key begins so
    with pytest.raises(InputError) as caught:
        load_recipes([path], [f"{section}{key}=1"])
    (line,) = str(caught.value).split("\n")
    assert f"unknown key {key!r}" in line
    assert "allowed: " in line


MARKS = "extends: x.yaml &a *a !!int !!map ? - [ ] { } , | > ' \" ~ << # %"
KEYS = """
name description seed threads model data train prune qat target budgets measure model.name
model.layers model.radix model.checkpoint model.avd data.kind data.test data.train data.mean
train.epochs train.augment train.augment.flip qat.milestones qat.milestones.observe
target.device budgets.size_mb prune.finetune
"""
words = st.sampled_from(f"{WHOLE} {MARKS}".split())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(
    text=st.binary(max_size=80)
    | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.lists(st.tuples(words, st.sampled_from([" ", "\n", "\n  "])), max_size=25).map(
        lambda pairs: "".join(map("".join, pairs)).encode()
    )
)
def test_any_text_gives_a_recipe_or_an_input_error(module_folder: Path, text: bytes) -> None:
    path = module_folder / "x.yaml"
    path.write_bytes(text)
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_recipes([path])


@settings(max_examples=70, deadline=None)
@given(
    key=st.sampled_from(KEYS.split()),
    value=values,
    folders=st.booleans(),
)
def test_any_value_gives_a_recipe_or_an_input_error(
    module_folder: Path, key: str, value: object, folders: bool
) -> None:
    data = yaml.safe_load(WHOLE) | (yaml.safe_load(FOLDERS) if folders else {})
    at = data
    *parents, last = key.split(".")
    for parent in parents:
        at = at.setdefault(parent, {})
    at[last] = value
    path = module_folder / "x.yaml"
    path.write_text(yaml.safe_dump(data))
    try:
        (recipe,) = load_recipes([path])
    except InputError as error:
        for line in str(error).split("\n"):
            assert re.match(re.escape(str(path)) + r":\d+: ", line)
    else:
        assert isinstance(recipe, Recipe)


def test_importing_is_light() -> None:
    code = (
        "import sys, pipeline.recipe; "
        "print([m for m in ('torch', 'numpy', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_opset_is_for_formats_that_have_one(folder: Path) -> None:
    (line,) = problems(WHOLE, "target.opset=17", "target.format=tflite", "target.cpu=any")
    assert "target.opset: got 17; must be 21: only files of onnx have an opset" in line


def test_other_products_are_for_int8_core_ml_files(folder: Path) -> None:
    said = "must be quantized: only int8 Core ML files have other products"
    settings = ("target.products=clipped", "target.format=tflite", "target.cpu=any")
    (line,) = problems(WHOLE, *settings)
    assert f"target.products: got 'clipped'; {said}" in line
    settings = ("target.products=float16", "target.format=coreml", "target.cpu=any")
    (line,) = problems(WHOLE, *settings, "target.precision=float")
    assert f"target.products: got 'float16'; {said}" in line
