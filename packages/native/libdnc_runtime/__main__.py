"""python -m libdnc_runtime: prints CMAKE_PREFIX_PATH; with --flags, what a C++ compiler takes."""

import sys

from libdnc_runtime import PREFIX, flags

print(" ".join(flags()) if sys.argv[1:] == ["--flags"] else PREFIX)
