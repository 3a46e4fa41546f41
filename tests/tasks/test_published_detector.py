"""FastestDet's published weights: what they find in photos of COCO, where the archives are."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from pipeline.networks.checkpoints import load_checkpoint
from pipeline.networks.families import family_of
from pipeline.recipe.data import CocoData
from pipeline.recipe.models import ALONE, kind_of
from pipeline.tasks.box_accuracy import BoxAccuracy
from pipeline.tasks.detection import Detection
from pipeline.tasks.evaluation import network_logits

SHARED = Path(__file__).parents[3] / "shared" / "data"
ARCHIVES = ("coco-mini", "pretrained")
IMAGES = 12
AP50, AP = 0.40862, 0.22558
"""Of these images, by other code: torchvision's suppression, and pycocotools on boxes in pixels."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((SHARED / f"{name}.tar.xz").exists() for name in ARCHIVES),
        reason="the archives are not there",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights, and the first test images."""
    root = tmp_path_factory.mktemp("published")
    for name in ARCHIVES:
        with tarfile.open(SHARED / f"{name}.tar.xz") as archive:
            archive.extractall(root, filter="data")
    path = root / "test" / "annotations.json"
    content = json.loads(path.read_text())
    content["images"], rest = content["images"][:IMAGES], content["images"][IMAGES:]
    for image in rest:
        (root / "test" / "images" / image["file_name"]).unlink()
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(content))
    return root


def found(folder: Path, colours: str) -> BoxAccuracy:
    """AP of the first test images."""
    weights = folder / "fastestdet-coco.safetensors"
    model = kind_of("fastestdet", ALONE).model_validate(
        {"name": "fastestdet", "checkpoint": str(weights), "colours": colours}
    )
    data = CocoData.model_validate(
        {"path": folder, "mean": [0.0] * 3, "std": [1.0] * 3, "calibration_images": 1}
    )
    task, family = Detection(threshold=0.5, overlap=0.45), family_of(model)
    dataset = task.load(data, model.input_shape)
    network = family.build(model, len(task.outputs(dataset.classes))).eval()
    load_checkpoint(network, weights, family.checkpoint(network), dataset.classes)
    family.loaded(model, network)
    figures = task.accuracies(network_logits(network, dataset, "test"), dataset)["test"]
    assert isinstance(figures, BoxAccuracy)
    return figures


def test_it_finds_what_is_there(folder: Path) -> None:
    turned = found(folder, "bgr")
    assert turned.images == IMAGES
    assert turned.ap50 == pytest.approx(AP50, abs=1e-3)
    assert turned.ap == pytest.approx(AP, abs=1e-3)
    assert found(folder, "rgb").ap50 < turned.ap50
