"""The graph in Relax, TVM's representation.

graph           node by node, channels last
builder         what Relax wants said, written short
operators       float operators; one function each
integers        8-bit numbers: convolutions and what lies between them
convolutions    convolutions as loops of its own
halves          those in bfloat16
binary          convolutions of signs
pixels          preprocessing of images of any size (--input u8), as one function
suppression     suppression of boxes (--decode graph+nms), as loops of its own
"""

from dnc.targets.tvm.emit.graph import emit, shared_outputs, unsupported

__all__ = ["emit", "shared_outputs", "unsupported"]
