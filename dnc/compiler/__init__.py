"""Compiling: from cfg and weights to an engine."""

from __future__ import annotations

from dnc.compiler.compiling import compile, explain

__all__ = ["compile", "explain"]
