"""Records what OpenCV 4's own reader makes of networks of micro/: `python tests/golden/record_opencv.py`.

Its Python needs opencv-python-headless<5 and nothing of this project, so that an environment of its own will do. Writes
opencv/rows.npz; `python -m tests.golden.record` then writes SHA256SUMS. `CASES` is read by the tests as well.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent


class Case(NamedTuple):
    """A network of micro/, and how it is run."""

    micro: str
    replaced: tuple[str, str] = ("", "")
    """What is replaced in the cfg."""
    images: int = 1
    """How many: the input as it is, and turned over."""
    scale: int = 1
    """How often the input is repeated in both directions, for an image of another size than the cfg says."""


CASES = {
    **{
        name: Case(name)
        for name in (
            *("act_leaky", "act_logistic", "act_mish", "act_relu", "act_swish", "act_tanh"),
            *(
                "avgpool",
                "connected",
                "conv_nobn",
                "maxpool_k2s2",
                "region_softmax",
                "reorg_old",
                "route_groups",
                "sam",
            ),
            *("scale_channels_activation", "shortcut", "softmax"),
            *("yolo_new_coords", "yolo_plain", "yolo_scale_x_y", "yolo_two_heads"),
        )
    },
    "region_thresh": Case("region_softmax", ("[region]", "[region]\nthresh=.6")),
    "region_batch": Case("region_softmax", images=2),
    "region_larger": Case("region_softmax", scale=2),
    "softmax_batch": Case("softmax", images=2),
    "yolo_batch": Case("yolo_two_heads", images=2),
    "yolo_larger": Case("yolo_scale_x_y", scale=2),
}
"""What OpenCV 4 reads as it is meant."""


def text_of(case: Case) -> str:
    """The cfg."""
    with np.load(FOLDER / "micro" / f"{case.micro}.npz") as file:
        return str(file["cfg"]).replace(*case.replaced) if case.replaced[0] else str(file["cfg"])


def input_of(case: Case) -> Any:
    """(N, C, H, W)."""
    with np.load(FOLDER / "micro" / f"{case.micro}.npz") as file:
        image = np.tile(file["input"], (1, case.scale, case.scale))
    return np.ascontiguousarray(np.stack([image, image[:, ::-1, ::-1]][: case.images]))


def main() -> None:
    """Writes opencv/rows.npz."""
    cv2: Any = importlib.import_module("cv2")
    arrays, names = {}, {}
    for name, case in CASES.items():
        with np.load(FOLDER / "micro" / f"{case.micro}.npz") as file:
            weights = np.frombuffer(file["weights"].tobytes(), np.uint8)
        net = cv2.dnn.readNetFromDarknet(np.frombuffer(text_of(case).encode(), np.uint8), weights)
        net.setInput(input_of(case))
        names[name] = list(net.getUnconnectedOutLayersNames())
        for output, array in zip(names[name], net.forward(names[name]), strict=True):
            arrays[f"{name}/{output}"] = array
    (FOLDER / "opencv").mkdir(exist_ok=True)
    told = np.array(json.dumps({"version": cv2.__version__, "names": names}))
    np.savez_compressed(FOLDER / "opencv" / "rows.npz", told=told, **arrays)


if __name__ == "__main__":
    main()
