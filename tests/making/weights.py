"""Weights of a small network, and how they are compared."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.networks.resnest.family import FAMILY
from pipeline.networks.resnest.network import ResNeSt
from tests.making.networks import SMALL

KNOWN = FAMILY.checkpoint(ResNeSt(SMALL))
CLASSES = ("ant", "bee", "cat", "dog", "elk")


def other() -> ResNeSt:
    torch.manual_seed(1)
    return ResNeSt(SMALL)


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
