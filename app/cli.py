"""The console command ``simclr``: a table of commands, each imported when it is called, and errors in one line."""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup

import zoo
from zoo import registry


class Command(NamedTuple):
    """Where a command lives, ``module:function``, and its line in ``simclr --help``."""

    target: str
    help: str


COMMANDS: dict[str, Command] = {
    "app": Command("app.commands:app", "Serve the page: classify pictures and search a gallery."),
    "classify": Command("app.commands:classify", "Classify picture files with an exported model."),
    "export": Command("app.commands:export", "Write a trained model as one ONNX file."),
    "list": Command("app.commands:list_models", "List the models of the zoo."),
}


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with users' mistakes told in one line (exit 2) and interruption quiet (exit 130)."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output went away: not worth a word
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    return call


class _LazyGroup(TyperGroup):
    """Names and help come from the table; a command's module is imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return _as_command(cmd_name, lambda: None, help=COMMANDS[cmd_name].help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            print(f"error: Unknown command {args[0]!r}.{registry.suggest(args[0], list(COMMANDS))}", file=sys.stderr)
            raise SystemExit(2)
        name, stub, rest = super().resolve_command(ctx, args)
        if stub is None or name is None:
            return name, stub, rest
        module, function = COMMANDS[name].target.split(":")
        load = guarded(lambda: getattr(importlib.import_module(module), function))
        return name, _as_command(name, load(), help=COMMANDS[name].help), rest


def _as_command(name: str, function: Callable[..., Any], *, help: str) -> Any:
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(name, help=function.__doc__ or help)(guarded(function))
    return typer.main.get_command(single)


def _version(wanted: bool) -> None:
    if wanted:
        print(zoo.__version__)
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """SimCLRv2 for people with many images and few labels."""


def main(argv: Sequence[str] | None = None, *, name: str = "simclr") -> None:
    """Run a command; leaves by SystemExit."""
    cli = typer.Typer(
        cls=_LazyGroup,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    cli.callback()(_root)
    group = typer.main.get_command(cli)
    group(args=list(sys.argv[1:] if argv is None else argv), prog_name=name)


if __name__ == "__main__":
    main()
