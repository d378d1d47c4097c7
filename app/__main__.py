"""``python -m app``: the same as ``simclr app``."""

import sys

from app.cli import main

if __name__ == "__main__":
    main(["app", *sys.argv[1:]], name="python -m")
