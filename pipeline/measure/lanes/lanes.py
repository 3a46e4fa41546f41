"""The lanes. A further one is a module beside this one and an entry of `LANES`.

LANES["host"].cannot_time("coreml")   # "Core ML runs on Apple systems"
"""

from __future__ import annotations

from pipeline.measure.lanes import host
from pipeline.measure.lanes.lane import Lane

HOST = "host"
LANES: dict[str, Lane] = {
    HOST: host.LANE,
}
"""By the name that commands have for them."""
