"""The gates an exported file must pass: it answers as the quantized program does.

compared = compare_logits(found, wanted, step=0.031)
output_misses(compared, widened(FORMATS["onnx"].limits, rounding))    # []
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.formats.file_facts import FileFacts
from pipeline.formats.limits import Limits
from pipeline.formats.scales import ScalesExact
from pipeline.measure.layers import LayerSums, first_difference, percentile
from pipeline.measure.parity_record import OutputSteps
from pipeline.tasks.task import Agreement

FOLDED = Limits(agreement=0.98, median=1, p99=6)
"""For the program against the trained network: training does not round biases to int32. On a
ResNeSt-50 that moves the logits by a step at the 99th percentile, on a net of a few channels by
two or three."""

_AT_A_TIME = 2**22
"""Numbers that are compared at a time."""
Logits = Mapping[str, Tensor]
"""Logits (images, ...) by set of images."""
Compare = Callable[[Logits, Logits, float | None], Agreement]


def output_steps(found: Logits, wanted: Logits, step: float) -> OutputSteps:
    """How many steps of the output grid lie between two sets of logits.

    Args:
        found: of the file.
        wanted: of the quantized program.
        step: scale of the grid that the program's logits lie on.
    """
    counts = torch.zeros(256, dtype=torch.int64)
    for apart in _apart(found, wanted):
        # The clamp also takes infinities; not a number counts as the farthest.
        steps = torch.round(apart.double() / step).nan_to_num(255).clamp(max=255).long()
        counts += torch.bincount(steps, minlength=256)
    return OutputSteps(
        median=percentile(counts, 0.5),
        p99=percentile(counts, 0.99),
        largest=int(counts.nonzero().max()),
        differing=int(counts[1:].sum()) / int(counts.sum()),
    )


def _apart(found: Logits, wanted: Logits) -> Iterator[Tensor]:
    """How far logits are apart, [numbers] of some images at a time: maps are large."""
    for name, logits in wanted.items():
        step = max(1, _AT_A_TIME // max(1, logits[:1].numel()))
        for begin in range(0, len(logits), step):
            rows = slice(begin, begin + step)
            yield (found[name][rows] - logits[rows]).abs().flatten()


def widened(limits: Limits, rounding: OutputSteps | None, times: int = 1) -> Limits:
    """Limits that no file misses for being computed in another order.

    A network whose logits have a small range, such as one that learned smoothed targets, has a fine
    grid for them. The program's own logits then move by several steps when its numbers are rounded
    otherwise (`pipeline.rounding`), and a file's as much: it may differ by one step more.

    Args:
        limits: for a file against its program.
        rounding: how far the program's own logits moved; None for a float program.
        times: as far as that they may move, since one draw of the noise says little of the tail.
    """
    if rounding is None:
        return limits
    return replace(
        limits,
        median=max(limits.median, times * rounding.median + 1),
        p99=max(limits.p99, times * rounding.p99 + 1),
    )


def float_difference(found: Logits, wanted: Logits) -> float:
    """The 99th percentile of the difference of logits, as a share of the largest logit."""
    apart = torch.cat([(found[name] - wanted[name]).abs().flatten() for name in wanted])
    largest = max(float(wanted[name].abs().max()) for name in wanted)
    # Not torch.quantile, which refuses more than 16 million numbers.
    return float(np.quantile(apart.double().numpy(), 0.99)) / largest if largest else 0.0


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How far two sets of logits are apart; `steps` on a grid, `difference` without one.

    Attributes:
        results: how often both come to the same result.
    """

    results: Agreement
    steps: OutputSteps | None
    difference: float | None


def compare_logits(found: Logits, wanted: Logits, step: float | None, results: Compare) -> Compared:
    """Compare logits with those they should be.

    Args:
        found: of a file, say.
        wanted: of its program.
        step: scale of the grid that `wanted` lie on; None for a float network.
        results: of the task, `TaskModule.compare`.
    """
    return Compared(
        results=results(found, wanted, step),
        steps=None if step is None else output_steps(found, wanted, step),
        difference=float_difference(found, wanted) if step is None else None,
    )


def output_misses(compared: Compared, limits: Limits) -> list[str]:
    """What of a network's answers is not as it must be, in words; [] if nothing.

    Logits may move by `limits.p99` steps, so two results that lie within twice as many may change
    places: such an image does not count against the agreement. A network that is often in doubt
    has many of them.
    """
    misses = []
    steps, difference = compared.steps, compared.difference
    results = compared.results
    beyond = sum(not lead <= 2 * limits.p99 for lead in results.leads)
    if beyond > (1 - limits.agreement) * results.units:
        misses.append(
            f"{results.same} on {results.share:.2%} of the {results.unit} (at least "
            f"{limits.agreement:.1%}); rounding cannot explain {beyond} of the others"
        )
    if steps is not None and (steps.median > limits.median or steps.p99 > limits.p99):
        misses.append(
            f"logits {steps.median} steps apart at the median (at most {limits.median}) and "
            f"{steps.p99} at the 99th percentile (at most {limits.p99})"
        )
    # Not a number is a miss too.
    if difference is not None and not difference <= limits.difference:
        misses.append(
            f"logits {difference:.2g} of the largest apart at the 99th percentile (at most "
            f"{limits.difference:g})"
        )
    return misses


def finite_misses(logits: Logits) -> list[str]:
    """Which sets have logits that are NaN or infinite, and how many images; [] if none has."""
    bad = {name: (~found.isfinite()).flatten(1).any(1) for name, found in logits.items()}
    return [
        f"the logits of {int(rows.sum())} of {len(rows)} images of {name} are NaN or infinite"
        for name, rows in bad.items()
        if rows.any()
    ]


def file_misses(
    facts: FileFacts, exact: ScalesExact | None, program: tuple[int, int] = (1, 1)
) -> list[str]:
    """What an int8 file says of itself that is not as it must be; [] for a float file.

    Args:
        facts: of the file.
        exact: its scales and weights; None of a float file.
        program: multiply-accumulates of the program, int8 and all
            (`file_facts.program_macs`): the file must have the same share in int8.
    """
    misses = []
    if exact is not None and exact.same != exact.total:
        misses.append(f"{exact.same} of {exact.total} scales are the learned ones (all must be)")
    if exact is not None and exact.codes_same != exact.codes_total:
        misses.append(
            f"{exact.codes_same} of {exact.codes_total} weights are the learned ones (all must be)"
        )
    int8, whole = program
    if exact is not None and facts.int8_macs * whole != int8 * facts.macs:
        must = "all must" if int8 == whole else f"exactly {int8 / whole:.2%} must"
        misses.append(f"{facts.int8_coverage:.2%} of the MACs run in int8 ({must})")
    return misses


def layer_misses(records: Sequence[LayerSums], learned: Collection[str]) -> list[str]:
    """How many layers a file does not give out, or computes otherwise; [] if none.

    Args:
        records: from `pipeline.measure.layers.compare_layers`.
        learned: names of all layers with a grid of their own (`file_facts.learned_scales`); none
            of a float program.
    """
    misses, wrong = [], sum(record.at_fault for record in records)
    unseen = sorted(set(learned) - {record.layer.name for record in records})
    if unseen:
        misses.append(
            f"{len(unseen)} of {len(learned)} layers are not among those that the file gives out "
            f"(all must be), such as {unseen[0]}"
        )
    if wrong:
        misses.append(
            f"{wrong} of {len(records)} layers compute otherwise than the program's (none may)"
        )
    return misses


def describe_first_difference(records: Sequence[LayerSums]) -> str:
    """Name the first layer of an int8 file that differs from the program.

    Args:
        records: from `pipeline.measure.layers.compare_layers`.
    """
    record = first_difference(records)
    if record is None:
        return "no layer differs on the images that were traced"
    if not record.at_fault:
        return f"{record.layer.title} differs most, but no layer alone by more than rounding"
    share = float(record.own[1:].sum() / record.own.sum())
    largest = int(record.own.nonzero().max())
    return f"{record.layer.title}: {share:.2%} of its values differ, by {largest} steps at most"
