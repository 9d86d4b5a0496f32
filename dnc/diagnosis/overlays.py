"""A diagnosis as data that viewers of graphs lay over an engine's model: Model Explorer, and Netron.

Model Explorer (its `node_data_builder`) reads values by the ids of nodes, which of an ONNX model are their names, and
colours a node by the first threshold that its value does not exceed:

    {"name": …, "results": {NODE: {"value": -31.5}}, "thresholds": [{"value": -40, "bgColor": "#…"}]}

Without the id of a graph above them they belong to the one that is shown. Netron (since 8.3: `metadata.Attachment` of
its view.js) takes a file with its signature that is opened, or dropped, while a model is shown; a node's sidebar has
what `target` names it:

    {"signature": "netron:attachment", "metrics": [{"kind": "node", "target": NODE, "name": …, "value": -31.5}]}

The nodes of a section all have the values of its layer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from dnc.diagnosis.report import Diagnosis, LayerDiagnosis
from dnc.files.writing import whole_file

__all__ = ["for_model_explorer", "for_netron", "write_overlay"]

_OWN, _ACCUMULATED, _AT_HEADS = "noise by itself, dB", "accumulated noise, dB", "noise at the heads, dB"
_COLORS = {-50: "#eef3f8", -40: "#d3e3f5", -30: "#fde7b8", -20: "#f9bd7a", -10: "#ec7f5a", 1000: "#c8382b"}
"""Of noise up to so many dB; above 0 dB there is little."""


def for_model_explorer(diagnosis: Diagnosis, places: Mapping[str, str]) -> dict[str, Any]:
    """Node data for Model Explorer: the noise of each layer by itself.

    Args:
        places: the section of each node of the engine's model (`dnc.graph.work.read_places`).
    """
    results = {node: {"value": layer.own} for node, layer in _of_nodes(diagnosis, places) if layer.own is not None}
    thresholds = [{"value": value, "bgColor": color} for value, color in _COLORS.items()]
    return {"name": _OWN, "results": results, "thresholds": thresholds}


def for_netron(diagnosis: Diagnosis, places: Mapping[str, str]) -> dict[str, Any]:
    """An attachment for Netron: noise, the kind of loss, and what to do.

    Args:
        places: the section of each node of the engine's model (`dnc.graph.work.read_places`).
    """
    metrics, metadata = [], []
    for node, layer in _of_nodes(diagnosis, places):
        levels = {_OWN: layer.own, _ACCUMULATED: layer.accumulated, _AT_HEADS: layer.at_heads}
        words = {"loss": layer.kind, "advice": layer.advice}
        about = {"kind": "node", "target": node}
        metrics += [{**about, "name": name, "value": value} for name, value in levels.items() if value is not None]
        metadata += [{**about, "name": name, "value": value} for name, value in words.items() if value]
    return {"signature": "netron:attachment", "metadata": metadata, "metrics": metrics}


def write_overlay(overlay: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes either as a file; raises DncError if it cannot be written."""
    with whole_file(path) as file:
        file.write(json.dumps(overlay, indent=1).encode() + b"\n")


def _of_nodes(diagnosis: Diagnosis, places: Mapping[str, str]) -> Iterator[tuple[str, LayerDiagnosis]]:
    """The nodes of layers whose noise was measured."""
    layers = {f"#{layer.number}": layer for layer in diagnosis.layers if layer.measured}
    return ((node, layers[place]) for node, place in places.items() if place in layers)
