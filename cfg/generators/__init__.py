"""Writes the networks of cfg/ that come from tables: one module per family, with `networks()`.

A family is one file in this folder; the folder is scanned, and no list is edited. `python -m cfg.generators` writes
what they give. The other networks of cfg/ are written by hand.
"""

from __future__ import annotations

import importlib
import pkgutil

__all__ = ["generated"]

_NO_FAMILIES = ("__main__", "text")


def generated() -> dict[str, str]:
    """The text of every generated .cfg by its file's name, sorted.

    Raises:
        CfgError: a family wrote something that is no network.
    """
    texts: dict[str, str] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name in _NO_FAMILIES:
            continue
        for network in importlib.import_module(f"{__name__}.{module.name}").networks():
            assert network.file not in texts, f"two networks are called {network.file}"
            texts[network.file] = network.text(f"cfg/generators/{module.name}.py")
    return dict(sorted(texts.items()))
