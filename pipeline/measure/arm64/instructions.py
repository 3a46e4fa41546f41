"""Instructions of a file on an emulated processor, whole and by layer, beside the least."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from pipeline.base.errors import reading
from pipeline.formats.formats import FORMATS
from pipeline.formats.gemm import Work
from pipeline.measure.arm64.record import Counted, CountedLayer
from pipeline.measure.lanes.arm64 import counting
from pipeline.measure.lanes.lane import Instructions, ModelFile


def counted(cpu: str, file: ModelFile, image: Tensor, modules: Mapping[str, str]) -> Counted:
    """Count one inference of a file, and of each of its operations where the format is cut.

    Args:
        cpu: of `lane.CPUS`.
        file: an exported one.
        image: float32 (1, channels, height, width), as the file takes it.
        modules: of the network, by the names of the layers that they make.

    Raises:
        InputError: the file cannot be run there.
    """
    whole = counting.counts(cpu, {"": file}, {"": image})[""]
    parts = counting.layer_counts(cpu, file)
    form = FORMATS[file.format]
    with reading(file.path):
        facts = form.module().inspect(file.path)
        gemm = None if form.gemm is None or not parts else form.gemm()
        work = {} if gemm is None else gemm.layer_work(file.path.read_bytes())
    call = call_cost(whole.total, parts)
    return Counted(
        total=whole.total,
        products=whole.products,
        macs=int(facts.macs),
        least=counting.least(cpu, int(facts.int8_macs), int(facts.macs)),
        call=call,
        layers=tuple(_layer(name, one, call, work, modules) for name, one in parts.items()),
    )


def call_cost(total: int, parts: Mapping[str, Instructions]) -> int:
    """What one call of the runtime takes, the same for each part: what all take more than one."""
    if not parts:
        return 0
    return max(0, (sum(part.total for part in parts.values()) - total) // len(parts))


def _layer(
    name: str,
    found: Instructions,
    call: int,
    work: Mapping[str, Work],
    modules: Mapping[str, str],
) -> CountedLayer:
    return CountedLayer(
        name=name,
        module=modules.get(name) or None,
        operation=work[name].op if name in work else "unknown",
        macs=int(work[name].macs) if name in work else 0,
        instructions=max(0, found.total - call),
    )


def by_operation(found: Counted) -> dict[str, tuple[int, int]]:
    """Instructions and multiply-accumulates of a file's operations, the most first."""
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for layer in found.layers:
        sums[layer.operation][0] += layer.instructions
        sums[layer.operation][1] += layer.macs
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    return {operation: (instructions, macs) for operation, (instructions, macs) in ordered}
