"""The lanes. A further one is a module beside this one and an entry of `LANES`.

LANES["host"].cannot_time("coreml")   # "Core ML runs on Apple systems"
LANES["arm64-cortex-a76"].answers(files, images, threads=1)
"""

from __future__ import annotations

from pipeline.measure.lanes import host
from pipeline.measure.lanes.arm64 import lane as arm64
from pipeline.measure.lanes.lane import Lane

HOST = "host"
LANES: dict[str, Lane] = {
    HOST: host.LANE,
    **{f"{arm64.LANE}{cpu}": arm64.of_cpu(cpu) for cpu in arm64.CPUS},
}
"""By the name that commands have for them."""
