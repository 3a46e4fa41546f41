"""torchvision's networks, timm's and the user's own, as families."""

from __future__ import annotations

from pipeline.networks.family import Family
from pipeline.networks.libraries.build import (
    from_python,
    from_timm,
    from_torchvision,
    sources,
    version_of,
)
from pipeline.networks.libraries.presets import of_timm, of_torchvision
from pipeline.networks.libraries.structure import structure
from pipeline.networks.libraries.trunks import OF_TIMM, OF_TORCHVISION

TORCHVISION = Family(
    build=from_torchvision,
    structure=structure,
    decided_by=version_of("torchvision"),
    preset=of_torchvision,
    trunks=OF_TORCHVISION,
)
TIMM = Family(
    build=from_timm,
    structure=structure,
    decided_by=version_of("timm"),
    preset=of_timm,
    trunks=OF_TIMM,
)
PYTHON = Family(build=from_python, structure=structure, decided_by=sources)
