"""`tintype export`: bars while it works, a table when it's done, or one JSON object."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path, PurePosixPath

import click

from tintype.bundle.library import library_place
from tintype.bundle.parity import PARITY_KINDS
from tintype.bundle.skew import read_skews
from tintype.cli.say import say, say_json
from tintype.errors import ExportError, printable
from tintype.export.parity import GATES_DB, ParityReport
from tintype.export.sources.source import SourceOptions
from tintype.files import is_there
from tintype.sources.prediction import CHOICES


@click.command()
@click.argument("source")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option(
    "--precision",
    type=click.Choice(tuple(GATES_DB)),
    default="fp32",
    show_default=True,
    help="How weights are stored. fp16 takes half of fp32, the same for a checkpoint of fp16; int8 also computes "
    "in int8, where that stays near enough, and int4 is smaller.",
)
@click.option(
    "--vae",
    type=click.Path(path_type=Path),
    help="A VAE in place of the checkpoint's own: a .safetensors file or a folder.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="CLIP's tokenizer for a one-file checkpoint: a folder with vocab.json and merges.txt, or with tokenizer/ "
    "[default: from the hub's cache].",
)
@click.option(
    "--prediction-type",
    type=click.Choice(CHOICES),
    help="What the UNet predicts, where the checkpoint doesn't say so or is wrong.",
)
@click.option(
    "--parity",
    type=click.Choice(PARITY_KINDS),
    default="quick",
    show_default=True,
    help="What graphs are compared with torch on: real inputs of a small size, or those of whole pictures.",
)
@click.option("--prompts", type=click.Path(path_type=Path), help="A text file to calibrate with, one prompt a line.")
@click.option("--few-steps", type=int, help="How many steps the model was distilled to, where its names don't say.")
@click.option("--tiny-vae", type=click.Path(path_type=Path), help="A folder or file of TAESD, for --decoder tiny.")
@click.option("--base", type=click.Path(path_type=Path), help="Of a ControlLoRA: the checkpoint whose UNet it adds to.")
@click.option(
    "--fast",
    type=click.Path(path_type=Path),
    help="The bundle of a model that was distilled from this one: its denoiser is added, for generate --fast.",
)
@click.option("--name", help="The bundle's name [default: its folder's].")
@click.option("--licence", help="The weights' licence [default: what the checkpoint says].")
@click.option("--skew", type=click.Path(path_type=Path), help="What tintype bench skew wrote, for the bundle to state.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def export(
    source: str,
    bundle: Path | None,
    precision: str,
    vae: Path | None,
    tokenizer: Path | None,
    prediction_type: str | None,
    parity: str,
    prompts: Path | None,
    few_steps: int | None,
    tiny_vae: Path | None,
    base: Path | None,
    fast: Path | None,
    name: str | None,
    licence: str | None,
    skew: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn SOURCE, a checkpoint of Stable Diffusion or its kin, into BUNDLE, a folder that tintype runs.

    SOURCE is a diffusers folder, one .safetensors file as kohya's trainers and A1111 write them, or the address of
    either on the Hugging Face hub: ORG/NAME, ORG/NAME/FILE.safetensors, with @REVISION behind it where one is meant.
    Every graph is compared with the checkpoint in torch; nothing is written when one isn't near enough. What it will
    take is said first. One that was broken off leaves what it has finished beside BUNDLE; the same command goes on.
    SOURCE may be a folder of ONNX graphs as optimum exports it, too, for which torch isn't needed.

    Without BUNDLE it goes to the models' folder (TINTYPE_MODELS, else one below your data folder), where --model NAME
    finds it.
    """
    bundle = bundle or library_place(name or source_name(source))
    from rich.console import Console

    from tintype.export.bundling import export_bundle
    from tintype.export.fast import add_fast
    from tintype.export.progress import Bars, Silent

    console = Console(stderr=True)
    lines = None if prompts is None else read_prompts(prompts)
    with Bars(console) if console.is_terminal else nullcontext(Silent(_note)) as progress:
        report = export_bundle(
            source,
            bundle,
            precision=precision,
            prompts=lines,
            name=name,
            licence=licence,
            few_steps=few_steps,
            parity=parity,
            overwrite=overwrite,
            skew=() if skew is None else read_skews(skew),
            progress=progress,
            options=SourceOptions(
                vae=vae, tiny_vae=tiny_vae, tokenizer=tokenizer, prediction_type=prediction_type, base=base
            ),
        )
    if fast is not None:
        add_fast(bundle, fast)
    if as_json:
        say_json(report.as_dict())
    else:
        show(report, bundle)


def _note(sentence: str) -> None:
    say(f"note: {sentence}", err=True)


def source_name(source: str) -> str:
    """What a checkpoint's bundle is called where nobody says: sd15 of models/sd15/, sd15.safetensors or ORG/sd15@v1."""
    last = Path(source).name if is_there(Path(source)) else PurePosixPath(source.partition("@")[0]).name
    return last.removesuffix(".safetensors")


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that say something. Raises ExportError when there are none, or no such file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"the prompts in {path} can't be read: {error}", fix="give a UTF-8 text file") from None
    found = [line for line in lines if line]
    if not found:
        raise ExportError(f"{path} holds no prompts", fix="write one prompt a line")
    return found


def show(report: ParityReport, bundle: Path) -> None:
    """The parity table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(printable(f"{report.name}, {report.precision}, {report.parity} parity")), title_justify="left"
    )
    rounded = "int8 layers" if report.precision != "int4" else "int4 + int8 layers"
    for heading in ("graph", "stored", rounded, "MiB", "PSNR dB", "gate dB", "guidance error"):
        table.add_column(heading, justify="left" if heading in ("graph", "stored") else "right")
    for graph in report.graphs:
        parity = graph.parity
        four, all_of_them = graph.four_bit_layers, graph.quantized_layers
        counts = f"{four} + {all_of_them - four}" if report.precision == "int4" else f"{all_of_them}"
        layers = f"{counts} of {graph.quantizable_layers}" if graph.quantizable_layers else ""
        guidance = "" if parity.guidance_error is None else f"{parity.guidance_error:.4f}"
        table.add_row(
            graph.role,
            graph.precision,
            layers,
            f"{graph.bytes / 2**20:.1f}",
            f"{parity.psnr_db:.1f}",
            f"{parity.gate_db:.0f}",
            guidance,
        )
    Console().print(table)
    say(f"{bundle}: {report.bundle_bytes / 2**20:.1f} MiB in {report.seconds:.0f} s")
