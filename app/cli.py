"""The console command ``simclr``: a table of commands, each imported when it is called."""

import importlib
import sys
from collections.abc import Sequence

import click

import zoo
from zoo.console import run_command
from zoo.registry import suggest

COMMANDS = {  # name -> where it lives, its line in `simclr --help`
    "app": ("app.commands:app", "Serve the page: classify pictures and search a gallery."),
    "run": ("app.run:run", "All three stages in a row: images and a few labels to an ONNX student."),
    "check": ("training.cli_data:check", "Look at all images once: sizes, copies, labels, what cannot be read."),
    "views": ("training.cli_data:views", "Draw images beside their augmented views, as training sees them."),
    "pretrain": ("training.cli:pretrain", "Stage 1: contrastive pretraining on images without labels."),
    "finetune": ("training.cli:finetune", "Stage 2: fine-tuning on few labels, or linear evaluation."),
    "distill": ("training.cli:distill", "Stage 3: distillation into a student."),
    "score": ("training.cli_score:score", "Let a teacher answer once, for students to learn from without it."),
    "evaluate": ("training.cli:evaluate", "Accuracy of a model on labelled images."),
    "embed": ("training.cli_select:embed", "Vectors of folders of images, in shards, by one process or many."),
    "pick": ("training.cli_select:pick", "Which images to label: a list to fill in and a contact sheet."),
    "subset": ("training.cli_select:subset", "A list of a share of the labels, of every class alike."),
    "export": ("app.commands:export", "Write a trained model as one ONNX file."),
    "classify": ("app.commands:classify", "Classify picture files with an exported model."),
    "index": ("app.cli_index:index", "Embed folders of pictures into an index, or bring it up to date."),
    "search": ("app.cli_index:search", "Find the pictures of an index that are most like one."),
    "duplicates": ("app.cli_index:duplicates", "Find pictures that are there twice, or nearly."),
    "outliers": ("app.cli_index:outliers", "Find the pictures that are least like the others."),
    "list": ("app.commands:list_models", "List the models of the zoo."),
    "pull": ("zoo.cli:pull", "Fetch weights into the cache."),
    "convert": ("zoo.cli:convert", "Convert a TensorFlow checkpoint, or a pickle, to safetensors."),
    "verify": ("zoo.cli:verify", "Verify model files: hash, tensors, outputs."),
    "bundle": ("zoo.cli:bundle", "Make a folder of weights that works with no network."),
    "lock": ("zoo.cli:lock", "Show or forget the recorded SHA-256 of weights."),
    "push": ("zoo.cli:push", "Push a model, its card and its ONNX file to the Hugging Face Hub."),
}


class _LazyGroup(click.Group):
    """Names and help come from the table, so that ``simclr --help`` imports nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            raise click.UsageError(f"Unknown command {cmd_name!r}.{suggest(cmd_name, list(COMMANDS))}")
        module, function = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=_LazyGroup)
@click.version_option(zoo.__version__, message="%(version)s")
def simclr() -> None:
    """SimCLRv2 for people with many images and few labels."""


def main(arguments: Sequence[str] | None = None, *, name: str = "simclr") -> None:
    """Run a command; leaves by SystemExit."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    raise SystemExit(run_command(simclr, given or ["--help"], name=name))


if __name__ == "__main__":
    main()
