"""What changed between two runs of the same targets, worst first.

    changes = changes_between(old, new, Allowances())

A change is a regression where it is past its limit and more than chance: two files may differ by
an image or two, and the same file takes another time in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.base.errors import InputError, following, reading
from pipeline.commands.compare.change import ORDER, Allowances, Change, Verdict
from pipeline.commands.compare.devices import on_devices
from pipeline.measure.latency import Latency
from pipeline.report import words
from pipeline.report.records import Report, TargetResult
from pipeline.stages.finished_run import Finished
from pipeline.tasks.accuracy import Changes
from pipeline.tasks.predictions import PREDICTIONS, Predictions, read_predictions
from pipeline.tasks.tasks import task_of

_MOST_NAMES = 5
_Kept = dict[str, Predictions] | None
"""By test set; None of a run that did not keep them."""


def changes_between(
    old: Sequence[Finished], new: Sequence[Finished], allowed: Allowances
) -> list[Change]:
    """Every figure of every target of both, worst first.

    Raises:
        InputError: no target is in both, or a run's report cannot be read.
    """
    before = {run.recipe.name: run for run in old}
    after = {run.recipe.name: run for run in new}
    shared = [name for name in before if name in after]
    if not shared:
        raise InputError(
            f"no target is in both: {', '.join(before)} and {', '.join(after)}; "
            "compare runs of the same recipes"
        )
    found = [one for name in shared for one in _of_target(before[name], after[name], allowed)]
    for name in sorted(before.keys() ^ after.keys()):
        gone = name in before
        found.append(
            Change(
                target=name,
                what="target",
                before="there" if gone else "absent",
                after="absent" if gone else "there",
                note="cannot be compared",
                verdict="worse" if gone else "changed",
            )
        )
    return sorted(found, key=lambda one: ORDER.index(one.verdict))


def mcnemar(changes: Changes) -> float:
    """How often chance alone gives so many more losses than gains, or gains than losses.

    The exact two-sided test of McNemar (Psychometrika 12, 1947): of the images that only one of
    two files gets right, each is as likely to be either's, so that what was lost of them is
    binomial. Where an image has several labels, an image counts once, for whichever file gets more
    of its labels right (the sign test, of which McNemar's is the case of one label): labels of one
    image are not told independently of each other.
    """
    from scipy.stats import binomtest  # takes a second to import

    discordant = changes.lost + changes.gained
    fewer = min(changes.lost, changes.gained)  # the test is the same both ways; so is its rounding
    return 1.0 if discordant == 0 else float(binomtest(fewer, discordant, 0.5).pvalue)


def _of_target(old: Finished, new: Finished, allowed: Allowances) -> Iterator[Change]:
    before, after = old.report(), new.report()
    (one,), (two,) = before.targets, after.targets
    name = two.name
    if old.classes != new.classes:
        yield _other_classes(old, new)
        return
    if one.sha256 == two.sha256:
        note = f"sha256 {two.sha256[:12]}"
        yield Change(target=name, what="file", before="", after="", note=note, verdict="same")
    yield from _accuracies(old, new, before, after, allowed)
    yield _parity(one, two)
    yield _size(name, "size", one.size_bytes, two.size_bytes, allowed)
    yield _size(name, "download", one.download_bytes, two.download_bytes, allowed)
    yield _latency(before, after, allowed)
    yield from on_devices(one, two, allowed)
    yield from _inside(one, two)
    yield from _budgets(before, after)


def _other_classes(old: Finished, new: Finished) -> Change:
    """Two networks of one name that tell other things apart: no figure of theirs is alike."""
    counts = [f"{len(run.classes)}" for run in (old, new)]
    gone = [name for name in old.classes if name not in new.classes]
    come = [name for name in new.classes if name not in old.classes]
    parts = [
        f"{words} {', '.join(names[:_MOST_NAMES])}{', ...' if len(names) > _MOST_NAMES else ''}"
        for words, names in (("without", gone), ("with", come))
        if names
    ]
    note = "; ".join(parts or ["in another order"])
    return Change(
        target=new.recipe.name,
        what="classes",
        before=counts[0],
        after=counts[1],
        note=f"{note}; nothing else is compared",
        verdict="regression",
    )


def _predictions(run: Finished) -> _Kept:
    """What a run's file made of every test image; None for a run that did not keep it."""
    file = run.directory / PREDICTIONS
    if not file.exists():
        return None
    with reading(file):
        return read_predictions(file)


def _accuracies(
    old: Finished, new: Finished, before: Report, after: Report, allowed: Allowances
) -> Iterator[Change]:
    (one,), (two,) = before.targets, after.targets
    kept = _predictions(old), _predictions(new)
    for name in {**(one.accuracy or {}), **(two.accuracy or {})}:
        first, second = (one.accuracy or {}).get(name), (two.accuracy or {}).get(name)
        kind = first or second
        assert kind is not None  # the name is of one of them
        paired = _paired(new, kept, before, after, name)
        for figure in dict.fromkeys((kind.FIGURE, kind.PAIRED)):
            share, other = (
                None if found is None else found.columns.get(figure) for found in (first, second)
            )
            tested = paired if figure == kind.PAIRED else "not tested: it is no count of images"
            note, verdict = _share(share, other, tested, allowed)
            texts = [
                "not measured" if found is None else words.percent(found)
                for found in (share, other)
            ]
            yield Change(
                target=two.name,
                what=f"{figure} on {name}",
                before=texts[0],
                after=texts[1],
                note=note,
                verdict=verdict,
            )


def _paired(
    new: Finished, kept: tuple[_Kept, _Kept], before: Report, after: Report, name: str
) -> Changes | str:
    """What became of the images of a test set; or why that is not known.

    Args:
        new: the later run.
        kept: predictions of both runs, by test set.
        before: the report of the earlier run.
        after: that of the later one.
        name: of the test set.
    """
    ours, theirs = kept
    if before.data.sha256 != after.data.sha256 or ours is None or theirs is None:
        return "not paired: other images, or a run of an older PocketNest"
    with reading(new.directory / PREDICTIONS):
        with following("the predictions of two runs"):
            first, second = ours[name], theirs[name]
        return task_of(new.recipe).changes(first, second)


def _share(
    first: float | None, second: float | None, paired: Changes | str, allowed: Allowances
) -> tuple[str, Verdict]:
    """What to say of a share before and after, and how bad it is."""
    if first is None or second is None:
        return "not measured in both", "unknown"
    drop = round(100 * (first - second), 9)
    past = drop > allowed.accuracy_drop_pt
    note = f"{0.0 - drop:+.2f} pt"  # not -0.00
    if isinstance(paired, str):
        note += f"; {paired}"
    else:
        chance = mcnemar(paired)
        note += f"; {paired.lost} lost, {paired.gained} gained, p = {chance:.2g}"
        past = past and chance < allowed.significance
    if past:
        return note, "regression"
    return note, "same" if drop == 0 else "better" if drop < 0 else "worse"


def _parity(one: TargetResult, two: TargetResult) -> Change:
    verdict: Verdict = "same"
    if one.parity.passed != two.parity.passed:
        verdict = "better" if two.parity.passed else "regression"
    return Change(
        target=two.name,
        what="answers as its program",
        before="yes" if one.parity.passed else "no",
        after="yes" if two.parity.passed else "no",
        note="; ".join(two.parity.misses),
        verdict=verdict,
    )


def _size(target: str, what: str, before: int, after: int, allowed: Allowances) -> Change:
    growth = after / before - 1
    verdict: Verdict = "same" if growth == 0 else "better" if growth < 0 else "worse"
    if growth > allowed.size_growth:
        verdict = "regression"
    return Change(
        target=target,
        what=what,
        before=f"{words.figure(before / 1e6)} MB",
        after=f"{words.figure(after / 1e6)} MB",
        note=f"{100 * growth:+.2f} %",
        verdict=verdict,
    )


def _latency(before: Report, after: Report, allowed: Allowances) -> Change:
    (one,), (two,) = before.targets, after.targets
    first, second = one.latency_ms, two.latency_ms
    verdict: Verdict = "unknown"
    if first is None or second is None:
        note = str(two.latency_missing or one.latency_missing)
    elif before.host.cpu != after.host.cpu:
        note = f"another CPU: {before.host.cpu} and {after.host.cpu}"
    elif (first.threads, first.batch) != (second.threads, second.batch):
        note = f"timed otherwise: {first.threads} and {second.threads} threads"
    else:
        growth = second.median / first.median - 1
        note = f"{100 * growth:+.1f} %"
        apart = first.p90 < second.p10 or second.p90 < first.p10
        if not apart:
            verdict = "same"
            note += ", within the spread of the runs"
        elif growth < 0:
            verdict = "better"
        else:
            verdict = "regression" if growth > allowed.latency_growth else "worse"
    return Change(
        target=two.name,
        what="latency",
        before=_shown(first),
        after=_shown(second),
        note=note,
        verdict=verdict,
    )


def _shown(latency: Latency | None) -> str:
    return "not measured" if latency is None else words.milliseconds(latency)


def _inside(one: TargetResult, two: TargetResult) -> Iterator[Change]:
    """Scales, weights, int8 coverage and operations."""
    exact = [found.scales_exact for found in (one, two)]
    scales = [None if found is None else (found.same, found.total) for found in exact]
    yield _as_learned(two.name, "scales as learned", *scales)
    codes = [(e.codes_same, e.codes_total) if e and e.codes_total else None for e in exact]
    if None not in codes:  # reports of before they were counted
        yield _as_learned(two.name, "weights as learned", *codes)
    yield from _weights(one, two)
    shares = [found.int8_coverage for found in (one, two)]
    verdict: Verdict = "same" if shares[0] == shares[1] else "changed"
    if shares[0] is not None and shares[1] is not None and shares[0] != shares[1]:
        verdict = "better" if shares[1] > shares[0] else "regression"
    yield Change(
        target=two.name,
        what="int8 share of MACs",
        before="not measured" if shares[0] is None else words.percent(shares[0]),
        after="not measured" if shares[1] is None else words.percent(shares[1]),
        note="",
        verdict=verdict,
    )
    changed = [
        f"{name} {one.ops.get(name, 0)} to {two.ops.get(name, 0)}"
        for name in sorted({*one.ops, *two.ops})
        if one.ops.get(name, 0) != two.ops.get(name, 0)
    ]
    yield Change(
        target=two.name,
        what="operations",
        before=str(sum(one.ops.values())),
        after=str(sum(two.ops.values())),
        note=", ".join(changed),
        verdict="changed" if changed else "same",
    )


def _as_learned(
    target: str, what: str, first: tuple[int, int] | None, second: tuple[int, int] | None
) -> Change:
    """How many of all are the learned ones, before and after; None of a float file."""
    texts = ["none" if found is None else f"{found[0]}/{found[1]}" for found in (first, second)]
    wrong = [0 if found is None else found[1] - found[0] for found in (first, second)]
    verdict: Verdict = "same" if texts[0] == texts[1] else "changed"
    if wrong[1] > wrong[0]:
        verdict = "regression"
    return Change(
        target=target, what=what, before=texts[0], after=texts[1], note="", verdict=verdict
    )


def _weights(one: TargetResult, two: TargetResult) -> Iterator[Change]:
    """The forms of weights, layer by layer, where either run has fewer bits than 8."""
    if one.weights is None and two.weights is None:
        return
    before, after = (
        {} if found.weights is None else {layer.layer: layer.form for layer in found.weights.layers}
        for found in (one, two)
    )
    changed = [
        f"{name} {before.get(name, 'int8')} to {after.get(name, 'int8')}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name, "int8") != after.get(name, "int8")
    ]
    more = len(changed) - _MOST_NAMES
    texts = [
        "int8"
        if found.weights is None
        else ", ".join(f"{n.layers} {form}" for form, n in found.weights.forms.items())
        for found in (one, two)
    ]
    yield Change(
        target=two.name,
        what="forms of weights",
        before=texts[0],
        after=texts[1],
        note=", ".join(changed[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else ""),
        verdict="changed" if changed else "same",
    )


def _budgets(old: Report, new: Report) -> Iterator[Change]:
    """Budgets that both have and that are judged otherwise now."""
    (one,), (two,) = old.targets, new.targets
    before = {item.metric: item for item in one.budgets}
    for item in two.budgets:
        known = before.get(item.metric)
        if known is None or known.passed == item.passed:
            continue
        judged = {True: "kept", False: "missed", None: "not measured"}
        verdict: Verdict = "regression" if item.passed is False else "changed"
        if known.passed is False and item.passed:
            verdict = "better"
        yield Change(
            target=two.name,
            what=f"budget: {words.judged(item, new)}",
            before=judged[known.passed],
            after=judged[item.passed],
            note=words.limit(item),
            verdict=verdict,
        )
