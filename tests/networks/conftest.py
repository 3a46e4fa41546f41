"""A network that several files here save."""

import pytest
import torch

from pipeline.networks.resnest.network import ResNeSt
from tests.making.networks import SMALL


@pytest.fixture
def model() -> ResNeSt:
    torch.manual_seed(0)
    return ResNeSt(SMALL)
