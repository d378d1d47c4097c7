"""lightly's SimCLR as its tutorial has it, on torchvision's ResNet-18; resumed after the last whole epoch."""

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from training import checkpoint
from training.data import ImageSet, evaluation_batches
from training.loop import pick_device
from zoo.model_file import MODEL_FILE

if TYPE_CHECKING:
    from paper_runs import PeerRecipe
    from paper_work import Found, Place

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the defaults of SimCLRTransform


class _Views(Dataset[list[Tensor]]):
    def __init__(self, images: ImageSet, transform: Any) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        with Image.open(self.images.paths[index]) as image:
            views: list[Tensor] = self.transform(image.convert("RGB"))
        return views


def backbone() -> nn.Module:
    """torchvision's ResNet-18 without its classifier: features (B, 512)."""
    import torchvision

    network: nn.Module = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network


def pretrain(recipe: "PeerRecipe", place: "Place", out: Path) -> "Found":
    """Train, and leave checkpoints in ``out``. Raises ValueError if lightly is not installed."""
    try:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform
    except ImportError:
        raise ValueError("This run needs lightly: pip install lightly.") from None
    device = pick_device(place.device)
    torch.manual_seed(recipe.seed)
    network = nn.Sequential(backbone(), SimCLRProjectionHead(512, 512, 128)).to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    batch = min(recipe.batch_size, len(place.train))
    views = _Views(place.train, SimCLRTransform(input_size=recipe.image_size))
    loss_of, identity = NTXentLoss(), repr(recipe)
    kept, modules = out / "checkpoints", {"network": network}
    done, more = checkpoint.restore(kept, modules=modules, optimizer=optimizer, identity=identity)
    history: list[dict[str, float]] = more.get("history", [])
    epochs = round(recipe.epochs)
    for epoch in range(done, epochs):
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        losses = []
        for view0, view1 in DataLoader(
            views, batch_size=batch, shuffle=True, drop_last=True, num_workers=place.grid.workers
        ):
            loss = loss_of(network(view0.to(device)), network(view1.to(device)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        facts = {"loss": sum(losses) / len(losses), "seconds": time.monotonic() - began}
        history.append(facts)
        told = {"history": history}
        checkpoint.save(kept, step=epoch + 1, modules=modules, optimizer=optimizer, identity=identity, more=told)
        print(f"lightly: epoch {epoch + 1} of {epochs}, loss {facts['loss']:.4f}, {facts['seconds']:.0f} s", flush=True)
    save_file(network[0].state_dict(), out / MODEL_FILE)
    return {
        "recipe": dataclasses.asdict(recipe),
        "model": "torchvision's resnet18",
        "parameters": sum(p.numel() for p in network[0].parameters()),
        "seconds": round(sum(facts["seconds"] for facts in history), 1),
        "curves": {"loss": [[epoch + 1, round(facts["loss"], 4)] for epoch, facts in enumerate(history)]},
    }


@torch.inference_mode()
def features(folder: Path, images: ImageSet, place: "Place") -> Tensor:
    """Features (N, 512) through our evaluation transform and lightly's normalisation."""
    network, device = backbone(), pick_device(place.device)
    network.load_state_dict(load_file(folder / MODEL_FILE))
    network.to(device).eval()
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    batches = evaluation_batches(images, size=place.grid.size)
    return torch.cat([network(((batch - mean) / deviation).to(device)).cpu() for batch, _, _ in batches])
