"""Finished runs that are no longer as they were written: damaged, or sealed again on purpose."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.base.checksums import MANIFEST, seal
from tests.making import ROOT
from tests.soak import base, models
from tests.soak.checkpoints import _Hostile, packed
from tests.soak.mutate import (
    damaged,
    damaged_json,
    hostile_value,
    replace_by_oddity,
    spoil,
)
from tests.soak.sandbox import Case, Place

_MODELS = {"onnx": "model.onnx", "tflite": "model.tflite", "coreml": "model.mlpackage"}


def image(place: Place) -> Path:
    """An image that is fit to predict."""
    path = place.given / "image.png"
    if not path.exists():
        from PIL import Image

        Image.new("RGB", (40, 32), (120, 40, 200)).save(path)
    return path


def copied(place: Place) -> Path:
    """The finished runs, in the case's output directory."""
    shutil.copytree(place.base / "out", place.out, dirs_exist_ok=True, symlinks=True)
    return place.out


def command(
    rng: random.Random, place: Place, run: Path, names: Sequence[str], **more: bool
) -> Case:
    """One of the commands that read a finished run."""
    commands = (
        *(["predict", str(run), str(image(place))],) * 4,
        *(["debug", str(run), "--images", "2"],) * 3,
        ["debug", str(run), rng.choice(base.FORMATS), "--images", "2"],
        ["inspect", str(run), "--rounds", "1"],
        ["bench", str(run), "--rounds", "1"],
        *(["bundle", str(run)],) * 3,
        *(["compare", str(run), str(run)],) * 2,
    )
    return Case(argv=rng.choice(commands), names=names, must_refuse=more.get("must_refuse", False))


def _model_file(run: Path, form: str, rng: random.Random) -> Path:
    model = run / _MODELS[form]
    if form != "coreml":
        return model
    return rng.choice(sorted(path for path in model.rglob("*") if path.is_file()))


_MEANINGS = {
    ".tflite": models.changed_tflite,
    ".onnx": models.changed_onnx,
    ".mlmodel": models.changed_mlmodel,
}


def _changed(file: Path, rng: random.Random) -> None:
    if file.suffix in _MEANINGS and rng.random() < 0.6:
        file.write_bytes(_MEANINGS[file.suffix](file.read_bytes(), rng))
    else:
        spoil(file, rng, wholly=0.05)


def model(form: str, *, sealed: bool) -> Callable[[random.Random, Place], Case]:
    """A model file of one format, changed; sealed again or not."""

    def make(rng: random.Random, place: Place) -> Case:
        run = base.run_of(copied(place), form)
        _changed(_model_file(run, form, rng), rng)
        if not sealed:
            return command(rng, place, run, [run.name], must_refuse=True)
        seal(run)
        commands = (
            *(["predict", str(run), str(image(place))],) * 2,
            ["debug", str(run), "--images", "2"],
            ["bundle", str(run)],
        )
        return Case(argv=rng.choice(commands), names=(run.name,))

    return make


def run_file(rng: random.Random, place: Place) -> Case:
    """What a run carries beside its model; half of the times sealed again."""
    run = base.run_of(copied(place), rng.choice(base.FORMATS))
    listed = ("labels.txt", "recipe.yaml", "stages.json", "stages.json", "report.json")
    listed += ("predictions.safetensors", "images.safetensors", "layers.json", MANIFEST)
    name = rng.choice(listed)
    file = run / name
    if name == "stages.json":
        file.write_bytes(_stages(file, place, rng))
    else:
        _changed(file, rng)
    if sealed := name != MANIFEST and rng.random() < 0.6:
        seal(run)
    if rng.random() < 0.2:
        return Case(argv=["verify", str(run)], names=(run.name,))
    must = not sealed and name != MANIFEST
    return command(rng, place, run, [run.name, "classes"], must_refuse=must)


def _stages(file: Path, place: Place, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return damaged_json(file.read_bytes(), rng)
    places = json.loads(file.read_bytes())
    for name in rng.sample(list(places), rng.choice((1, 2, 8))):
        places[name] = rng.choice(
            (
                "/",
                "..",
                str(place.canary / "folder"),
                "/proc/self",
                "../" * 40 + "etc",
                "/dev",
                places[rng.choice(list(places))],
                "\x00",
                "~",
                "a" * 5000,
                "../../.store/x",
                hostile_value(rng),
            )
        )
    return json.dumps(places).encode()


def report(rng: random.Random, place: Place) -> Case:
    """The combined report, which leads to the runs."""
    file = copied(place) / "combined" / "report.json"
    tree = json.loads(file.read_bytes())
    if rng.random() < 0.4:
        name = rng.choice(("", ".", "..", "../..", "/etc", "combined", ".store", "onnx/", "\0"))
        rng.choice(tree["targets"])["name"] = rng.choice((name, "onnx", "\x1b[2J", "a" * 300))
        if rng.random() < 0.2:
            tree["targets"] = rng.choice(([], tree["targets"] * 50, tree["targets"][:1]))
        file.write_text(json.dumps(tree))
    else:
        file.write_bytes(damaged_json(file.read_bytes(), rng))
    if rng.random() < 0.2:
        return Case(argv=["verify", str(file.parent)], names=("combined",))
    return command(rng, place, file.parent, ["combined", place.out.name])


def bars(rng: random.Random, place: Place) -> Case:
    """The bars of a benchmark."""
    run = base.run_of(copied(place), "onnx")
    file = place.given / "bars.yml"
    file.write_bytes((ROOT / "recipes" / "bench" / "bars.yml").read_bytes())
    if rng.random() < 0.2:
        replace_by_oddity(file, place.canary, rng)
    else:
        _changed(file, rng)
    argv = ["bench", str(run), "--rounds", "1", "--bars", str(file)]
    return Case(argv=argv, names=(file.name,))


def program(rng: random.Random, place: Place) -> Case:
    """The quantized program and the float one, in the store: zip archives of tensors and JSON."""
    out = copied(place)
    (folder,) = (out / ".store").glob("fold-*")
    file = folder / rng.choice(("program.pt2", "program.pt2", "float.pt2"))
    evil = rng.random() < 0.3
    content = _hostile_program(file, place, rng) if evil else _damaged_program(file, rng)
    file.write_bytes(content)
    sealed = rng.random() < 0.7
    if sealed:
        seal(folder)
    run = base.run_of(out, rng.choice(base.FORMATS))
    names = (run.name, file.name, folder.name)
    argv = ["debug", str(run), "--images", "2"]
    if rng.random() < 0.2:
        argv = ["inspect", str(run), "--rounds", "1"]
    # Not every run is timed layer by layer, which is what `inspect` reads the program for.
    must = evil and file.name == "program.pt2" and argv[0] == "debug"
    return Case(argv=argv, names=names, must_refuse=must)


def _damaged_program(file: Path, rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return damaged(file.read_bytes(), rng)
    members = _members(file)
    name = rng.choice(
        [n for n in members if "weights/weight" not in n] + [rng.choice(list(members))]
    )
    change = damaged_json if name.endswith(".json") else damaged
    members[name] = change(members[name], rng)
    return _archive(members)


def _hostile_program(file: Path, place: Place, rng: random.Random) -> bytes:
    """A pickle, or compiled code, where torch's loader would run it."""
    members = _members(file)
    root = next(iter(members)).split("/")[0]
    evil = packed({"x": _Hostile(place.canary, rng.randrange(7))}, rng.choice(("zip", "legacy")))
    does = rng.randrange(5)
    if does == 0:
        members[f"{root}/data/sample_inputs/model.pt"] = evil
    elif does == 1:
        members[f"{root}/data/weights/model.pt"] = evil
    elif does == 2:
        config = f"{root}/data/weights/model_weights_config.json"
        tree = json.loads(members[config])
        entry = next(iter(tree["config"].values()))
        entry["use_pickle"] = True
        members[f"{root}/data/weights/{entry['path_name']}"] = evil
        members[config] = json.dumps(tree).encode()
    elif does == 3:
        members[f"{root}/data/aotinductor/model/x.wrapper.so"] = b"\x7fELF" + bytes(100)
        members[f"{root}/data/aotinductor/model/x.wrapper_metadata.json"] = b"{}"
    else:
        old = {"version": b"8.14", "serialized_exported_program.json": b"{}"}
        old |= {f"serialized_{n}.pt": evil for n in ("state_dict", "constants", "example_inputs")}
        members = old
    return _archive(members)


def _members(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return content.getvalue()


def float_weights(rng: random.Random, place: Place) -> Case:
    """The float network's weights in the store."""
    out = copied(place)
    (folder,) = (out / ".store").glob(f"{rng.choice(('train', 'prune'))}-*")
    file = folder / "weights.safetensors"
    file.write_bytes(damaged(file.read_bytes(), rng))
    if rng.random() < 0.6:
        seal(folder)
    run = base.run_of(out, rng.choice(base.FORMATS))
    return command(rng, place, run, [run.name, file.name])


def odd_place(rng: random.Random, place: Place) -> Case:
    """Something else where a run has a file or a folder."""
    out = copied(place)
    form = rng.choice(base.FORMATS)
    run = base.run_of(out, form)
    inside = sorted(path for path in run.rglob("*"))
    stores = sorted((out / ".store").glob("[tfe]*"))
    added = [run / "run.log", run / "debug.csv", out / "combined" / "run.log", run / "bench.json"]
    combined = [out / "combined" / "report.json", out / "combined", run]
    path = rng.choice((rng.choice(inside), rng.choice(added), rng.choice(combined + stores)))
    replace_by_oddity(path, place.canary, rng)
    # A run that is itself a link was named by the user: what it leads to is its folder.
    allowed = (place.canary,) if path in (run, out / "combined") else ()
    sealed = path != run and path.name != MANIFEST and path.is_relative_to(run)
    if sealed and path not in added and rng.random() < 0.5:
        _seal_what_can_be(run)
    target = rng.choice((run, run, out / "combined"))
    names = (run.name, "combined", path.name, *_MODELS.values())
    if rng.random() < 0.3:
        argv = rng.choice((["verify", str(target)], ["gc", str(out)]))
        return Case(argv=argv, names=(*names, out.name), allowed=allowed)
    return replace(command(rng, place, target, names), allowed=allowed)


def _seal_what_can_be(run: Path) -> None:
    from pipeline.base.checksums import hash_of

    lines = []
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.stat().st_size < 2**30 and path.name != MANIFEST:
            lines.append(f"{hash_of(path)}  {path.relative_to(run).as_posix()}\n")
    manifest = run / MANIFEST
    if os.path.lexists(manifest) and not manifest.is_dir():
        manifest.unlink()
        manifest.write_text("".join(lines))
