"""Steps of the three stages, alone or as one of several processes: what test_distributed.py runs and compares.

``python distributed_worker.py WORLD CASES STATES OUT``, with MASTER_ADDR and MASTER_PORT in the environment. The
processes are forked when all is imported, which takes longer than their work.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer imports it, for seconds
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from training import checkpoint, distributed
from training.lars import LARS
from training.stages import Distill, Finetune, Pretrain, Stage
from training.step import Step
from training.teachers import ModelTeacher

SK = zoo.Spec(depth=50, width=1 / 16, sk=True)
SIZE, STEPS = 40, 10
BATCHES = (8, 7, 8, 5, 8, 8, 7, 8, 6, 8)  # images of the whole batch: unequal shares of 2 and 4 processes
CASES = ("pretrain", "pretrain_float32", "memory", "micro", "few_images", "finetune", "distill")


def make_stage(case: str) -> Stage:
    """The stage of a case, with seeded values that nothing is symmetric in."""
    dtype = torch.float32 if case == "pretrain_float32" else torch.float64
    classes = 3 if case in ("finetune", "distill") else None
    model = make_model(classes, classify_from=1 if case == "finetune" else 0, projector=case != "distill", seed=0)
    if case == "finetune":
        stage: Stage = Finetune(model, weight_decay=1e-3)
    elif case == "distill":
        teacher = make_model(classes, classify_from=0, projector=False, seed=3)
        stage = Distill(model, ModelTeacher(teacher.to(dtype)), temperature=0.5, alpha=0.6)
    else:
        stage = Pretrain(model, temperature=0.5, memory=20 if case in ("memory", "few_images") else 0, decay=0.9)
    return stage.to(dtype).train()


def make_model(classes: int | None, *, classify_from: int, projector: bool, seed: int) -> zoo.SimCLR:
    """A narrow SK network of one block a group, with running statistics of the images it will see."""
    model = zoo.create(
        SK, num_classes=classes, image_size=SIZE, classify_from=classify_from, projector=projector, seed=seed
    )
    generator = torch.Generator().manual_seed(seed + 1)
    for group in model.backbone.groups:
        del group[1:]
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.momentum = 1.0
        if model.classifier is not None:
            model.classifier.weight.normal_(generator=generator)
        features = model.train().backbone(torch.rand(16, 3, SIZE, SIZE, generator=generator))
        if model.projector is not None:
            model.projector(features)
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.momentum = 0.1
    return model


def batches(case: str) -> Iterator[dict[str, Tensor]]:
    """The whole batches."""
    generator = torch.Generator().manual_seed(5)
    dtype = torch.float32 if case == "pretrain_float32" else torch.float64
    for k, count in enumerate(BATCHES):
        count = 3 if case == "few_images" else count  # fewer than processes: one has none
        views = {f"view{v}": torch.rand(count, 3, SIZE, SIZE, generator=generator, dtype=dtype) for v in (0, 1)}
        label = torch.randint(-1 if case == "distill" else 0, 3, (count,), generator=generator)
        yield views | {"index": (torch.arange(count) + 3 * k) % 30, "label": label}


def run(case: str, states: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Ten steps, each from the state in ``states`` if given; what was before and after each, by name."""
    stage = make_stage(case)
    optimizer = LARS(stage.parameter_groups(), lr=0.1, weight_decay=1e-4)
    for module in stage.kept().values():
        distributed.make_global(module)
    if case == "micro":
        stage.model.eval()  # where batch norm does not mix images, parts give the whole's gradient
    stage.set_network(distributed.data_parallel(stage.path))
    step = Step(stage, optimizer, device=torch.device("cpu"), micro_batch=2 if case == "micro" else 0)
    found: dict[str, Tensor] = {}
    for k, whole in enumerate(batches(case)):
        if states is not None:
            before = {name.split("|")[2]: value for name, value in states.items() if name.startswith(f"{k}|before|")}
            checkpoint.load_state(before, stage.kept(), optimizer)
        else:
            found |= {f"{k}|before|{name}": value.clone() for name, value in _state(stage, optimizer).items()}
        mine = distributed.share(len(whole["view0"]), distributed.rank(), distributed.size())
        metrics = step({name: value[mine] for name, value in whole.items()})
        found[f"{k}|loss"] = distributed.total(metrics["loss"].double())
        gradients = [parameter.grad for parameter in stage.model.parameters() if parameter.requires_grad]
        found[f"{k}|gradient"] = torch.cat([gradient.flatten() for gradient in gradients])
        found |= {f"{k}|after|{name}": value.clone() for name, value in _state(stage, optimizer).items()}
    return found


def _state(stage: Stage, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return checkpoint.state_of(stage.kept(), optimizer)


def work(rank: int, world: int, cases: list[str], states: Path, out: Path) -> None:
    """Be one of torchrun's processes."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    with distributed.processes(torch.device("cpu")):
        for case in cases:
            results = run(case, load_file(states / f"{case}.safetensors"))
            if distributed.is_first():
                save_file(results, out / f"{case}.safetensors")


if __name__ == "__main__":
    count, given = int(sys.argv[1]), sys.argv[2].split(",")
    torch.multiprocessing.start_processes(
        work, (count, given, Path(sys.argv[3]), Path(sys.argv[4])), nprocs=count, start_method="fork"
    )
