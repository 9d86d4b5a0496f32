from __future__ import annotations

from dataclasses import replace

from dnc.diagnosis.report import Kept, Metric
from dnc.diagnosis.words import summary
from tests.diagnosis.made_up import made_up


def test_a_summary() -> None:
    assert summary(made_up()) == [
        "made-up.int8.engine (onnx, int8) is compared with fp32 (onnx, fp32): what they find on 128 images, their "
        "layers on 16 of them.",
        "8-bit arithmetic AVX2 without VNNI: pairs of products are added up in 16 bits, and saturate.",
        "mAP@0.50 is 30.42%, that of fp32 33.03%: 2.61 points less, on labels of 128 images.",
        "Of 431 results that fp32 has with a confidence of 25% or more, 37 are gone; 21 have come.",
        "Most is lost at 6 convolutional (step too large), 5 convolutional (range cut) and 4 convolutional "
        "(arithmetic).",
        "With layers 6, 5 and 4 in float32, 2.30 points are won (measured): --keep 6,5,4",
    ]


def test_a_gain_and_nothing_to_gain() -> None:
    gain = replace(
        made_up(),
        metric=Metric("top-1", 0.852, 0.85, 1, labelled=False),
        culprits=(-1,),
        keep=(Kept((4,), 0.0, measured=True),),
        boxes=0,
    )
    assert summary(gain)[2:] == [
        "top-1 is 85.20%, that of fp32 85.00%: 0.20 points more, on what float32 finds of 1 image.",
        "Most is lost at the network's input (range cut).",
    ]
    same = replace(gain, metric=Metric("top-1", 0.85, 0.85, 9, labelled=True), culprits=())
    assert summary(same)[2:] == [
        "top-1 is 85.00%, that of fp32 85.00%: the same, on labels of 9 images.",
        "No layer loses anything that matters.",
    ]
