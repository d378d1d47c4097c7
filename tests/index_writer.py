"""A process that adds to, deletes from or reads an index, and says what it has done: to be killed, or watched."""

import os
import sys
from itertools import count, islice

import numpy as np

import app.sqlite_index  # noqa: F401  before the process becomes another user, who may not import it
from app.index import Record, open_index

BATCH = 7


def main(path: str, work: str, start: int = 0, batches: int | None = None) -> None:
    if work in ("read only", "read when asked"):
        os.setgid(65534)
        os.setuid(65534)  # nobody
    index = open_index(path, model="m", dimension=4, create=work in ("add", "delete"))
    for first in islice(count(start, BATCH), batches):
        numbers = range(first, first + BATCH)
        if work == "add":
            index.add([Record(f"id{n}", f"/{n}.jpg", "", b"x" * 2000, np.arange(1, 5) + n) for n in numbers])
            print(*numbers, flush=True)
        elif work == "delete":
            index.delete([f"id{n}" for n in numbers])
            print(*numbers, flush=True)
        else:
            break
    while work == "read":  # until all of the writer's pictures are there
        found = len(index.search(np.ones(4), 100_000, thumbnails=False))
        print(found, flush=True)
        if found == 60 * BATCH:
            break
    if work == "read when asked":  # once for every line of the input
        for _ in sys.stdin:
            hits = index.search(np.ones(4), 100_000)
            print(index.count(), len(hits), len({hit.id for hit in hits} & {"id0", "id199"}), flush=True)
    if work == "read only":
        print(len(index.search(np.ones(4), 100_000)))
        try:
            index.delete(["id1"])
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    path, work, *numbers = sys.argv[1:]
    main(path, work, *map(int, numbers))
