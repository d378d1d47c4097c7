"""Commands that end politely: a user's mistake is one line and status 2, Ctrl-C is status 130."""

import os
import sys
from collections.abc import Sequence

import click

_OPTIONAL = (
    "torch",
    "torchvision",
    "safetensors",
    "google_crc32c",
    "onnx",
    "matplotlib",
)  # not needed to serve


def plain(text: str) -> str:
    """Without what a terminal would obey, and what no encoding has: bytes of a file's name that are no text."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def run_command(command: click.Command, arguments: Sequence[str], *, name: str) -> int:
    """Run a command line and return the exit status. Only errors that are nobody's mistake leave a traceback."""
    try:
        return int(command.main(list(arguments), prog_name=name, standalone_mode=False) or 0)
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, click.Abort) as stop:  # click makes an Abort of the other
        told = str(stop) or str(stop.__cause__ or "")  # a training run says where its checkpoint is
        print(told or "Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away: not worth a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        print(
            f"error: this needs the package {error.name}, which is not here: pip install {error.name}", file=sys.stderr
        )
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
