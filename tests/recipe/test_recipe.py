"""Recipes: every fault is named with its line and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.errors import InputError
from pipeline.recipe.compression import PruneConfig
from pipeline.recipe.recipe import Recipe, load_recipes
from pipeline.stages.known import KNOWN
from tests.making.recipe_texts import FOLDERS, WHOLE, changed, load, problems

TRAIN = "{epochs: 1, batch_size: 8, learning_rate: 0.1}"
PRUNE = f"prune: {{macs: 0.5, finetune: {TRAIN}}}\n"
SPARSIFY = f"sparsify: {{sparsity: 0.5, pattern: '1x1', train: {TRAIN}}}\n"


def test_a_whole_recipe_loads_with_defaults(folder: Path) -> None:
    recipe = load(WHOLE, name="my-phone.yaml")
    assert recipe.name == "my-phone"
    assert recipe.qat.train.learning_rate == 1e-4
    assert recipe.prune is None
    assert recipe.model.input_size == 224
    assert (recipe.measure.warmup, recipe.measure.rounds) == (5, 30)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


def test_every_problem_of_every_file_comes_at_once(folder: Path) -> None:
    Path("a.yaml").write_text(WHOLE.replace("epochs: 2", "epochs: -3").replace("onnx", "onxx"))
    Path("b.yaml").write_text("model: [")
    Path("c.yaml").write_text(WHOLE.replace("  epochs: 2", "  epoch: 2"))
    with pytest.raises(InputError) as caught:
        load_recipes([Path(f"{name}.yaml") for name in "abc"], ["seed=x", "broken"], KNOWN)
    assert str(caught.value).splitlines() == [
        "--set broken: must be key=value, such as train.epochs=3",
        "--set seed=x: seed: got 'x'; must be a whole number >= 0 and <= 4294967295",
        "a.yaml:6: train.epochs: got -3; must be a whole number >= 0 and <= 100000",
        "a.yaml:13: target.format: got 'onxx'; must be one of onnx, tflite, coreml; "
        "did you mean 'onnx'?",
        "b.yaml:1: not valid YAML: while parsing a flow node "
        "expected the node content, but found '<stream end>'",
        "c.yaml:5: train.epochs: missing; add it: a whole number >= 0 and <= 100000",
        "c.yaml:6: train.epoch: unknown key 'epoch'; did you mean 'epochs'? allowed: "
        "epochs, batch_size, accumulate, sync_bn, learning_rate, learning_rate_batch, "
        "momentum, weight_decay, warmup_epochs, milestones, "
        "label_smoothing, mixup, cutmix, dropblock, dropout, ema, clip_norm, "
        "precision, sizes, shrink, augment",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {epochs: '3'}", "train.epochs: got '3'; must be a whole number >= 0 and "
         "<= 100000; remove the quotes"),
        ("train: {epochs: true}", "train.epochs: got true; must be a whole number"),
        ("train: {epochs: 2.0}", "train.epochs: got 2.0; must be a whole number"),
        ("train: {epochs: }", "train.epochs: removed by null, but needed; add it: a whole"),
        ("train: {learning_rate: .nan}", "train.learning_rate: got nan; must be a number > 0"),
        ("train: {learning_rate: .inf}", "train.learning_rate: got .inf; must be a number > 0"),
        ("train: {learning_rate: 1e999}", "train.learning_rate: got .inf; must be a number > 0"),
        ("train: {learning_rate: true}", "train.learning_rate: got true; must be a number > 0"),
        ("train: {momentum: 1}", "train.momentum: got 1; must be a number >= 0 and < 1"),
        ("train: {clip_norm: 0}", "train.clip_norm: got 0; must be a number > 0 or null"),
        ("train: {augment: {flip: yes}}", "train.augment.flip: got 'yes'; must be true or false"),
        ("train: {augment: {flip: 1}}", "train.augment.flip: got 1; must be true or false"),
        ("train: 5", "train: got 5; must be a mapping with the keys epochs, batch_size,"),
        ("model: {input_size: 33}", "model.input_size: got 33; the sides of this network's images "
         "must be multiples of 32"),
        ("model: {input_size: [64, 40]}", "model.input_size: got [64, 40]; the sides of this "
         "network's images must be multiples of 32"),
        ("model: {input_size: [32, 32, 3]}", "model.input_size: got [32, 32, 3]; must be a whole "
         "number 8 to 2048, or two of them as [height, width]"),
        ("model: {input_size: 7}", "model.input_size: got 7; must be a whole number 8 to 2048"),
        ("model: {channels: 2}", "model.channels: got 2; must be one of 1, 3"),
        ("model: {layers: [3, 4, 6]}", "model.layers: got [3, 4, 6]; must be a list of 4, each a "
         "whole number >= 1 and <= 1000 or null"),
        ("model: {layers: [3, 4, 6, 3, 1]}", "model.layers: got [3, 4, 6, 3, 1]; must be a list"),
        ("model: {layers: [3, 4, 6, x]}", "model.layers.3: got 'x'; must be a whole number >= 1"),
        ("model: {radix: 3}", "model.radix: got 3; must be one of 1, 2, 4 or null"),
        ("model: {stem: large}", "model.stem: got 'large'; must be one of deep, small or null"),
        ("model: {stem: smal}", "model.stem: got 'smal'; must be one of deep, small or null; did "
         "you mean 'small'?"),
        ("model: {radix: true}", "model.radix: got true; must be one of 1, 2, 4 or null"),
        ("model: {checkpoint: weights.onnx}", "model.checkpoint: got 'weights.onnx'; must be a "
         "path that ends in .safetensors, .pt, .pth, .bin, .ckpt or .tar, a folder of the Hugging "
         "Face Hub with / at its end, timm:NAME, torchvision:WEIGHTS or null"),
        ("model: {weights: last}", "model.weights: got 'last'; must be one of ema, raw"),
        ("model: {name: resnet50}", "model.name: got 'resnet50'; must be one of resnest14,"),
        ("data: {path: x}", "data.path: unknown key 'path'; allowed: kind"),
        ("data: {kind: imagefolder}", "data.kind: got 'imagefolder'; must be one of cifar10, "
         "cifar100, coco, digit_scenes, digits, image_folder, mask_folder, voc, webdataset; did "
         "you mean 'image_folder'?"),
        ("data: {kind: cifar10}", "data.path: missing; add it: a path"),
        ("data: {kind: null}", "data.kind: removed by null, but needed; add it: one of cifar10,"),
        ("data: {kind: cifar10, path: ''}", "data.path: got ''; must be a path"),
        ("data: {kind: cifar10, path: 5}", "data.path: got 5; must be a path"),
        ("data: []", "data: got []; must be a mapping with kind: one of cifar10,"),
        (FOLDERS.replace("{real: b}", "{}"), "data.test: got {}; must be a mapping of names with"),
        (FOLDERS.replace("real", "a/b"), "data.test.'a/b': the key 'a/b' must be up to 100 of"),
        (FOLDERS.replace("b}}", "b}, std: [1, 1, 0]}"), "data.std.2: got 0; must be a number > 0"),
        (
            "target: {device: 5}",
            "target.device: got 5; must be text, not empty, at most 200 characters; put it in "
            "quotes",
        ),
        ("name: ../up", "name: got '../up'; must be up to 100 of a-z, 0-9,"),
        ("name: a..b", "name: got 'a..b'; must be up to 100 of a-z, 0-9,"),
        ("prune: {macs: 0}", "prune.macs: got 0; must be a number > 0 and <= 1"),
        (PRUNE.replace("macs: 0.5", "latency: 30s"), "prune.latency: got '30s'; must be a share of "
         "the unpruned file's time above 0 and up to 1, or a time such as 30 ms"),
        (PRUNE.replace("macs: 0.5", "latency: 1.5"), "prune.latency: got 1.5; must be a share"),
        (PRUNE.replace("macs: 0.5", "latency: 0 ms"), "prune.latency: got '0 ms'; must be a share"),
        (PRUNE.replace("macs: 0.5", "latency: true"), "prune.latency: got true; must be a share"),
        (PRUNE.replace("macs: 0.5", "seed: 1"), "prune.seed: unknown key 'seed'; allowed: macs, "
         "params, size_mb, latency,"),
        (PRUNE.replace("macs: 0.5,", ""), "prune: got {"),
        (PRUNE.replace("0.5", "0.5, criterion: tailor"), "prune.criterion: got 'tailor'; must be "
         "one of l1, l2, bn_scale, taylor, fisher; did you mean 'taylor'?"),
        (PRUNE.replace("0.5", "0.5, distill: {weight: 2}"), "prune.distill.weight: got 2; must be "
         "a number >= 0 and <= 1"),
        (SPARSIFY.replace("1x1", "4:2"), "sparsify: got {"),
        (SPARSIFY.replace("1x1", "half"), "sparsify.pattern: got 'half'; must be 1x1, blocks such "
         "as 4x1, or N:M such as 2:4"),
        ("qat: {milestones: {freeze_bn: 0.2}}", "qat.milestones.freeze_bn: got 0.2; "
         "must be >= freeze_observers, which is 0.5"),
        ("qat: {milestones: {observe: 0.3}}", "qat.milestones.fake_quantize: got 0.1; "
         "must be >= observe, which is 0.3 (here the default)"),
        ("trian: {epochs: 1}", "trian: unknown key 'trian'; did you mean 'train'? allowed: "
         "extends, name,"),
        ("seed: null", "seed: got null; must be a whole number"),
        ("seed: 1_000", "seed: got '1_000'; must be a whole number"),
        ("seed: 1:30", "seed: got '1:30'; must be a whole number"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_line_and_what_is_allowed(
    folder: Path, text: str, line: str
) -> None:
    found = problems(changed(text))
    assert any(problem.startswith(f"x.yaml:2: {line}") for problem in found), found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PRUNE.replace("macs: 0.5,", ""), "give one of macs, params, size_mb, latency, not none"),
        (PRUNE.replace("0.5", "0.5, params: 0.4"), "size_mb, latency, not macs and params"),
        (SPARSIFY.replace("1x1", "4:2"), "pattern: got 4:2; N must be < M"),
        (SPARSIFY.replace("1x1", "1:4"), "sparsity: got 0.5; pattern 1:4 gives 0.25"),
        (SPARSIFY.replace("0.5", "0.5, start: 0.7"), "end: got 0.5; must be >= start, which is"),
    ],
)
def test_values_that_contradict_each_other_are_named(folder: Path, text: str, problem: str) -> None:
    (found,) = problems(changed(text))
    assert problem in found


def test_a_latency_is_a_share_or_a_time(folder: Path) -> None:
    def prune(latency: str) -> PruneConfig | None:
        return load(changed(PRUNE.replace("macs: 0.5", f"latency: {latency}"))).prune

    for text, share, milliseconds in (
        ("0.5", 0.5, None),
        ("1", 1, None),
        ("30 ms", "30 ms", 30.0),
        ("2.5ms", "2.5ms", 2.5),
        ("0.25 ms", "0.25 ms", 0.25),
    ):
        found = prune(text)
        assert found is not None
        assert (found.latency, found.milliseconds) == (share, milliseconds)
    assert changed_macs(load(changed(PRUNE))) == (0.5, None)


def changed_macs(recipe: Recipe) -> tuple[object, float | None]:
    assert recipe.prune is not None
    return recipe.prune.macs, recipe.prune.milliseconds


def test_a_bad_inherited_value_is_named_where_it_stands_and_once(folder: Path) -> None:
    Path("base.yaml").write_text(WHOLE.replace("batch_size: 32", "batch_size: 1"))
    for name in ("a", "b"):
        Path(f"{name}.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(InputError) as caught:
        load_recipes([Path("a.yaml"), Path("b.yaml")])
    assert str(caught.value) == (
        "base.yaml:7: train.batch_size: got 1; must be a whole number >= 2 and <= 65536"
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "x.yaml:1: the file is empty; must hold a recipe"),
        ("- 1\n", "x.yaml:1: got [1]; must be a mapping (key: value lines)"),
        ("a: 1\nb: \x07\n", "x.yaml:2: holds the control character 7; remove it"),
        (b"a: 1\nb: \xff\n", "x.yaml:2: not UTF-8 text; save the file as UTF-8"),
        ("a: !!python/object/apply:os.getcwd []\n", "x.yaml:1: the tag"),
        ("a: 1\nb: !!binary aGk=\n", "x.yaml:2: the tag"),
        ("a: !!int x\n", "x.yaml:1: got 'x', which is no int"),
        ('a: "\\ud800"\n', "x.yaml:1: got '\\ud800'; half a character; remove it"),
        ("a: " + "9" * 5000, "x.yaml:1: got a number of 5000 digits; use fewer"),
        ("---\na: 1\n---\nb: 2\n", "x.yaml:3: not valid YAML: expected a single document"),
        ("[" * 1000, "x.yaml:1: not valid YAML: must have at most 20 levels"),
        ("a: [" + "1," * 30_000 + "]", "x.yaml:1: not valid YAML: must have at most 20 levels"),
        ("#" * (1 << 20) + "\n", "x.yaml:1: larger than 1 MiB; a recipe must be smaller"),
        ("a: *b\n", "x.yaml:1: not valid YAML: found undefined alias 'b'"),
        ('a: "\\Uffffffff"\n', "x.yaml:1: not valid YAML: "),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(folder: Path, content: str | bytes, line: str) -> None:
    Path("x.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        load_recipes([Path("x.yaml")])
    assert str(caught.value).startswith(line), str(caught.value)[:300]


def test_a_recursive_alias_and_an_alias_bomb_are_refused(folder: Path) -> None:
    (line,) = problems("a: &a {b: *a}\n")
    assert line.startswith("x.yaml:1: aliases (*name) make more than 20 levels")
    bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    (line,) = problems(bomb)
    assert "aliases (*name) make more than 20 levels and 10000 values; use fewer" in line


def test_duplicate_and_unreadable_keys_are_refused_with_all_else(folder: Path) -> None:
    text = "seed: 1\nseed: 2\n5: x\n[a]: y\n<<: {a: 1}\nthreads: 0\n"
    assert problems(changed(text)) == [
        "x.yaml:3: duplicate key 'seed' (also at x.yaml:2); remove one",
        "x.yaml:4: key '5': must be text; put it in quotes",
        "x.yaml:5: key 'a list': must be text; put it in quotes",
        "x.yaml:6: '<<' is not supported; use 'extends' or *name",
        "x.yaml:7: threads: got 0; must be a whole number >= 1 and <= 1024",
    ]


def test_missing_files_folders_and_an_empty_call_are_refused(folder: Path) -> None:
    Path("sub").mkdir()
    with pytest.raises(InputError) as caught:
        load_recipes([Path("nope.yaml"), Path("sub"), Path("a\0b")])
    assert str(caught.value).splitlines() == [
        "nope.yaml:1: no such file; check the name",
        "sub:1: is a folder; name the YAML file itself",
        "a\0b:1: no such file; check the name",
    ]
    with pytest.raises(InputError, match="name at least one YAML file"):
        load_recipes([])


def test_a_download_has_a_budget(folder: Path) -> None:
    budgets = load(changed("budgets: {size_mb: 15, download_mb: 12.5}\n")).budgets
    assert (budgets.limits["size_mb"], budgets.limits["download_mb"]) == (15, 12.5)
    (line,) = problems(changed("budgets: {download_mb: 0}\n"))
    assert "budgets.download_mb" in line


def test_a_budget_of_time_is_of_this_machine_or_of_each(folder: Path) -> None:
    def limits(latency: str) -> tuple[float | None, float | None]:
        found = load(changed(f"budgets: {{latency_ms: {latency}}}\n")).budgets.limits
        return found["latency_ms"], found["device_latency_ms"]

    assert limits("20") == (20, None)
    assert limits("{device: 15}") == (None, 15)
    assert limits("{host: 20, device: 15.5}") == (20, 15.5)
    assert limits("null") == (None, None)
    for wrong in ("-1", "0", "true", "{phone: 15}", "{device: 0}", "{device: fast}", "[1]"):
        (line,) = problems(changed(f"budgets: {{latency_ms: {wrong}}}\n"))
        assert "budgets.latency_ms" in line
        assert "must be milliseconds above 0, or {host: ..., device: ...}" in line
