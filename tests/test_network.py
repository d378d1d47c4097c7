"""The authors' real bucket, by `make test-network`: what the other tests have on loopback. 250 MB are fetched."""

import numpy as np
import pytest
import torch

import zoo
from zoo import bucket, conversion, probe
from zoo.files import cache_dir
from zoo.registry import CATEGORIES

pytestmark = pytest.mark.network


@pytest.mark.parametrize("weights", ["pretrained", "finetuned_1pct"])
def test_the_smallest_published_network(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMCLR_BUCKET_ENDPOINT")
    model = zoo.load("r50_1x", weights=weights)
    assert (model.num_classes, model.facts["step"]) == (1000, CATEGORIES[weights].step)
    assert model.classify_from == CATEGORIES[weights].classify_from
    assert conversion.verify(cache_dir() / "r50_1x" / weights / "model.safetensors").good
    with torch.no_grad():
        features, logits = model(torch.from_numpy(probe.images(224)))
    assert np.isfinite(features.numpy()).all()
    assert logits.std() > 0.1  # a trained classifier tells pictures apart


@pytest.mark.parametrize("folder", [category.folder for category in CATEGORIES.values()])
def test_the_folders_are_there(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMCLR_BUCKET_ENDPOINT")
    with bucket.Bucket() as connection:
        assert any(name.endswith(".index") for name in connection.names(f"simclrv2/{folder}/"))
