"""The bundled student on this machine: images a second with onnxruntime and with torch, on the same weights.

    python benchmarks/student.py [--repeat 9]

Interleaved, medians, batches of 1, 8 and 32 preprocessed images; then preprocessing itself.
"""

import argparse
import platform

import numpy as np
import onnxruntime
import torch
from step import interleaved, report

import zoo
from app.engine import bundled_student
from export import OnnxModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    student = OnnxModel(bundled_student())
    eager = zoo.load("r18_1x", weights="imagenette_distilled")
    last = zoo.load("r18_1x", weights="imagenette_distilled").to(memory_format=torch.channels_last)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(f"onnxruntime {onnxruntime.__version__}, {student.image_size} px")
    for batch in (1, 8, 32):
        images = np.random.default_rng(0).random((batch, 3, student.image_size, student.image_size), dtype=np.float32)
        tensor = torch.from_numpy(images)
        tensor_last = tensor.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            tasks = {
                "ours, onnxruntime": lambda images=images: student(images),
                "torch": lambda tensor=tensor: eager(tensor),
                "torch, channels-last": lambda tensor=tensor_last: last(tensor),
            }
            report(f"batch {batch}, images/s", interleaved(tasks, repeat), batch)
    picture = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    size = student.image_size
    report(
        "preprocessing a decoded 500 x 375 image, images/s",
        interleaved({"ours": lambda: zoo.preprocess(picture, size)}, repeat),
        1,
    )


if __name__ == "__main__":
    main()
