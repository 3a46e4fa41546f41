"""The network that other tools are given."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.commands.bench.peers import make as make_module
from pipeline.commands.bench.peers.make import Peer
from pipeline.commands.bench.peers.plans import PLANS, PeerPlan
from pipeline.networks.resnest.family import FAMILY
from tests.making.networks import ONE_BLOCK, images, small

INT8 = [plan.name for plan in PLANS if plan.precision == "int8"]
STATIC, COMPRESSOR, OIQT, *_ = INT8
TFLITE_FLOAT, COREML = "tflite float, onnx2tf", "coreml float16, coremltools"
LAYERS = {"layers": ONE_BLOCK}
NO_TOOL = PeerPlan(
    tool="a tool", name="no such tool", format="onnx", precision="int8", file="no.onnx", start=0
)


def networks() -> dict[str, nn.Module]:
    return FAMILY.given_to_others(small(**LAYERS))


def file_of(peer: Peer) -> Path:
    assert peer.path is not None, peer.missing
    return peer.path


def wanted() -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = small(**LAYERS)(images(8, seed=5))
    return logits


def with_plans(monkeypatch: pytest.MonkeyPatch, *plans: PeerPlan) -> None:
    monkeypatch.setattr(make_module, "PLANS", plans)


def planned(name: str) -> PeerPlan:
    (plan,) = [plan for plan in PLANS if plan.name == name]
    return plan
