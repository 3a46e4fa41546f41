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

TORCHVISION = Family(
    build=from_torchvision,
    structure=structure,
    decided_by=version_of("torchvision"),
    preset=of_torchvision,
)
TIMM = Family(build=from_timm, structure=structure, decided_by=version_of("timm"), preset=of_timm)
PYTHON = Family(build=from_python, structure=structure, decided_by=sources)
