"""Images a second of our networks at 224 pixels beside timm's, on onnxruntime, torch and OpenVINO, in one run.

    python benchmarks/inference.py [--quick] [--models r50_1x resnet50] [--contenders onnxruntime "openvino fp32"]
        [--threads 1 2] [--batches 1 8 32] [--rounds 3] [--files DIR] [--out benchmarks/results/inference_....md]

Random weights. All contenders of a number of threads and a batch take turns in rounds, in another order each time;
shown are medians and quartiles, and ratios taken round by round. Multiplications of matrices take turns with them:
their speed is the machine's peak. A whole run takes about a quarter of an hour on two quiet cores, most of it batches
of 32 and compiling; Ctrl-C prints what was measured so far. timm and OpenVINO come with the group `bench`; without them
their rows are left out. For Linux: /proc tells how busy others keep the cores.
"""

import argparse
import contextlib
import gc
import io
import math
import os
import platform
import random
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from tqdm import tqdm

import export
import zoo
from export.fold import fold_batch_norms
from export.graph import build, to_proto
from export.quantize import calibrate, quantise
from export.samples import textures
from export.write import OPSET
from zoo.files import written_whole
from zoo.resnet import BatchNorm

SIZE = 224
OURS = ("r18_1x", "r50_1x", "r50_1x_sk")
TIMM = ("resnet18", "resnet50")
WAYS = (  # runtime, numbers
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("torch", "fp32"),
    ("torch channels-last", "fp32"),
    ("torch channels-last", "bf16"),
    ("torch compiled", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "default"),
    ("openvino", "int8"),
)
PEAK = "peak"
GEMM = 1024  # rows and columns of the matrices that measure the peak
TURN = 0.2  # seconds that a turn lasts at least
CALIBRATION = 32  # images

Run = Callable[[np.ndarray], object]


class Contender(NamedTuple):
    """One row: a network (or PEAK), a runtime, the numbers it computes in; ``build(threads)`` makes it ready to run."""

    model: str
    runtime: str
    numbers: str
    build: Callable[[int], Run]

    @property
    def key(self) -> tuple[str, str, str]:
        return self[:3]


Key = tuple[str, str, str]
Cell = tuple[int, int]  # threads, batch
Results = dict[Cell, dict[Key, list[float]]]  # seconds a call, one entry a round


# ---- networks and their files ----------------------------------------------------------------------------------------


def awake(model: nn.Module) -> nn.Module:
    """Random weights, made to work as trained ones do: blocks that end in a gamma of zero get one half, and the running
    statistics come from images, so that values neither vanish nor grow."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm | nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            if not norm.weight.any():
                norm.weight.fill_(0.5)
        model.train()(torch.from_numpy(textures(8, SIZE)))
    return model.eval().requires_grad_(False)


def network(name: str) -> nn.Module:
    if name in OURS:
        return awake(zoo.create(name, num_classes=1000, image_size=SIZE, seed=0, projector=False))
    import timm

    torch.manual_seed(0)
    return awake(timm.create_model(name))


def multiply_adds(model: nn.Module) -> int:
    """Of one image, counted from the shapes of convolutions and dense layers."""
    total = 0

    def count(layer: nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal total
        total += out[0].numel() * layer.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        model(torch.zeros(1, 3, SIZE, SIZE))
    for handle in handles:
        handle.remove()
    return total


def float_file(model: nn.Module, path: Path) -> Path:
    """Ours by our export; timm's by torch's, with the batch free."""
    if isinstance(model, zoo.SimCLR):
        return export.to_onnx(model, path)
    with contextlib.redirect_stdout(io.StringIO()):  # torch's exporter talks of its own insides
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, SIZE, SIZE),),
            path,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            verbose=False,
        )
    return path


def int8_file(model: nn.Module, floats: Path, path: Path) -> Path:
    """Ours with every convolution in integers, without asking what that costs in answers: those of random weights mean
    nothing. timm's by onnxruntime's quantizer as it comes."""
    images = textures(CALIBRATION, SIZE, seed=1)
    if not isinstance(model, zoo.SimCLR):
        return quantized(floats, path, images)
    network = build(fold_batch_norms(model))
    ranges = calibrate(network, np.split(images, 8), opset=OPSET)
    proto, _ = to_proto(quantise(network, ranges, network.convolutions), opset=OPSET, metadata={})
    with written_whole(path) as temporary:
        onnx.save(proto, temporary)
    return path


class _Batches(quantization.CalibrationDataReader):
    def __init__(self, name: str, images: np.ndarray) -> None:
        self.left = iter([{name: images[start : start + 8]} for start in range(0, len(images), 8)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def quantized(floats: Path, path: Path, images: np.ndarray, *, reduce_range: bool = False) -> Path:
    """onnxruntime's own static int8 of a float file: QDQ, u8 activations, s8 weights for each channel; calibrated on
    preprocessed ``images`` (N, 3, S, S) by their least and greatest values."""
    with tempfile.TemporaryDirectory() as folder, written_whole(path) as temporary:
        folded = Path(folder) / "folded.onnx"
        quant_pre_process(os.fspath(floats), os.fspath(folded), skip_symbolic_shape=True)
        name = onnx.load(folded).graph.input[0].name
        quantization.quantize_static(
            os.fspath(folded),
            os.fspath(temporary),
            _Batches(name, images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
        )
    return path


def integer_convolutions(path: Path) -> tuple[int, int]:
    """How many convolutions of a file are computed in integers (both inputs dequantized), and how many there are."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    dequantized = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    return sum(set(node.input[:2]) <= dequantized for node in convolutions), len(convolutions)


# ---- contenders ------------------------------------------------------------------------------------------------------


def on_onnxruntime(model: Path | bytes, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as export.OnnxModel has it
    source = model if isinstance(model, bytes) else os.fspath(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})


def on_openvino(path: Path, threads: int, *, precision: str | None) -> Run:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(os.fspath(path), "CPU", settings).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True, share_outputs=True)


def on_torch(model: nn.Module, *, last: bool, numbers: torch.dtype = torch.float32, compiled: bool = False) -> Run:
    layout = torch.channels_last if last else torch.contiguous_format
    copy = zoo.create(model.spec, num_classes=1000, image_size=SIZE, projector=False)
    copy.load_state_dict(model.state_dict())
    copy.eval().requires_grad_(False).to(dtype=numbers, memory_format=layout)
    call = torch.compile(copy, dynamic=False) if compiled else copy

    def run(images: np.ndarray) -> object:
        with torch.inference_mode():
            return call(torch.from_numpy(images).to(dtype=numbers, memory_format=layout))

    return run


def peaks() -> list[Contender]:
    """Multiplications of matrices, in each kind of numbers by what there is."""
    floats = torch.rand(GEMM, GEMM)
    halves = floats.bfloat16()
    integers = torch.randint(-64, 65, (GEMM, GEMM), dtype=torch.int8)
    unsigned = np.random.default_rng(0).integers(0, 256, (GEMM, GEMM), dtype=np.uint8)

    def product(threads: int, operator: str, left: np.ndarray, right: np.ndarray) -> Run:
        kinds = [helper.np_dtype_to_tensor_dtype(array.dtype) for array in (left, right)]
        result = TensorProto.INT32 if operator == "MatMulInteger" else kinds[0]
        nodes = [helper.make_node(operator, ["left", "right"], ["out"])]
        source = helper.make_tensor_value_info("left", kinds[0], [GEMM, GEMM])
        sink = helper.make_tensor_value_info("out", result, [GEMM, GEMM])
        body = helper.make_graph(nodes, "gemm", [source], [sink], [numpy_helper.from_array(right, "right")])
        proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        run = on_onnxruntime(proto.SerializeToString(), threads)
        return lambda _: run(left)

    def onnx_integers(threads: int) -> Run:
        return product(threads, "MatMulInteger", unsigned, integers.numpy())

    return [
        Contender(PEAK, "torch.matmul", "fp32", lambda _: lambda _: floats @ floats),
        Contender(PEAK, "torch.matmul", "bf16", lambda _: lambda _: halves @ halves),
        Contender(PEAK, "torch._int_mm", "int8", lambda _: lambda _: torch._int_mm(integers, integers)),
        Contender(PEAK, "onnxruntime", "fp32", lambda n: product(n, "MatMul", floats.numpy(), floats.numpy())),
        Contender(PEAK, "onnxruntime", "int8", onnx_integers),
    ]


def contenders(
    name: str, model: nn.Module, ways: list[tuple[str, str]], folder: Path, say: Callable[[str], None]
) -> Iterator[Contender]:
    """The rows of one network; files are written to ``folder`` if they are not there."""
    floats = folder / f"{name}.onnx"
    if not floats.exists():
        float_file(model, floats)
    integers: Path | None = folder / f"{name}.int8.onnx"
    if any(numbers == "int8" for _, numbers in ways):
        assert integers is not None
        try:
            if not integers.exists():
                integers = int8_file(model, floats, integers)
        except ValueError as error:
            say(f"{name}: no int8 file, its rows are left out. {error}")
            integers = None
        if integers is not None:
            say("{}: {} of {} convolutions in integers.".format(integers.name, *integer_convolutions(integers)))
    default = openvino_default()
    for runtime, numbers in ways:
        key = (name, runtime, default if numbers == "default" else numbers)
        if runtime == "onnxruntime":
            path = integers if numbers == "int8" else floats
            if path is not None:
                yield Contender(*key, lambda threads, path=path: on_onnxruntime(path, threads))
        elif runtime == "openvino":
            path = integers if numbers == "int8" else floats
            hint = "f32" if numbers == "fp32" else None
            if path is not None and default:
                yield Contender(*key, lambda threads, path=path, hint=hint: on_openvino(path, threads, precision=hint))
        elif isinstance(model, zoo.SimCLR):
            last, compiled = runtime != "torch", runtime == "torch compiled"
            kind = torch.bfloat16 if numbers == "bf16" else torch.float32
            yield Contender(
                *key,
                lambda _, last=last, kind=kind, compiled=compiled: on_torch(
                    model, last=last, numbers=kind, compiled=compiled
                ),
            )


def openvino_default() -> str:
    """The numbers that OpenVINO computes in here when not told, "" without OpenVINO."""
    try:
        import openvino
    except ImportError:
        return ""
    hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    return "default (bf16)" if hint == "bf16" else "default (fp32)" if hint == "f32" else f"default ({hint})"


# ---- measuring -------------------------------------------------------------------------------------------------------


def ticks() -> tuple[int, int]:
    """(busy, all) clock ticks of all cores since the start; what other machines stole counts as busy."""
    line = Path("/proc/stat").read_text().splitlines()[0]
    values = list(map(int, line.split()[1:9]))  # user nice system idle iowait irq softirq steal
    return sum(values) - values[3] - values[4], sum(values)


class Busy:
    """How much of the cores others used since ``start``: everything busy, less this process."""

    def __init__(self) -> None:
        self.start = (*ticks(), sum(os.times()[:4]))

    def share(self) -> float:
        busy, everything = (now - then for now, then in zip(ticks(), self.start[:2], strict=True))
        own = (sum(os.times()[:4]) - self.start[2]) * os.sysconf("SC_CLK_TCK")
        return max(0.0, (busy - own) / max(1, everything))


def quiet_share(seconds: float = 1.0) -> float:
    """The share of the cores that is busy while this process sleeps."""
    busy = Busy()
    time.sleep(seconds)
    return busy.share()


def turn(run: Run, images: np.ndarray) -> float:
    """Seconds a call. The first warms the caches up and counts only when it is long."""
    began = time.perf_counter()
    run(images)
    first = time.perf_counter() - began
    if first >= TURN:
        return first
    calls = math.ceil(TURN / first)
    began = time.perf_counter()
    for _ in range(calls):
        run(images)
    return (time.perf_counter() - began) / calls


def measure(
    ready: dict[Key, Run], batch: int, rounds: int, bar: "tqdm[Any]", seconds: dict[Key, list[float]]
) -> Iterator[None]:
    """Fill ``seconds`` a round at a time, after one call of each that is not counted; yields before the first round."""
    images = textures(batch, SIZE, seed=batch)
    for key, run in ready.items():
        bar.set_postfix_str(f"warm-up, {' '.join(key)}")
        run(images)
        bar.update()
    yield
    for number in range(rounds):
        order = list(ready)
        random.Random(number).shuffle(order)
        found = {}
        for key in order:
            bar.set_postfix_str(" ".join(key))
            found[key] = turn(ready[key], images)
            bar.update()
        for key in ready:  # whole rounds only, so that ratios are of the same round
            seconds.setdefault(key, []).append(found[key])


def rounds_of(batch: int, rounds: int) -> int:
    """Short calls are noisier and cheaper: more rounds of them."""
    return rounds * max(1, round(5 / math.sqrt(batch)))


# ---- tables ----------------------------------------------------------------------------------------------------------


def spread(values: list[float], digits: str = ".1f") -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"


def peak_of(cell: dict[Key, list[float]], numbers: str) -> tuple[float, str]:
    """Operations a second, an addition and a multiplication counting as two, and by what."""
    found = [
        (2 * GEMM**3 / float(np.median(values)), key[1])
        for key, values in cell.items()
        if key[0] == PEAK and key[2] == numbers
    ]
    return max(found, default=(math.nan, "nothing"))


def numbers_of(key: Key) -> str:
    """fp32, bf16 or int8: whose peak a row is measured against."""
    return key[2].removeprefix("default (").removesuffix(")")


def speeds(results: Results, operations: dict[str, int]) -> Iterator[str]:
    for threads in sorted({cell[0] for cell in results}):
        cells = {batch: found for (count, batch), found in results.items() if count == threads and found}
        if not cells:
            continue
        yield f"\n{threads} thread{'s' * (threads > 1)}: images a second, median (quartiles), and share of the peak\n"
        yield "| network | runtime | numbers |" + "".join(f" batch {batch} | of peak |" for batch in cells)
        yield "|---|---|---|" + "---:|---:|" * len(cells)
        keys = dict.fromkeys(key for found in cells.values() for key in found if key[0] != PEAK)
        for key in keys:
            row = "| {} | {} | {} |".format(*key)
            for batch, found in cells.items():
                rates = [batch / value for value in found[key]]
                used = 2 * operations[key[0]] * float(np.median(rates))
                row += f" {spread(rates)} | {used / peak_of(found, numbers_of(key))[0]:.0%} |"
            yield row


def peak_table(results: Results, busy: dict[Cell, tuple[float, float]]) -> Iterator[str]:
    yield f"\nThe peak: {GEMM} x {GEMM} matrices multiplied, billions of operations a second (2 a multiply-add)\n"
    yield "| threads | batch | fp32 | bf16 | int8 | others' share of the cores before, meanwhile |"
    yield "|---:|---:|---:|---:|---:|---:|"
    for cell, found in results.items():
        if found:
            fastest = [peak_of(found, numbers) for numbers in ("fp32", "bf16", "int8")]
            shown = "".join(f" {value / 1e9:.0f} ({by}) |" for value, by in fastest)
            yield f"| {cell[0]} | {cell[1]} |{shown} {busy[cell][0]:.0%}, {busy[cell][1]:.0%} |"


def comparisons(operations: dict[str, int]) -> Iterator[tuple[str, str, Key, Key]]:
    """What is asked, the goal, and whose seconds are divided by whose: above one the second is the faster."""
    ort = ("onnxruntime", "fp32")
    default = openvino_default() or "default"
    for mine, theirs in (("r18_1x", "resnet18"), ("r50_1x", "resnet50")):
        goal = "at least 1.00" if mine == "r50_1x" else ""
        yield f"speed, {mine} over timm's {theirs}, fp32", goal, (theirs, *ort), (mine, *ort)
        yield (
            f"speed, {mine} over timm's {theirs}, int8",
            "",
            (theirs, "onnxruntime", "int8"),
            (mine, "onnxruntime", "int8"),
        )
    if {"r50_1x", "r50_1x_sk"} <= set(operations):
        arithmetic = operations["r50_1x_sk"] / operations["r50_1x"]
        for numbers in ("fp32", "int8"):
            goal = f"at most 1.50 (arithmetic {arithmetic:.2f})" if numbers == "fp32" else ""
            pair = (("r50_1x_sk", "onnxruntime", numbers), ("r50_1x", "onnxruntime", numbers))
            yield f"time, r50_1x_sk over r50_1x, {numbers}", goal, *pair
    for name in (*OURS, *TIMM):
        goal = "at least 2.00, stretch 2.50" if name in OURS else ""
        yield f"speed, int8 over fp32, {name}", goal, (name, *ort), (name, "onnxruntime", "int8")
    for name in (*OURS, *TIMM):
        yield f"speed, OpenVINO fp32 over onnxruntime fp32, {name}", "", (name, *ort), (name, "openvino", "fp32")
        yield f"speed, OpenVINO {default} over onnxruntime fp32, {name}", "", (name, *ort), (name, "openvino", default)
        int8 = (name, "onnxruntime", "int8"), (name, "openvino", "int8")
        yield f"speed, OpenVINO int8 over onnxruntime int8, {name}", "", *int8
    for name in OURS:
        for runtime, numbers in WAYS:
            if runtime.startswith("torch"):
                yield (
                    f"speed, onnxruntime fp32 over {runtime} {numbers}, {name}",
                    "",
                    (name, runtime, numbers),
                    (name, *ort),
                )


def ratios(results: Results, operations: dict[str, int]) -> Iterator[str]:
    cells = {cell: found for cell, found in results.items() if found}
    yield "\nRatios: of the same round, median (quartiles)\n"
    yield "| what | goal |" + "".join(f" {threads} thr., batch {batch} |" for threads, batch in cells)
    yield "|---|---|" + "---:|" * len(cells)
    for what, goal, first, second in comparisons(operations):
        shown = []
        for found in cells.values():
            both = first in found and second in found  # rows may have been left out
            pairs = zip(found[first], found[second], strict=True) if both else ()
            shown.append(spread([one / other for one, other in pairs], ".2f") if both else "")
        if any(shown):
            yield f"| {what} | {goal} | " + " | ".join(shown) + " |"


def machine() -> str:
    """Processor, cores, and the instructions that matter here."""
    lines = dict(line.partition("\t:")[::2] for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in lines.items()}
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    flags = facts.get("flags", "").split()
    have = [flag for flag in wanted if flag in flags]
    missing = [flag for flag in wanted if flag not in flags]
    cores = len(os.sched_getaffinity(0))
    tail = f", without {' '.join(missing)}" if missing else ""
    return f"{facts.get('model name', platform.machine())}, {cores} cores, {' '.join(have)}{tail}"


def versions() -> str:
    found = []
    for name in ("torch", "onnxruntime", "openvino", "timm"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def document(
    results: Results, busy: dict[Cell, tuple[float, float]], operations: dict[str, int], said: list[str]
) -> str:
    sums = ", ".join(f"{name} {count / 1e9:.2f}" for name, count in operations.items())
    facts = [
        machine(),
        f"Python {platform.python_version()}, {versions()}",
        f"{SIZE} px, random weights; billions of multiply-adds an image: {sums}",
        *said,
    ]
    lines = [
        *(f"- {fact}" for fact in facts),
        *speeds(results, operations),
        *ratios(results, operations),
        *peak_table(results, busy),
    ]
    return "\n".join(lines)


# ---- the whole -------------------------------------------------------------------------------------------------------


def chosen_ways(names: list[str] | None) -> list[tuple[str, str]]:
    ways = [way for way in WAYS if names is None or any(" ".join(way).startswith(name) for name in names)]
    for name in names or ():
        if not any(" ".join(way).startswith(name) for way in WAYS):
            raise ValueError(f"Unknown contender {name!r}. Choose from: {', '.join(map(' '.join, WAYS))}.")
    return ways


def measure_all(
    rows: list[Contender],
    options: argparse.Namespace,
    results: Results,
    busy: dict[Cell, tuple[float, float]],
    after_cell: Callable[[], None],
) -> None:
    cells = [(threads, batch) for threads in options.threads for batch in options.batches]
    steps = sum(1 + rounds_of(batch, options.rounds) for _, batch in cells) * len(rows)
    with tqdm(total=steps, unit="turn", disable=None, smoothing=0.05) as bar:
        for threads in options.threads:
            torch.set_num_threads(threads)
            torch._dynamo.reset()  # compiled code is for a number of threads
            ready = {row.key: row.build(threads) for row in rows}
            for batch in options.batches:
                bar.set_description(f"{threads} threads, batch {batch}")
                before = quiet_share()
                results[threads, batch] = {}
                rounds = rounds_of(batch, options.rounds)
                measuring = measure(ready, batch, rounds, bar, results[threads, batch])
                next(measuring)  # the warm-up, which compiles: in processes that are not counted as our own
                meanwhile = Busy()
                busy[threads, batch] = (before, math.nan)
                try:
                    next(measuring, None)
                finally:
                    busy[threads, batch] = (before, meanwhile.share())
                after_cell()
            del ready, measuring
            gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=[*OURS, *TIMM])
    parser.add_argument(
        "--contenders", nargs="+", metavar="NAME", help="beginnings of: " + ", ".join(map(" ".join, WAYS))
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument(
        "--rounds", type=int, help="of batch 32 (3 of them); small batches get up to five times as many"
    )
    parser.add_argument("--files", type=Path, help="keep the ONNX files in this folder, and take those there")
    parser.add_argument("--out", type=Path, help="write the tables to this Markdown file too, after each cell")
    parser.add_argument("--quick", action="store_true", help="a dry run: r18_1x and resnet18, batch 1, few rounds")
    options = parser.parse_args()
    models, batches, rounds = [*OURS, *TIMM], [1, 8, 32], 3
    if options.quick:
        models, batches, rounds = ["r18_1x", "resnet18"], [1], 1
    options.models = options.models or models
    options.batches = options.batches or batches
    options.rounds = options.rounds or rounds
    try:
        ways = chosen_ways(options.contenders)
    except ValueError as error:
        parser.error(str(error))
    torch._dynamo.config.recompile_limit = 64  # networks and batches are shapes of the same code
    warnings.filterwarnings("ignore", module="onnxruntime|torch")

    said: list[str] = []
    operations: dict[str, int] = {}
    results: Results = {}
    busy: dict[Cell, tuple[float, float]] = {}

    def say(line: str) -> None:
        said.append(line)
        tqdm.write(line, file=sys.stderr)

    def save() -> None:
        if options.out:
            command = shlex.join(["python", "benchmarks/inference.py", *sys.argv[1:]])
            text = (
                f"# Inference on {len(os.sched_getaffinity(0))} cores, {time.strftime('%Y-%m-%d')}\n\n`{command}`\n\n"
            )
            with written_whole(options.out) as temporary:
                temporary.write_text(text + document(results, busy, operations, said) + "\n")

    interrupted = False
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.files or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = peaks()
        try:
            if not openvino_default() and any(runtime == "openvino" for runtime, _ in ways):
                say("OpenVINO is not installed: its rows are left out.")
            for name in tqdm(options.models, desc="files", disable=None):
                try:
                    model = network(name)
                except ModuleNotFoundError:
                    say(f"timm is not installed: {name} is left out.")
                    continue
                operations[name] = multiply_adds(model)
                rows += contenders(name, model, ways, folder, say)
            measure_all(rows, options, results, busy, save)
        except KeyboardInterrupt:
            interrupted = True
            say("Interrupted: the last cell has fewer rounds.")
    save()
    print(document(results, busy, operations, said))
    sys.exit(130 if interrupted else 0)


if __name__ == "__main__":
    main()
