"""How few kernels networks become where kinds may be taken that no GPU has run, and what is known of these."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm.relax", exc_type=ImportError)

import tvm

from dnc.darknet.cfg import find_cfg
from dnc.darknet.lower import lower
from dnc.darknet.network import Network as Darknet
from dnc.targets.cuda.lowering import Network
from dnc.targets.cuda.target import Cuda
from dnc.targets.tvm.emit import emit
from dnc.targets.tvm.provenance import kernels_of


@pytest.mark.parametrize(
    ("name", "most"),
    [
        # Of 106: a block of EfficientNet is an expansion, a depthwise convolution with its numbers, and a projection.
        ("efficientnet-b0", 58),
        # Of 39: six concatenations but one that is read in two places, three parts of maps, two heads.
        ("yolov4-tiny", 29),
    ],
)
def test_joining(name: str, most: int) -> None:
    """Each section is computed by some kernel, as before."""
    target = Cuda({"backend": "tvm", "arch": "sm_90", "precision": "fp16"}).candidates()[0]
    model = lower(Darknet.load(find_cfg(name), None).with_random_weights(), batch=1)
    target.pipeline().run(model)
    host = tvm.target.Target({"kind": "llvm"})
    sections = []
    for new in (False, True):
        network = Network(emit(model), ["sm_90"], host, lambda _: b"", new=new)
        kernels = kernels_of(network.loops)
        sections.append({section for _, known in kernels for section in known.split("+") if section})
        rules = {function: rule for function, (_, rule, _) in network.functions().items()}
    assert {section.partition("/")[0] for section in sections[0]} == {each.partition("/")[0] for each in sections[1]}
    assert sum(len(rules[function].split("+")) for function, _ in kernels if function in rules) <= most
    assert not any(rule.startswith("none") for rule in rules.values())
