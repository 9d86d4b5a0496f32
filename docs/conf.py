"""The documentation site: `make docs` writes it to build/docs/.

Pages that say what the code says are made from it at build time (docs/_ext/made.py); nothing is fetched.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dnc import __version__  # noqa: E402

project = "dnc"
author = "the dnc authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docs._ext.made"]
exclude_patterns = ["_*"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 4
smartquotes_action = "D"  # Dashes; quotes stay as they are typed.
highlight_language = "text"
default_role = "code"  # `name` in docstrings is code, as in Markdown.
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
# Said in docs/reference/python.md.
autodoc_type_aliases = {
    name: name for name in ("Array", "Empty", "Feeds", "Floats", "Image", "Outputs", "Pixels", "Progress")
}
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False

html_theme = "furo"
html_title = "dnc"
html_static_path = ["_static"]
html_css_files = ["dnc.css"]
html_js_files = ["dnc.js"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
