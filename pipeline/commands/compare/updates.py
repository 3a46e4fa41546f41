"""Bytes of an update from the files of one run to those of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.measure.downloads import COMPRESSORS, Compressor, downloads
from pipeline.measure.patches import PATCHERS, Patcher, patches
from pipeline.report import words
from pipeline.report.downloads import NAMES
from pipeline.stages.finished_run import Finished

_MEANING = (
    "Bytes that take a device from the old file to the new one. Each patch was applied to the old "
    "file and gave the new one, byte for byte. The last column is the smallest patch to the "
    "smallest whole download."
)


@dataclass(frozen=True, kw_only=True)
class Update:
    """What an update of one target's file costs.

    Attributes:
        target: name of its recipe.
        file_bytes: of the new file.
        whole: the new file compressed, by compressor.
        patches: by patcher, each applied and compared; 0 where the file is the same.
    """

    target: str
    file_bytes: int
    whole: dict[Compressor, int]
    patches: dict[Patcher, int]

    @property
    def share(self) -> float:
        """The smallest patch to the smallest whole download."""
        return min(self.patches.values()) / min(self.whole.values())


def updates_between(old: Sequence[Finished], new: Sequence[Finished]) -> list[Update]:
    """An update for every target that both have, in the order of the new runs.

    Raises:
        InputError: a file is too large to be patched, or a run's report cannot be read.
        MismatchError: a patch does not make the new file of the old one.
    """
    before = {run.recipe.name: run for run in old}
    return [_update(before[run.recipe.name], run) for run in new if run.recipe.name in before]


def _update(old: Finished, new: Finished) -> Update:
    (target,) = new.report().targets
    sent = target.downloads or downloads(new.file)
    return Update(
        target=target.name,
        file_bytes=target.size_bytes,
        whole={one.compressor: one.bytes for one in sent},
        patches=patches(old.file, new.file),
    )


def _whole(update: Update, name: Compressor) -> str:
    found = update.whole.get(name)
    return words.NOT_APPLICABLE if found is None else words.figure(found / 1e6)


def markdown(updates: Sequence[Update]) -> str:
    """The updates as a table, in megabytes."""
    header = ["target", "file MB", *(f"whole by {NAMES[name]}" for name in COMPRESSORS)]
    header += [*(f"patch by {name}" for name in PATCHERS), "patch to whole"]
    rows = [
        [
            words.markdown_text(one.target),
            words.figure(one.file_bytes / 1e6),
            *(_whole(one, name) for name in COMPRESSORS),
            *(words.figure(one.patches[name] / 1e6) for name in PATCHERS),
            words.percent(one.share) if any(one.patches.values()) else "the same file",
        ]
        for one in updates
    ]
    return "\n".join(["## Updates", "", words.table(header, rows), "", _MEANING]) + "\n"
