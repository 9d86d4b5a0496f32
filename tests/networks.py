"""Small networks that together use every section and most options: what the fuzzer mutates, and what passes, engines
and weights are tested on.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from dnc.darknet.network import Network
from dnc.darknet.weights import write_weights

__all__ = ["NETWORKS", "RECORDED", "RECURRENT", "REMEMBERING", "TINY", "write_network"]

TINY = """[net]
width=16
height=16
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=14
size=1
stride=1
pad=1
activation=linear

[yolo]
mask=0,1
anchors=10,14, 23,27
classes=2
num=2
"""
"""8 x 8 cells, two anchors, two classes."""

NETWORKS = {
    "tiny": TINY,
    "yolo": """[net]
batch=1
subdivisions=1
width=32
height=32
channels=3
momentum=0.9
letter_box=1
steps=1,2

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish

[maxpool]
size=2
stride=2

[convolutional]
batch_normalize=1
filters=8
groups=2
size=3
stride=1
pad=1
activation=swish

[route]
layers=-1
groups=2
group_id=1

[convolutional]
batch_normalize=1
filters=8
size=1
activation=leaky

[shortcut]
from=-3
activation=linear

[convolutional]
filters=21
size=1
activation=linear

[yolo]
mask=3,4,5
anchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319
classes=2
num=6
scale_x_y=1.05
nms_kind=greedynms
beta_nms=0.6
ignore_thresh=.7

[route]
layers=-4

[upsample]
stride=2

[route]
layers=-1,0

[convolutional]
filters=21
size=1
activation=logistic

[yolo]
mask=0,1,2
anchors=10,14, 23,27, 37,58, 81,82, 135,169, 344,319
classes=2
num=6
scale_x_y=2.0
new_coords=1
""",
    "attention": """[net]
width=16
height=12
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
activation=relu6

[avgpool]

[convolutional]
filters=4
size=1
activation=relu

[convolutional]
filters=8
size=1
activation=logistic

[scale_channels]
from=-4
activation=linear

[convolutional]
filters=8
size=1
activation=logistic

[sam]
from=-2

[convolutional]
filters=1
size=7
pad=1
activation=hard_mish

[scale_channels]
from=-2
scale_wh=1

[implicit]
filters=8
atoms=1

[route]
layers=-2

[shortcut]
from=-3
weights_type=per_channel
weights_normalization=softmax
activation=leaky

[convolutional]
filters=13
size=1
activation=linear

[Gaussian_yolo]
mask=0
anchors=8,8, 10,12
classes=4
num=2
yolo_point=left_top
""",
    "classifier": """[net]
width=19
height=17
channels=3

[crop]
crop_width=16
crop_height=16

[convolutional]
filters=6
size=3
pad=1
activation=elu

[normalization]
size=3
alpha=0.001

[local_avgpool]
size=2
stride=2

[dropout]
probability=.5

[connected]
output=12
activation=tanh
batch_normalize=1

[batchnorm]

[connected]
output=6
activation=linear

[softmax]
groups=2
temperature=2

[cost]
type=sse
""",
    "yolo2": """[net]
width=16
height=16
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
filters=8
size=1
activation=selu

[route]
layers=0

[reorg]
stride=2

[reorg3d]
stride=2

[route]
layers=2

[reorg]
stride=2

[route]
layers=-1,-3

[convolutional]
filters=16
size=1
activation=linear

[region]
anchors=1.08,1.19, 3.42,4.41
classes=3
coords=4
num=2
softmax=1
bias_match=1
thresh=.6
""",
    "yolo1": """[net]
width=12
height=12
channels=3

[convolutional]
filters=4
size=3
stride=2
pad=1
activation=ramp

[local]
filters=4
size=3
stride=2
pad=1
activation=leaky

[connected]
output=48
activation=linear

[detection]
classes=2
coords=4
side=2
num=2
softmax=1
sqrt=1
""",
    "convolutions": """[net]
width=20
height=18
channels=4

[convolutional]
batch_normalize=1
filters=8
size=3
stride_x=2
stride_y=1
pad=1
antialiasing=1
activation=gelu

[maxpool]
size=3
stride=2
antialiasing=2

[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
dilation=2
activation=normalize_channels_softmax_maxval

[convolutional]
share_index=-1
batch_normalize=1
filters=8
size=3
pad=1
activation=plse

[convolutional]
xnor=1
bin_output=1
batch_normalize=1
filters=32
size=3
pad=1
activation=leaky

[convolutional]
xnor=1
filters=8
size=3
padding=1
activation=stair

[convolutional]
binary=1
flipped=1
filters=8
size=3
padding=2
activation=lhtan

[maxpool]
maxpool_depth=1
out_channels=4

[activation]
activation=hardtan

[empty]
""",
    "autoencoder": """[net]
width=16
height=16
channels=1

[dropout]

[convolutional]
filters=4
size=3
stride=2
pad=1
activation=revleaky

[shortcut]
from=-1
weights_type=per_feature
weights_normalization=relu

[upsample]
stride=2
scale=0.5

[convolutional]
filters=2
size=3
pad=1
activation=loggy

[upsample]
stride=-2

[contrastive]
classes=4
""",
    "rnn": """[net]
inputs=12
time_steps=3

[rnn]
batch_normalize=1
output=10
hidden=8
activation=leaky
shortcut=1

[gru]
output=9
batch_normalize=1

[lstm]
output=7

[connected]
output=5
activation=linear

[softmax]
""",
    "crnn": """[net]
width=10
height=8
channels=2

[history]
history_size=3

[crnn]
batch_normalize=1
size=3
pad=1
output=6
hidden=5
activation=leaky

[conv_lstm]
batch_normalize=1
size=3
pad=1
output=6
peephole=1
activation=linear

[conv_lstm]
bottleneck=1
shortcut=1
size=3
pad=1
output=6
lstm_activation=leaky
state_constrain=2

[convolutional]
filters=7
size=1
activation=linear

[yolo]
anchors=4,4
classes=2
num=1
""",
    "vector": """[net]
inputs=7

[connected]
output=6
batch_normalize=1
activation=leaky

[dropout]

[connected]
output=3
activation=linear

[softmax]
""",
}
"""By name; every section of Darknet stands in at least one (test_networks.py holds that)."""

RECURRENT = ("rnn", "crnn")

REMEMBERING = {
    "detector": """[net]
width=32
height=24
channels=3

[convolutional]
batch_normalize=1
filters=6
size=3
stride=2
pad=1
activation=leaky

[history]
history_size=3

[conv_lstm]
batch_normalize=1
size=3
pad=1
output=8
peephole=1
activation=leaky

[crnn]
batch_normalize=1
size=3
pad=1
hidden=6
output=8
activation=leaky

[convolutional]
size=1
filters=21
activation=linear

[yolo]
mask=0,1,2
anchors=5,7, 12,10, 19,16
classes=2
num=3
""",
    "classifier": """[net]
width=12
height=8
channels=3

[convolutional]
filters=4
size=3
stride=2
pad=1
activation=leaky

[rnn]
output=12
hidden=10
activation=tanh

[gru]
output=12

[lstm]
output=12

[connected]
output=6
activation=linear

[softmax]
""",
}
"""Networks that take images and have every kind of layer that remembers."""

RECORDED = """[net]
width=64
height=48
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[conv_lstm]
size=3
pad=1
output=8
peephole=1
activation=leaky

[crnn]
size=3
pad=1
hidden=8
output=12
activation=leaky

[maxpool]
size=2
stride=2

[convolutional]
size=1
filters=21
activation=logistic

[yolo]
mask=0,1,2
anchors=8,11, 18,14, 29,26
classes=2
num=3
"""
"""What Darknet was given for the detections "remembering": no [history], which it always shows one frame."""


def write_network(folder: Path, name: str, cfg: str, *, seed: int = 0, lenient: bool = False) -> Path:
    """Writes NAME.cfg and NAME.weights, random ones; returns the cfg's path."""
    path = folder / f"{name}.cfg"
    path.write_text(cfg, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = Network.load(path, lenient=lenient).with_random_weights(seed)
    with path.with_suffix(".weights").open("wb") as file:
        write_weights(file, network.layers, network.arrays)
    return path
