"""Loading a model in a cold process: seconds and peak memory, beside timm's resnet50 from a local safetensors file.

    python benchmarks/load.py [--model r50_1x] [--repeat 7]

Both files lie in the page cache; each load is a process of its own, interleaved, medians. "ready" is the time from the
start of the process until the model is there; "used" adds a pass that reads every weight, since a mapped file is not
read before. Memory: the peak resident set (VmHWM). Needs the dependency group `bench`. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import zoo

_MEASURE = """
import json, time
began = time.perf_counter()
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
{imports}
imported, base = time.perf_counter() - began, peak()
{load}
ready, loaded = time.perf_counter() - began, peak()
{use}
used, touched = time.perf_counter() - began, peak()
print(json.dumps([imported, ready, used, base, loaded, touched]))
"""
_USE = "total = sum(float(value.sum()) for value in model.state_dict().values())"


def measured(imports: str, load: str = "", use: str = "") -> list[float]:
    """(imported, ready, used) seconds and (imported, loaded, used) bytes of one process."""
    code = _MEASURE.format(imports=imports, load=load, use=use)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="r50_1x")
    parser.add_argument(
        "--cache", type=Path, help="A cache folder that has the pretrained weights; generated unless given."
    )
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cache = options.cache or Path(name)
        file = cache / options.model / "pretrained" / "model.safetensors"
        if not file.exists():
            zoo.save_file(zoo.create(options.model, seed=0).eval(), file)
            zoo.load(options.model, cache_dir=cache, local_files_only=True)  # its hash is recorded
        tasks = {
            "import torch": ("import torch", "", ""),
            "ours": ("import torch, zoo", f"model = zoo.load({options.model!r}, cache_dir={str(cache)!r})", _USE),
        }
        if options.model == "r50_1x":
            import timm
            from safetensors.torch import save_file

            theirs = Path(name) / "timm.safetensors"
            save_file(timm.create_model("resnet50").state_dict(), theirs)
            overlay = {"file": str(theirs)}
            load = f'model = timm.create_model("resnet50", pretrained=True, pretrained_cfg_overlay={overlay!r}).eval()'
            tasks["timm"] = ("import timm", load, _USE)
        runs: dict[str, list[list[float]]] = {task: [] for task in tasks}
        for turn in range(options.repeat + 1):
            for task, parts in tasks.items():
                found = measured(*parts)
                if turn:
                    runs[task].append(found)
        size = file.stat().st_size
    print(f"{options.model}: {size / 1e6:.0f} MB file; torch {torch.__version__}, {options.repeat} repeats, medians")
    print(f"{'':14}{'imports':>9}{'ready':>9}{'used':>9}   {'imports':>9}{'ready':>9}{'used':>9}")
    medians = {task: [statistics.median(column) for column in zip(*found, strict=True)] for task, found in runs.items()}
    for task, row in medians.items():
        seconds = "".join(f"{value:>7.2f} s" for value in row[:3])
        print(f"{task:14}{seconds}   " + "".join(f"{value / 1e6:>6.0f} MB" for value in row[3:]))
    ours = medians["ours"]
    print(f"peak memory of loading above the imports: {(ours[4] - ours[3]) / size:.2f} of the file's size,")
    print(f"and once every weight was used: {(ours[5] - ours[3]) / size:.2f}")
    if "timm" in medians:
        seconds, memory = medians["timm"][1] / ours[1], medians["timm"][4] / ours[4]
        print(f"timm takes {seconds:.2f} times as long and {memory:.2f} times the memory")


if __name__ == "__main__":
    main()
