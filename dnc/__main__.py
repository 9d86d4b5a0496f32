"""python -m dnc"""

from __future__ import annotations

from dnc.cli import main

main()
