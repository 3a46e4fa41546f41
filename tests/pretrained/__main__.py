"""Pretrained networks without training, beside onnx2tf and ONNX Runtime on the same photos.

    python -m tests.pretrained [NETWORK ...] [--data FOLDER] [--work FOLDER] [--set KEY=VALUE ...]

Ranges come of 256 photos, figures of 744 others. Prints a Markdown table: top-1, and in brackets
the share of photos whose first class is the float network's and the divergence from it. Fails where
a file is over a point below the float network, or below the other tool's file of its format. The
photos have no licence to be passed on: without the folder it says so, and measures nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.commands.bench.contestants import first
from pipeline.commands.bench.peers.make import make
from pipeline.commands.bench.peers.plans import NAIVE, PLANS
from pipeline.measure.lanes.lane import ModelFile
from pipeline.measure.lanes.lanes import HOST, LANES
from pipeline.measure.lanes.sets import answers_to_tests
from pipeline.networks.families import family_of
from pipeline.stages.finished_run import Finished, float_network, open_runs
from pipeline.tasks.evaluation import network_logits
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.pixels import Images, normalize
from pipeline.tasks.ranking import first_class
from tests.pretrained.prepare import NETWORKS, PHOTOS, WEIGHTS, Network, packages, photos, recipes

ROOT = Path(__file__).parents[2]
MOST_LOST = 0.01
PEERS = {
    "tflite": "tflite int8, onnx2tf -oiqt",
    "onnx": "onnx int8, onnxruntime quantize_static",
}
GOOGLE = {"mobilenet-v2": "tf2_mobilenet_v2_1.0_224_ptq.tflite"}
"""Google's own int8 file of a network, in the archive of weights."""


def main() -> int:
    """Measure the networks that are named; 1 where a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.pretrained")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", choices=[*NETWORKS, []])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "artifacts" / "pretrained")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    given = parser.parse_args()
    missing = [a for a in (PHOTOS, WEIGHTS) if not (given.data / f"{a}.tar.xz").is_file()]
    if missing:
        print(f"{given.data}: has no {' and no '.join(missing)}.tar.xz; nothing was measured")
        return 0
    work: Path = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    chosen = [NETWORKS[name] for name in given.networks or NETWORKS]
    photos(given.data, work)
    packages(chosen, work)
    print(
        "| network | float | TFLite | onnx2tf | ONNX | quantize_static | Core ML (reference) "
        "| Google's | seconds, CPU seconds, peak GB |"
    )
    print("| --- " * 9 + "|")
    missed = []
    for network in chosen:
        row, misses = _measured(network, work, given.settings)
        print(row, flush=True)  # one by one: all of them take an hour
        missed += misses
    print("\n".join(missed) or "no bar missed")
    return int(bool(missed))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a file answers to the photos: top-1, and how near it is to the float network.

    Attributes:
        right: whether each photo's class comes first.
        alike: share of the photos whose first class is the float network's.
        divergence: mean of KL(float network, file) over the photos, in nats.
    """

    right: Tensor
    alike: float
    divergence: float

    @property
    def top1(self) -> float:
        return float(self.right.double().mean())

    def __str__(self) -> str:
        return f"{self.top1:.2%} ({self.alike:.1%}, {self.divergence:.4f})"


def _measured(network: Network, work: Path, settings: list[str]) -> tuple[str, list[str]]:
    """The row of a network, and the bars that it misses."""
    out = work / "runs" / network.name
    used = _run(list(recipes(network, work).values()), work, settings, out)
    runs = {run.recipe.target.format: run for run in open_runs(out / "combined")}
    run = runs["onnx"]
    dataset = run.dataset()
    exact = network_logits(float_network([run]).eval(), dataset, "float")["test"]
    theirs = _peers(run, work / "peers" / network.name, exact)
    ours = {
        form: _answers(ModelFile(path=runs[form].file, format=form), dataset, exact)
        for form in theirs
    }
    reference = first(runs["coreml"].report().targets[0].accuracy)
    assert reference is not None
    google = _google(runs["tflite"].dataset().tests["test"], work / WEIGHTS, network.name)
    top1 = float((first_class(exact) == dataset.tests["test"].labels).double().mean())
    figures = {form: answers.top1 for form, answers in ours.items()} | {"coreml": reference.top1}
    misses = [
        f"{network.name}: {form} {figure:.2%}, float {top1:.2%}"
        for form, figure in figures.items()
        if top1 - figure > MOST_LOST
    ] + [
        f"{network.name}: {form} {own.top1:.2%}, {PEERS[form]} {other.top1:.2%}; "
        f"p = {_by_chance(own.right, other.right):.2f}"
        for form, own in ours.items()
        if (other := theirs[form]) is not None and own.top1 < other.top1
    ]
    cells = [f"{top1:.2%}", ours["tflite"], theirs["tflite"], ours["onnx"], theirs["onnx"]]
    cells += [f"{reference.top1:.2%}", "" if google is None else f"{google:.2%}"]
    return f"| {network.name} | {' | '.join(map(str, cells))} | {used} |", misses


def _by_chance(one: Tensor, other: Tensor) -> float:
    """How often files that are as good as each other differ by as many photos: McNemar's test."""
    from scipy.stats import binomtest

    better, worse = int((one & ~other).sum()), int((other & ~one).sum())
    return 1.0 if better + worse == 0 else float(binomtest(worse, better + worse, 0.5).pvalue)


def _run(files: list[Path], work: Path, settings: list[str], out: Path) -> str:
    """Run the recipes of a network as a user does; what that took, its largest process's memory."""
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "pipeline", "run", *map(str, files), *options]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--out", str(out)], cwd=work, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):
        raise SystemExit(f"{files[0].stem}: the run ended with {process.returncode}")
    spent = usage.ru_utime + usage.ru_stime
    return f"{seconds:.0f}, {spent:.0f}, {usage.ru_maxrss / 2**20:.2f}"


def _peers(run: Finished, folder: Path, exact: Tensor) -> dict[str, Answers | None]:
    """Answers of other tools' files, made with the same photos; None where there is no file."""
    dataset = run.dataset()
    every = torch.arange(len(dataset.calibration))
    images = normalize(dataset.calibration.pixels(every), dataset.mean, dataset.std)
    networks = family_of(run.recipe.model).given_to_others(float_network([run]))
    plans = [plan for plan in PLANS if plan.name in (NAIVE, *PEERS.values())]
    peers = {p.name: p for p in make(networks, images, folder, processes=1, plans=plans)}
    found: dict[str, Answers | None] = dict.fromkeys(PEERS)
    for form, name in PEERS.items():
        path = peers[name].path
        if path is None:
            print(f"{name}: {peers[name].missing}")
        else:
            found[form] = _answers(ModelFile(path=path, format=form), dataset, exact)
    return found


def _answers(file: ModelFile, dataset: Dataset, exact: Tensor) -> Answers:
    given = answers_to_tests(LANES[HOST], file, dataset, torch.get_num_threads())["test"]
    wanted, found = (torch.log_softmax(logits.double(), 1) for logits in (exact, given))
    return Answers(
        right=first_class(given) == dataset.tests["test"].labels,
        alike=float((first_class(given) == first_class(exact)).double().mean()),
        divergence=float((wanted.exp() * (wanted - found)).sum(1).mean()),
    )


def _google(images: Images, weights: Path, name: str) -> float | None:
    """Top-1 of Google's int8 file, which takes pixels and has a class for the background first."""
    if name not in GOOGLE:
        return None
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(weights / GOOGLE[name]))
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]["index"]
    given = interpreter.get_output_details()[0]["index"]
    right = 0
    for row in range(len(images)):
        pixels = images.pixels(torch.tensor([row])).permute(0, 2, 3, 1).contiguous().numpy()
        interpreter.set_tensor(place, pixels)
        interpreter.invoke()
        right += int(np.argmax(interpreter.get_tensor(given)[0, 1:]) == int(images.labels[row]))
    return right / len(images)


if __name__ == "__main__":
    sys.exit(main())
