"""The command line: it parses, calls and renders; torch is imported only inside commands."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candid.audit_command import audit
from candid.compare_command import compare
from candid.doctor_command import doctor
from candid.errors import CandidError, CheckpointError, InputError
from candid.model_tables import network_as_dict, show_network, show_networks, show_paper
from candid.plan_command import Allow, Assignments, Data, Memory, Model, RecipeName, RecipeOption, allows_bf16, plan
from candid.predict_command import predict
from candid.printing import print_table, show, terminal_width
from candid.zoo import read_entries

if TYPE_CHECKING:
    from candid.recipe import Recipe

app = typer.Typer(
    name="candid",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(plan)
app.command()(audit)

Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/lenet-relu-fashion-mnist-mini.")]
DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie; else $CANDID_DATA and the usual places.")]
Compile = Annotated[bool | None, typer.Option("--compile/--no-compile", help="Let torch.compile fuse the network.")]
Deterministic = Annotated[
    bool | None, typer.Option(help="Refuse operations that may give other bits each time; default on the CPU.")
]
Tune = Annotated[
    str,
    typer.Option(
        help="How to choose what the recipe leaves open, such as the precision: quick times a few steps (at most 20 s "
        "and 3 % of the run), full torch.compile too (minutes), off takes what usually is fastest."
    ),
]
BadImages = Annotated[
    str | None, typer.Option(help="At files that are no pictures: stop and list them, or skip and record them.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Train, test and use image classifiers built from the classic convolutional networks."""
    # `main` looks for --debug itself, because errors arrive there


@app.command()
def train(
    recipe: RecipeName = None,
    recipe_option: RecipeOption = None,
    data: Data = None,
    model: Model = None,
    weights: Annotated[str | None, typer.Option(help="Begin from these weights: a file, an address, or a run.")] = None,
    new_head: Annotated[bool, typer.Option("--new-head", help="Leave out their head, for other classes.")] = False,
    epochs: Annotated[int | None, typer.Option(help="How often to go through the pictures.")] = None,
    assignments: Assignments = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything that is random.")] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,2", help="A run for each, and their mean and spread.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")] = None,
    compile_network: Compile = None,
    tune: Tune = "quick",
    bad_images: BadImages = None,
    sync_bn: Annotated[bool, typer.Option("--sync-bn", help="Take batch statistics over all ranks, on GPUs.")] = False,
    deterministic: Deterministic = None,
    memory: Memory = None,
    allow: Allow = None,
    max_time: Annotated[str | None, typer.Option(help="Stop and save after this time, such as 30m or 2h.")] = None,
    save_every: Annotated[str | None, typer.Option(help="Save within epochs too: 200steps or 5m.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default runs/MODEL-DATA.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    device: Device = "auto",
    data_dir: DataDir = None,
) -> None:
    """Train a network, look at the test split once, write the report."""
    changes = {
        "data.name": data,
        "data.bad_images": bad_images,
        "model.name": model,
        "model.weights": weights,
        "model.new_head": new_head or None,
        "training.epochs": epochs,
        "seed": seed,
        "training.precision": precision,
        "training.compile": compile_network,
        "training.sync_batch_norm": sync_bn or None,
        "training.deterministic": deterministic,
        "limits.memory": memory,
        "limits.max_time": max_time,
        "limits.save_every": save_every,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    assignments, name, bf16 = assignments or [], recipe or recipe_option, allows_bf16(allow)
    from candid.recipe import keys_of
    from candid.recipes import choose_recipe

    base = _resumed_recipe(out) if resume and name is None and data is None else choose_recipe(name, data)
    wanted = base.replace(given).override(assignments)
    allowed = keys_of(assignments) | given.keys() & {"training.epochs", "data.bad_images"}
    from candid.workflow import train as train_network
    from candid.workflow import train_seeds

    several = None if seeds is None else _seeds(seeds, seed)
    options: dict[str, Any] = {
        "allowed": allowed,
        "allow_bf16": bf16,
        "tune": tune,
        "data_dir": data_dir,
        "device": device,
    }
    try:
        if several is None:
            runs = [train_network(wanted, out, resume, **options)]
        else:
            runs = train_seeds(wanted, several, out, resume, **options)
    except KeyboardInterrupt:
        typer.echo("Interrupted. What is saved goes on with `candid train --resume --out RUN`.", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    _tell_of(runs)


def _tell_of(runs: Sequence[Path]) -> None:
    """How several runs compare, where their reports are, and what to try."""
    if len(runs) > 1:
        from candid.report.side_by_side import read_side_by_side

        for sentence in read_side_by_side(runs).sentences():
            typer.echo(sentence)
    for run in runs:
        typer.echo(f"Report: {run / 'report.html'}")
    typer.echo(f"Try it: candid predict {runs[0]} YOUR-PICTURE.jpg")


@app.command()
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="validation, test or train.")] = "validation",
    mirror: Annotated[bool, typer.Option("--mirror", help="Average over each picture and its mirror image.")] = False,
    five_crops: Annotated[
        bool,
        typer.Option("--five-crops", help="Average over five crops of larger pictures; --mirror makes ten."),
    ] = False,
    data: Annotated[str | None, typer.Option(help="Another data set or folder with the same classes.")] = None,
    bad_images: BadImages = None,
    device: Device = "auto",
    data_dir: DataDir = None,
) -> None:
    """Measure a run on a split; a look at the test split is recorded."""
    from candid.calibration import Calibration
    from candid.views import PLAIN, Views
    from candid.workflow import evaluate as evaluate_run
    from candid.workflow import evaluation_folder

    views = Views(mirror, five_crops)
    evaluation = evaluate_run(
        run, split, views=views, data=data, bad_images=bad_images, data_dir=data_dir, device=device
    )
    typer.echo(evaluation.text(views.text()))
    headings, *rows = evaluation.class_rows()
    print_table(headings, rows)
    calibration = Calibration.load(run) if split == "validation" and data is None and views == PLAIN else None
    if calibration is not None:
        typer.echo(calibration.text())
    typer.echo(f"Written to {evaluation_folder(run, split, data, views)}")


app.command()(compare)


@app.command()
def verify(
    run: Run,
    resume_test: Annotated[
        bool, typer.Option("--resume-test", help="Also train a few steps straight and interrupted, and compare.")
    ] = False,
    device: Device = "auto",
    data_dir: DataDir = None,
) -> None:
    """Check every file of a run's checkpoints; exit code 4 where one is not as it was saved."""
    from candid.workflow import verify as verify_run

    findings = verify_run(run)
    for name, problem in findings.items():
        typer.echo(f"{name}: {problem or 'every file is as it was saved'}")
    if not findings:
        raise CheckpointError(f"{run} has no checkpoint yet. Run `candid train --resume --out {run}`.")
    if all(findings.values()):
        raise CheckpointError("No checkpoint is whole. Use a good copy of the run, or train it again.")
    if any(findings.values()):
        raise CheckpointError("Not every checkpoint is whole; `--resume` goes on from the newest that is.")
    if resume_test:
        from candid.workflow import check_resume

        typer.echo(check_resume(run, data_dir=data_dir, device=device))


@app.command()
def report(run: Run) -> None:
    """Write a run's page anew."""
    from candid.workflow import report as write_report

    typer.echo(f"Report: {write_report(run)}")


app.command()(predict)
app.command()(doctor)


@app.command("import")
def import_weights(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Weights: .safetensors, .pth, .pt; or their address.")],
    model: Annotated[str, typer.Option(help="The network that they are of (`candid models`).")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    classes: Annotated[Path | None, typer.Option(help="Text file with the class names, one a line.")] = None,
    data: Annotated[str | None, typer.Option(help="The data set or folder that they were trained on.")] = None,
    new_head: Annotated[bool, typer.Option("--new-head", help="Keep all but the head, for other classes.")] = False,
    image_size: Annotated[int, typer.Option(help="Side of the pictures in px; 0 is the data's or network's.")] = 0,
    channels: Annotated[int, typer.Option(help="1 for grey, 3 for RGB; 0 is what the file has.")] = 0,
    fit: Annotated[str, typer.Option(help="Of pictures that are not square: crop, pad or squash.")] = "crop",
    mean: Annotated[str | None, typer.Option(metavar="R,G,B", help="Of each channel, for pixels in [0, 1].")] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Of each channel, for pixels in [0, 1].")] = None,
    sha256: Annotated[str, typer.Option(metavar="HEX", help="What the file's SHA-256 has to be.")] = "",
    weights_dir: Annotated[Path, typer.Option(help="Where downloaded weights are kept.")] = Path("weights"),
) -> None:
    """Make a run of weights from elsewhere: torchvision, timm, GitHub, your own."""
    statistics = [None if text is None else _numbers(text) for text in (mean, std)]

    from candid.importing import import_weights as make_run

    run = make_run(
        source,
        model,
        out,
        classes=classes,
        data=data,
        new_head=new_head,
        image_size=image_size,
        channels=channels,
        fit=fit,
        mean=statistics[0],
        std=statistics[1],
        sha256=sha256,
        weights_dir=weights_dir,
    )
    typer.echo(f"Imported into {run}\nTry it: candid predict {run} YOUR-PICTURE.jpg")


@app.command()
def models(
    name: Annotated[str | None, typer.Argument(help="Show this network layer by layer.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, max=4096, help="Side in px of its images.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, max=1_000_000, help="How many it tells apart.")] = None,
    paper: Annotated[str | None, typer.Option(help="Show a paper's tables beside ours, such as densenet.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Where --paper draws error against parameters; default PAPER-figure-4.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list or the network as JSON.")] = False,
) -> None:
    """List the networks, show one layer by layer, or a paper's tables."""
    if name is None and (image_size is not None or classes is not None):
        raise InputError("--image-size and --classes change a network; write candid models NAME with them.")
    if paper is None and figure is not None:
        raise InputError("--figure goes with --paper; write candid models --paper densenet --figure FILE.")
    if paper is not None and (name is not None or as_json):
        raise InputError("--paper stands alone; use no NAME and no --json with it.")
    if paper is not None:
        _show_paper(paper, figure)
    elif name is not None:
        from candid.models.summary import summarize

        summary = summarize(name, classes, image_size)
        show(network_as_dict(summary) if as_json else show_network(summary, terminal_width()))
    else:
        entries = read_entries()
        show([asdict(entry) for entry in entries] if as_json else show_networks(entries, terminal_width()))


@app.command()
def datasets() -> None:
    """List the data sets that have a name; any folder of pictures is one too."""
    from candid.data.catalog import CATALOG

    rows = [
        (
            name,
            f"{sum(entry.sizes.values()):,}",
            f"{entry.download_bytes / 1e6:,.0f} MB" if entry.download_bytes else "-",
            entry.origin,
            entry.terms,
        )
        for name, entry in CATALOG.items()
    ]
    print_table(("name", "pictures", "download", "origin", "terms"), rows)


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe as TOML.")] = None) -> None:
    """List the shipped recipes, or print one."""
    from candid.recipe_tables import show_recipe, show_recipes
    from candid.recipes import GROUPS

    show(show_recipes(GROUPS) if name is None else show_recipe(name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _leave)
    try:
        app(args=arguments, prog_name="candid")
    except CandidError as error:
        if "--debug" in arguments:
            raise
        typer.echo(f"{error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that cannot be written
        if "--debug" in arguments:
            raise
        place = error.filename or "A file"
        typer.echo(
            f"{place} cannot be used: {error.strerror}. Expected a writable place with room; try another.", err=True
        )
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        from candid.out_of_memory import is_out_of_memory

        if "--debug" in arguments or not is_out_of_memory(error):
            raise
        typer.echo("Out of memory; expected more. Close other programs, or use another --device.", err=True)
        sys.exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _resumed_recipe(out: Path | None) -> "Recipe":
    from candid.checkpoint import RunFolder

    if out is None:
        raise InputError("--resume goes on with a run; name it with --out RUN.")
    return RunFolder.open(out).recipe


def _seeds(text: str, seed: int | None) -> list[int]:
    """The seeds of "0,1,2"."""
    if seed is not None:
        raise InputError("--seed and --seeds were given; use one of them.")
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise InputError(f"--seeds is {text!r}; expected different whole numbers from 0 on, such as 0,1,2.")
    return list(map(int, parts))


def _numbers(text: str) -> list[float]:
    """The numbers in "0.485,0.456,0.406"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is no list of numbers; expected one for each channel: 0.485,0.456,0.406.") from None


def _show_paper(name: str, figure: Path | None) -> None:
    from candid.paper_tables import find_paper
    from candid.report.paper_figure import write_paper_figure
    from candid.report.paper_runs import find_runs

    paper = find_paper(name)
    runs = find_runs(Path("runs"), paper)
    place = write_paper_figure(figure or Path(f"{paper.name}-figure-4.png"), paper, runs)
    typer.echo(f"{show_paper(paper, read_entries(), runs, terminal_width())}\n\nFigure: {place}")
