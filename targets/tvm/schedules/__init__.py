"""Schedules: how the loops of each function run on a CPU. Nothing is measured; the same network gives the same code.

`apply` takes a Relax module after LegalizeOps, FuseOps and FuseTIR, its images (N, H, W, C) and its weights
(kh, kw, I, O), and gives it back with every function written anew:

    pointwise     1 x 1 convolutions, and with dense.py products of matrices
    spatial       k x k convolutions, strided, dilated, grouped; the first layer
    winograd      those of 3 x 3 that the graph wants with fewer multiplications (`dnc.targets.tvm.winograd`)
    depthwise     convolutions of single channels, and pools
    binary        convolutions of signs, by counts of bits or by lookups (tables.py); bits.py is what both need
    signs         the signs of numbers as bits, where no other rule packs them along with what it computes
    reduction     sums, products and extremes along axes
    injective     everything that computes each element by itself
    fallback      the rest: loops as TVM wrote them, vectorized and shared among the threads

stages.py reads a function as a list of stages and cuts it into segments, on each of which the rules are tried;
window.py knows a convolution or a pool when it sees one; dot.py multiplies float32, 8-bit numbers and bfloat16;
tiles.py chooses what is held in registers, machine.py says how many there are; rewriting.py puts the kernels into the
module, and stores weights that are constants in the order in which the kernel reads them. Which rules wrote a function
stands in its attribute `dnc.rule`; `report` lists them. What interleave.py and `dnc.targets.tvm.emit.suppression`
write for the graph is left as it is.
"""

from __future__ import annotations

from dnc.targets.tvm.schedules.machine import Machine
from dnc.targets.tvm.schedules.rewriting import apply, report
from dnc.targets.tvm.schedules.winograd import gain

__all__ = ["Machine", "apply", "gain", "report"]
