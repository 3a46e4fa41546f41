"""A network that gives logits for every place of an image."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.networks.segmenter.layers import enlarged

BACKBONE, DECODER, CLASSIFIER = "backbone", "decoder", "classifier"
"""Paths of the parts; the classifier is the convolution that gives the logits."""


class Segmenter(nn.Module):
    """Images (batch, channels, height, width) to logits (batch, classes, height, width) / stride.

    Attributes:
        factor: how many times larger the logits are made.
        backbone_name: as the recipe has it.
        stages: modules of the backbone whose results are decoded.
    """

    backbone_name: str = ""
    stages: tuple[str, ...] = ()

    def __init__(
        self, backbone: nn.Module, decoder: nn.Module, channels: int, classes: int, factor: int
    ) -> None:
        """Put together a backbone and the decoder that reads its images, of `channels`."""
        super().__init__()
        self.backbone, self.decoder = backbone, decoder
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits; what is enlarged is so bilinearly."""
        return enlarged(self.classifier(self.decoder(self.backbone(x))), self.factor)
