"""A diagnosis that nobody made: of every kind of loss, as large as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dnc.diagnosis.report import (
    KINDS,
    Box,
    Diagnosis,
    Head,
    Histogram,
    ImageChange,
    Kept,
    LayerDiagnosis,
    Metric,
    PassRemarks,
    RangeUse,
    Remark,
    Side,
)

__all__ = ["made_up"]

_BINS = 64


def _layer(number: int, head: bool) -> LayerDiagnosis:
    kinds = list(KINDS)
    kind = "" if head else kinds[number % len(kinds)]
    own = None if head else -40.0 + 3 * (number % 7)
    text = (
        "[yolo]\nmask=0,1,2\nclasses=80"
        if head
        else f"[convolutional]\nbatch_normalize=1\nfilters={8 * (number + 1)}\nsize=3\nactivation=leaky"
    )
    section = "yolo" if head else "convolutional"
    return LayerDiagnosis(
        number=number,
        section=section,
        where=f"made-up.cfg:{20 + 10 * number} [{section}] #{number}",
        line=20 + 10 * number,
        text=text,
        shape=(8 * (number + 1), 26, 26),
        precision="fp32" if head else "int8",
        reason="it comes after all products" if head else "",
        own=own,
        typical=None if own is None else own + 4,
        accumulated=-38.0 + 0.5 * number,
        at_heads=None if own is None else own - 6,
        largest_error=0.01 * (number + 1),
        largest_value=6.5,
        kind=kind,
        kinds={} if own is None else {kind: own - 0.5, kinds[(number + 1) % len(kinds)]: own - 9.5},
        advice="" if head else "keep it in float32",
        saturated=0.001 * number,
        saturated_pairs=0.02 if kind == "pairs saturated" else 0.0,
        range=None if head else RangeUse(-0.6, 6.0, -0.65, 6.5, 6.6 / 255),
        histogram=Histogram(-0.65, 6.5, tuple((number + 1) * (_BINS - bin) ** 2 for bin in range(_BINS)), 1000),
        spread=3.5 + number,
        seconds=0.0001 * (number + 1),
    )


def made_up(layers: int = 12, images: Sequence[Path | str] = ("dog.jpg", "horses.jpg")) -> Diagnosis:
    """A diagnosis of so many layers, of which the last is a head, and of these images."""
    rows = tuple(_layer(number, number == layers - 1) for number in range(layers))
    entry = LayerDiagnosis(
        -1, "input", "made-up.cfg:1 [net]", 0, "", (3, 416, 416), "int8", own=-48.5, kind=next(iter(KINDS))
    )
    box = Box("dog", 16, 0.87, 0.12, 0.3, 0.4, 0.55)
    changes = tuple(
        ImageChange(
            path=str(image),
            size=(768, 576),
            noise=-18.0 + number,
            engine=(box, Box("<b>bear & co</b>", 21, 0.31, 0.5, 0.1, 0.3, 0.2, "come")),
            against=(
                box,
                Box("truck", 7, 0.64, 0.6, 0.12, 0.3, 0.18, "gone"),
                Box("cat", 15, 0.26, -0.05, 0.8, 0.3, 0.3, "gone"),
            ),
        )
        for number, image in enumerate(images)
    )
    ranked = sorted((row for row in rows if row.at_heads is not None), key=lambda row: -(row.at_heads or 0))
    best = tuple(row.number for row in ranked[:3])
    return Diagnosis(
        network="made-up.cfg",
        engine=Side(
            "made-up.int8.engine",
            "onnx",
            "int8",
            "AVX2 without VNNI: pairs of products are added up in 16 bits, and saturate",
            {"precision": "int8"},
            {"training only": "[convolutional] dropblock (2)"},
        ),
        against=Side("fp32", "onnx", "fp32"),
        source="2 images of coco.data",
        images=16,
        compared=128,
        layers=(entry, *rows),
        culprits=tuple(row.number for row in ranked),
        heads=(Head("layer011", "made-up.cfg:130 [yolo] #11", (255, 26, 26), 0.126, -18.0, 0.4),),
        metric=Metric("mAP@0.50", 0.3042, 0.3303, 128, labelled=True),
        keep=(
            *(Kept((number,), 1.2 - 0.3 * place, place < 2) for place, number in enumerate(best)),
            Kept(best, 2.3, True),
        ),
        boxes=431,
        gone=37,
        come=21,
        changes=changes,
        passes=(
            PassRemarks("fold-batchnorm", (Remark("made-up.cfg:20 [convolutional] #0", "folded"),), ()),
            PassRemarks(
                "quantize",
                tuple(Remark(row.where, "8 bits") for row in rows[:-1]),
                (Remark(rows[-1].where, "no product comes after it"),),
            ),
        ),
        seconds=0.0123,
        notes=("the values of 2 layers are nowhere: the engine has joined them with others",),
    )
