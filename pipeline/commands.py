"""What the commands of the command line do, once their arguments are parsed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.console import third_party_output_to, tracked
from pipeline.errors import InputError, printable
from pipeline.plain_files import content_of, refuse_link, refuse_to_write
from pipeline.recipe import load_recipes
from pipeline.records import BASELINES, Report, TargetResult

if TYPE_CHECKING:  # torch loads only in the commands that need it
    from pipeline.baselines.record import Clocks, FloatBaseline, Timing
    from pipeline.debug import Row
    from pipeline.finished import Finished
    from pipeline.layer_table import Row as LayerRow
    from pipeline.layer_table import Size
    from pipeline.predict import Prediction

LOG = "run.log"


def init(arguments: argparse.Namespace) -> None:
    """Write a commented recipe; what the arguments leave open is asked for at a terminal.

    Raises:
        InputError: the file is there already, or nobody can be asked.
    """
    from rich.prompt import Prompt

    from pipeline.first_recipe import DEVICES, Answers, recipe_text

    file: Path = arguments.file
    if os.path.lexists(file):
        raise InputError(f"{file}: is there already; give another name")
    device, train, test = arguments.device, arguments.train, arguments.test
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if device is None:
        if not asks:
            raise InputError(f"--device: not given; must be one of {', '.join(DEVICES)}")
        device = Prompt.ask("For which device?", choices=list(DEVICES), default="android")
        if train is None and test is None:
            said = Prompt.ask("Folder of training images (empty: embedded digits)", default="")
            train = Path(said) if said else None
            test = Path(Prompt.ask("Folder of test images")) if said else None
    if (train is None) is not (test is None):
        raise InputError("--train and --test: give both, or neither for the embedded digits")
    answers = Answers(
        device=device,
        train=train,
        test=test,
        checkpoint=arguments.checkpoint,
        input_size=arguments.input_size or (32 if train is None else 224),
        size_mb=arguments.size_mb,
        pixels=arguments.pixels,
    )
    refuse_to_write(file)
    file.write_text(recipe_text(answers, file.parent), encoding="utf-8")
    print(f"wrote {file}; next: pocketnest check {file}")


def run(recipes: Sequence[Path], arguments: argparse.Namespace) -> bool:
    """Run recipes and show the result; True where every budget is met."""
    loaded = load_recipes(recipes, arguments.overrides)
    out: Path = arguments.out
    # torchrun started it to help another process, which says what there is to say.
    helps = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0"
    quiet = arguments.quiet or arguments.json or helps
    with third_party_output_to(out / LOG, quiet=quiet and not arguments.explain) as console:
        # Imported here: torch and what it loads print while they load.
        from pipeline.run import explain_recipes, run_recipes

        if arguments.explain:
            for name, stages in explain_recipes(loaded, out, console).items():
                console.print(f"[bold]{name}[/bold]", highlight=False)
                for stage in stages:
                    does = "reused" if stage.reused else "made"
                    console.print(
                        f"  {stage.stage:<9} {does:<7}", escape(stage.why), highlight=False
                    )
            return True
        reports = run_recipes(
            loaded,
            out,
            console,
            fresh=arguments.fresh,
            allow_mismatch=arguments.allow_mismatch,
            until=arguments.until,
        )
        if helps:
            return True
        combined = len(reports) > len(loaded)
        shown = reports[-1:] if combined else reports
        for report, directory in shown:
            show(report, directory, console)
    if arguments.json:
        print(json.dumps([_summary(report, directory) for report, directory in shown], indent=2))
    return all(report.passed for report, _ in reports)


def show(report: Report, directory: Path, console: Console) -> None:
    """Print the targets of a report as a table, and where it lies."""
    table = Table(box=None, pad_edge=False)
    for heading in ("target", "file", "MB", "top-1", "drop", "speedup", "int8", "scales", ""):
        table.add_column(heading, justify="left" if heading in {"target", "file"} else "right")
    base = next(iter(report.baseline.accuracy.values()))
    size = f"{report.baseline.size_bytes / 1e6:.1f}"
    where = "" if report.baseline.measured_here else ", elsewhere"
    table.add_row("float", f"({report.baseline.device_kind}{where})", size, f"{base.top1:.2%}")
    for target in report.targets:
        table.add_row(*_row(target, directory))
    console.print(table)
    console.print(f"report: {directory / 'report.html'}", highlight=False)


def _summary(report: Report, directory: Path) -> dict[str, Any]:
    """What a program wants to know of a run that has ended; the report has the rest."""
    figures = ("device", "format", "size_bytes", "accuracy_drop_pt", "speedup", "passed")
    return {
        "passed": report.passed,
        "report": str(directory / "report.json"),
        "targets": [
            {
                "name": target.name,
                "file": str(_file(target, directory)),
                **{name: getattr(target, name) for name in figures},
                "parity": target.parity.passed,
            }
            for target in report.targets
        ],
    }


def _file(target: TargetResult, directory: Path) -> Path:
    """Where a target's file lies, given the directory of its report or of a combined one."""
    return directory.parent / target.name / target.path


def _row(target: TargetResult, directory: Path) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "not measured" if value is None else format(value, form)

    top1 = None if target.accuracy is None else next(iter(target.accuracy.values())).top1
    reference = " (reference)" if target.evaluated == "reference" else ""
    exact = target.scales_exact
    return [
        target.name,
        str(_file(target, directory)),
        f"{target.size_mb:.1f}",
        shown(top1, ".2%") + reference,
        shown(target.accuracy_drop_pt, ".2f"),
        shown(target.speedup, ".2f"),
        shown(target.int8_coverage, ".0%"),
        f"{exact.same}/{exact.total}" if exact else "none",
        _verdict(target),
    ]


def _verdict(target: TargetResult) -> str:
    verdict = "[green]passed[/green]" if target.passed else "[red]missed[/red]"
    return verdict if target.parity.passed else f"{verdict}, [red]mismatch allowed[/red]"


def bench(arguments: argparse.Namespace) -> bool:
    """Time the files of runs in turn with the float network and, if asked, other tools' files.

    Returns:
        Whether every bar that was given is met.

    Raises:
        InputError: no finished runs of one network, or bars that cannot be read.
    """
    from pipeline.finished import open_runs

    runs = [run for directory in arguments.run_dirs for run in open_runs(directory)]
    first: Path = arguments.run_dirs[0]
    out: Path = arguments.out or (first if len(arguments.run_dirs) == 1 else first.parent)
    out.mkdir(parents=True, exist_ok=True)
    refuse_link(out / "peers")
    with third_party_output_to(out / LOG) as console:
        from pipeline.bench.bars import load_bars
        from pipeline.bench.benchmark import benchmark, write_json
        from pipeline.bench.plot import write_plot
        from pipeline.bench.table import show

        bars = [bar for file in arguments.bars for bar in load_bars(file)]
        found = benchmark(
            runs,
            rounds=arguments.rounds,
            peers=out / "peers" if arguments.peers else None,
            bars=bars,
            tracked=partial(tracked, console),
        )
        refuse_to_write(out / "bench.json")
        refuse_to_write(out / "bench.svg")
        write_json(found, out / "bench.json")
        write_plot(found, out / "bench.svg")
        show(found, console)
        console.print(f"{out / 'bench.json'}, {out / 'bench.svg'}", highlight=False)
    return found.passed


def baseline(arguments: argparse.Namespace) -> None:
    """Measure a recipe's float network on this machine and save it for later reports.

    Raises:
        InputError: data, checkpoint or a figure of the recipe that turns out impossible.
    """
    (recipe,) = load_recipes([arguments.recipe], arguments.overrides)
    out: Path = arguments.out
    with third_party_output_to(out / LOG) as console:
        from pipeline.baselines.files import save
        from pipeline.baselines.measuring import measured
        from pipeline.measure import size_bytes
        from pipeline.models.load import WEIGHTS
        from pipeline.run import begun
        from pipeline.stages.context import float_model

        refuse_link(out / BASELINES)  # before anything is measured
        with begun(recipe, out, console, until="train") as started:
            trained = started.results["train"].directory
            model = float_model(started.context, {"train": trained})
            weights = trained / WEIGHTS
            shown = partial(tracked, console)
            dataset = started.context.dataset
            found = measured(recipe, model, dataset, size_bytes(weights), shown)
        path = save(found, out)
        _show_baseline(found, console)
        for title, file in (("weights", weights), ("baseline", path)):
            console.print(f"{title}: {file}", highlight=False, markup=False)


def _show_baseline(found: FloatBaseline, console: Console) -> None:
    console.print(
        f"{found.device}, clocks before and after: {_clocks(found.clocks.before)}, "
        f"{_clocks(found.clocks.after)}",
        highlight=False,
        markup=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("precision")
    for heading in ("top-1", "batch", "ms", "p10 to p90", "images/s", "CUDA graph"):
        table.add_column(heading, justify="right")
    for timing in found.timings:
        top1 = next(iter(found.accuracy[timing.precision].values())).top1
        table.add_row(*_timing_cells(timing, top1))
    console.print(table)
    for what, why in found.not_measured.items():
        console.print(f"not measured: {what}: {why}", highlight=False, markup=False)


def _clocks(clocks: Clocks | None) -> str:
    return "not known" if clocks is None else f"{clocks.core_mhz:.0f} MHz"


def _timing_cells(timing: Timing, top1: float) -> list[str]:
    latency, other = timing.latency_ms, timing.other_ms
    graph = "yes" if timing.cuda_graph else "no"
    if other is not None:
        graph += f" (otherwise {other.median:.3f} ms)"
    return [
        timing.precision,
        f"{top1:.2%}",
        str(timing.batch),
        f"{latency.median:.3f}",
        f"{latency.p10:.3f} to {latency.p90:.3f}",
        f"{timing.images_per_second:.1f}",
        graph,
    ]


def predict(run_dir: Path, image: Path, top: int) -> None:
    """Show the classes of an image, of every image in a directory, or of one from stdin (`-`).

    Raises:
        InputError: no finished run, or no image that can be read.
    """
    from pipeline.finished import open_runs
    from pipeline.image_files import MOST_BYTES, image_files

    runs = open_runs(run_dir)
    if str(image) == "-":
        images = [("-", sys.stdin.buffer.read(MOST_BYTES))]
    else:
        images = [(str(file), content_of(file, MOST_BYTES)) for file in image_files(image)]
    with third_party_output_to(run_dir / LOG) as console:
        from pipeline.predict import predict

        for found in predict(runs, images, top):
            _show_prediction(found, runs, console)


def _show_prediction(found: Prediction, runs: Sequence[Finished], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    titles = {run.recipe.name: _title(run, run.format.evaluated()) for run in runs}
    for column in found.scores:
        table.add_column(titles.get(column, column), justify="right")
    for row, name in enumerate(found.classes):
        table.add_row(escape(name), *(f"{scores[row]:.4f}" for scores in found.scores.values()))
    console.print(f"[bold]{escape(found.image)}[/bold]", highlight=False)
    console.print(table)
    others = [f"{name}: {best}" for name, best in found.best.items() if best != found.classes[0]]
    if others:
        console.print(f"first class differs: {escape(', '.join(others))}", highlight=False)
    difference = f"largest difference from float: {found.largest_difference:.4f}"
    console.print(difference, highlight=False)


def _title(run: Finished, computed_by: str) -> str:
    reference = " (reference)" if computed_by == "reference" else ""
    return f"{run.format.RUNTIME}{reference}"


def debug(arguments: argparse.Namespace) -> None:
    """Show the layers of a run's file, worst first, and write all of them to a CSV file.

    Raises:
        InputError: no finished run of an int8 target.
    """
    from pipeline.finished import open_run

    run = open_run(arguments.run_dir, arguments.target)
    with third_party_output_to(arguments.run_dir / LOG) as console:
        from pipeline.debug import debug_rows, write_csv

        rows = debug_rows(run, arguments.images)
        table = Table(box=None, pad_edge=False)
        table.add_column("layer")
        for heading in _DEBUG_COLUMNS:
            table.add_column(heading, justify="right")
        for row in rows[: arguments.rows]:
            table.add_row(*_layer_row(row))
        console.print(
            f"[bold]{run.recipe.name}[/bold]  {_title(run, run.format.TRACED_BY)}", highlight=False
        )
        console.print(table)
        console.print(_DEBUG_LEGEND, highlight=False)
        path: Path = arguments.csv or run.directory / "debug.csv"
        refuse_to_write(path)
        write_csv(rows, path)
        console.print(f"all {len(rows)} layers: {path}", highlight=False)


_DEBUG_COLUMNS = ("scale", "outside", "lost", "program", "file", "differ", "steps", "own steps")
_DEBUG_LEGEND = """\
worst first; red: the file computes it otherwise than the program.
outside: float values outside the grid. program, file: signal to quantization noise against the
float network, dB; lost: against the worst layer it reads. differ: values that file and program do
not share; steps: by how much, 99th percentile / largest; own steps: what this layer alone adds."""


def _layer_row(row: Row) -> list[str]:
    same_grid = (row.scale, row.zero_point) == (row.file_scale, row.file_zero_point)
    title = escape(f"{row.module} {row.operation}".strip())
    found = f"{row.file_scale:.6g}"
    return [
        f"[red]{title}[/red]" if row.at_fault else title,
        found if same_grid else f"[red]{found}, not {row.scale:.6g}[/red]",
        f"{row.saturated:.2%}",
        f"{row.lost_db:.1f}",
        f"{row.program_sqnr_db:.1f}",
        f"{row.file_sqnr_db:.1f}",
        f"{row.differing:.2%}",
        f"{row.steps_p99} / {row.steps_largest}",
        f"{row.own_p99} / {row.own_largest}",
    ]


def inspect(arguments: argparse.Namespace) -> None:
    """Show every layer of a recipe's network, or of a run before and after pruning.

    Raises:
        InputError: neither a recipe nor the directory of a finished run.
    """
    from pipeline.finished import open_run

    target: Path = arguments.target
    if target.is_dir():
        finished = open_run(target, arguments.name)
        with third_party_output_to(target / LOG) as console:
            from pipeline.layer_table import table_of_run

            rows = table_of_run(finished, arguments.rounds)
            _show_layers(rows, finished.recipe.name, arguments.csv, console)
        return
    (recipe,) = load_recipes([target], arguments.overrides)
    with third_party_output_to(Path(os.devnull)) as console:
        from pipeline.layer_table import table_of_recipe

        _show_layers(table_of_recipe(recipe), recipe.name, arguments.csv, console)


def _show_layers(rows: Sequence[LayerRow], name: str, path: Path | None, console: Console) -> None:
    from pipeline.layer_table import write_csv

    pruned = any(row.after is not None for row in rows)
    timed = any(row.share is not None for row in rows)
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    headings = ["kernel", "groups", "output", "params", "MACs"]
    headings += ["channels after", "params after", "MACs after"] if pruned else []
    headings += ["ms", "of the time"] if timed else []
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_layer_cells(row, pruned, timed))
    table.add_section()
    table.add_row(*_total_cells(rows, pruned, timed))
    console.print(f"[bold]{escape(name)}[/bold]", highlight=False)
    console.print(table)
    if path is not None:
        write_csv(rows, path)
        console.print(f"all figures: {path}", highlight=False)


def _layer_cells(row: LayerRow, pruned: bool, timed: bool) -> list[str]:
    def size(found: Size | None, first: str) -> list[str]:
        return [first, f"{found.params:,}", f"{found.macs:,}"] if found else [""] * 3

    before, after = row.before, row.after
    shape = f"{before.outputs} x {before.height} x {before.width}" if before else ""
    groups = "" if row.groups is None else str(row.groups)
    cells = [escape(row.name), row.kernel, groups, *size(before, shape)]
    cells += size(after, str(after.outputs) if after else "") if pruned else []
    if timed:
        cells.append("" if row.milliseconds is None else f"{row.milliseconds:.3f}")
        cells.append("" if row.share is None else f"{row.share:.1%}")
    return cells


def _total_cells(rows: Sequence[LayerRow], pruned: bool, timed: bool) -> list[str]:
    def sums(found: Sequence[Size | None]) -> list[str]:
        sizes = [size for size in found if size is not None]
        return [f"{sum(s.params for s in sizes):,}", f"{sum(s.macs for s in sizes):,}"]

    cells = ["all", "", "", "", *sums([row.before for row in rows])]
    cells += ["", *sums([row.after for row in rows])] if pruned else []
    if timed:
        cells += [f"{sum(row.milliseconds or 0.0 for row in rows):.3f}", "100.0%"]
    return cells


def compare(arguments: argparse.Namespace) -> bool:
    """Print what changed between two runs; True where nothing is a regression.

    Raises:
        InputError: a run cannot be read, or no target is in both.
    """
    from pipeline.compare import Limits, as_json, markdown
    from pipeline.compare import compare as changes_of
    from pipeline.finished import open_runs

    limits = Limits(
        accuracy_drop_pt=arguments.accuracy_drop,
        size_growth=arguments.size_growth / 100,
        latency_growth=arguments.latency_growth / 100,
    )
    found = changes_of(open_runs(arguments.old), open_runs(arguments.new), limits)
    print(as_json(found) if arguments.json else markdown(found), end="")
    return all(one.verdict != "regression" for one in found)


def bundle(directory: Path, out: Path | None) -> bool:
    """Pack every run of a directory; True where all of them meet their budgets.

    Raises:
        InputError: a run cannot be read, or cannot be handed over.
    """
    from pipeline.finished import open_runs

    runs = open_runs(directory)
    passed = True
    with third_party_output_to(directory / LOG) as console:
        from pipeline.bundle.write import write_bundle

        for run in runs:
            path = write_bundle(run, out)
            size = f"{path.stat().st_size / 1e6:.1f} MB"
            met = run.report().passed
            passed = passed and met
            note = "" if met else "; a budget is missed, the model card says which"
            console.print(f"{path}  {size}{note}", highlight=False)
    return passed


def verify(directory: Path) -> bool:
    """Say which files of a run are not as they were written; True where all are."""
    from pipeline.upkeep import verify as check

    places, faults = check(directory)
    for fault in faults:
        print(f"damaged: {printable(fault)}")
    print(f"{len(places) - len(faults)} of {len(places)} directories are as they were written")
    return not faults


def gc(out: Path, *, dry_run: bool) -> None:
    """Remove what no run of a folder needs, and say what it was."""
    from pipeline.store import STORE
    from pipeline.upkeep import removable, remove_all

    found = removable(out, out / STORE)
    for one in found:
        print(f"{one.size_bytes / 1e6:8.1f} MB  {printable(one.path.name)}: {one.why}")
    total = sum(one.size_bytes for one in found) / 1e6
    if not dry_run:
        remove_all(found)
    print(f"{total:.1f} MB {'could be freed' if dry_run else 'freed'}")
