"""Converting a published checkpoint: seconds beside a plain copy of the wanted bytes, and peak anonymous memory.

    python benchmarks/convert.py [--model r152_3x_sk] [--folder DIR] [--repeat 3]

Generates a checkpoint of the published size and shape (weights, Momentum, EMA, memory: 10.5 GB for r152_3x_sk) in DIR,
then, in turns: copies the bytes that are wanted out of it, and converts it with `simclr convert` in a process of its
own, whose anonymous memory (RssAnon: what is not backed by a file) is watched. Both end with the file on the disk
(fsync). Linux only.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from checkpoint_writer import published_shapes, write_checkpoint  # noqa: E402
from conftest import RecordedVariables  # noqa: E402

import zoo  # noqa: E402
from zoo.convert import plan, shapes_of  # noqa: E402
from zoo.tf_checkpoint import open_checkpoint  # noqa: E402

_WATCHED = """
import sys, zoo.conversion, zoo.tf_checkpoint
print("imported", flush=True)
sys.stdin.readline()
zoo.conversion.convert(*sys.argv[1:])
"""


def generate(prefix: Path, model: str) -> None:
    """A checkpoint like the authors', unless one is there."""
    if Path(f"{prefix}.index").exists():
        return
    with torch.device("meta"):
        network = zoo.SimCLR(zoo.spec(model))
    print(f"Generating {prefix} ...", flush=True)
    write_checkpoint(prefix, RecordedVariables(published_shapes(network, memory=65536)))


def copy_wanted(prefix: Path, out: Path) -> tuple[float, int]:
    """Seconds to copy the wanted bytes into one file, and how many they are."""
    checkpoint = open_checkpoint(prefix)
    wanted = [checkpoint.entries[name] for name in plan(shapes_of(checkpoint), None).sources.values()]
    began = time.perf_counter()
    with Path(f"{prefix}.data-00000-of-00001").open("rb") as source, out.open("wb") as target:
        for entry in wanted:
            source.seek(entry.offset)
            left = entry.size
            while left:
                piece = source.read(min(left, 16 << 20))
                target.write(piece)
                left -= len(piece)
        target.flush()
        os.fsync(target.fileno())
    return time.perf_counter() - began, sum(entry.size for entry in wanted)


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


def converted(prefix: Path, out: Path) -> tuple[float, int]:
    """Seconds from the call, imports done, and the peak of anonymous memory above that after the imports."""
    command = [sys.executable, "-c", _WATCHED, str(prefix), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        start = peak = anonymous(process.pid)
        began = time.perf_counter()
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            try:
                peak = max(peak, anonymous(process.pid))
            except (OSError, StopIteration):  # it has just ended
                break
            time.sleep(0.01)
        status = process.wait()
        seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"the conversion ended with status {status}")
    return seconds, peak - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="r152_3x_sk")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "simclr-convert")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    prefix = options.folder / "pretrained" / zoo.spec(options.model).authors_name / "model.ckpt-250228"
    generate(prefix, options.model)
    data = Path(f"{prefix}.data-00000-of-00001").stat().st_size
    copies, conversions, peaks = [], [], []
    for turn in range(options.repeat):
        seconds, wanted = copy_wanted(prefix, options.folder / "copy.bin")
        copies.append(seconds)
        (options.folder / "copy.bin").unlink()
        seconds, peak = converted(prefix, options.folder / "out" / "model.safetensors")
        conversions.append(seconds)
        peaks.append(peak)
        shutil.rmtree(options.folder / "out")
        print(
            f"turn {turn}: copy {copies[-1]:.1f} s, conversion {seconds:.1f} s, anonymous +{peak / 1e6:.0f} MB",
            flush=True,
        )
    copy, conversion = statistics.median(copies), statistics.median(conversions)
    print(f"{options.model}: {wanted / 1e9:.2f} GB wanted out of {data / 1e9:.2f} GB")
    print(
        f"plain copy {copy:.1f} s; conversion {conversion:.1f} s, {conversion / copy:.2f} times the copy (allowed: 4)"
    )
    print(f"peak anonymous memory above the imports: {max(peaks) / 1e6:.0f} MB (allowed: 1,000)")


if __name__ == "__main__":
    main()
