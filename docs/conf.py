"""Settings of the documentation site: `make site` builds it into build/site."""

from __future__ import annotations

import os
from pathlib import Path
import sys

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE / "_ext"), str(ROOT / "src")]

import files_outside

import braingen

project = "BrainGen"
author = "The BrainGen authors"
copyright = author
version = release = braingen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "reference_pages",
    "files_outside",
    "public_members",
    "accessible",
]
exclude_patterns = ["_ext", "tutorials/*.ipynb", "tutorials/*.py", "**/sg_execution_times.rst"]
templates_path = ["_templates"]
default_role = "literal"
"""Docstrings quote code with single backquotes."""

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4

autosummary_generate = True
suppress_warnings = ["ref.python"]
"""A public name has two addresses, its module's and the package's: either may be linked."""
autodoc_member_order = "bysource"
autodoc_typehints = "none"
"""Parameters state their types, with shapes and units."""
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"BrainGen {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": False}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

WHEEL = os.environ.get("BRAINGEN_WHEEL", f"braingen-{version}-py3-none-any.whl")
"""Address of the wheel that notebooks install, as the release workflow gives it; else its name."""
INSTALL = f'''# Where BrainGen is missing, as in Colab: its wheel, an address or an uploaded file
import importlib.util
WHEEL = "{WHEEL}"
if importlib.util.find_spec("braingen") is None:
    %pip install -q {{WHEEL}} captum nilearn scikit-learn'''
sphinx_gallery_conf = {
    "examples_dirs": [str(ROOT / "examples" / "tutorials")],
    "gallery_dirs": ["tutorials"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "first_notebook_cell": INSTALL,
    "plot_gallery": os.environ.get("BRAINGEN_TUTORIALS", "run") == "run",
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 10**6,
    "nested_sections": False,
    "capture_repr": ("_repr_html_", "__repr__"),
    "reset_modules": ("matplotlib",),
    "write_computation_times": False,
    "backreferences_dir": None,
}

if files_outside.repository():
    extensions.append("sphinx.ext.linkcode")


def linkcode_resolve(domain: str, info: dict[str, str]) -> str:
    """Address of the module of a Python object in the repository."""
    path = Path("src", *info["module"].split("."))
    file = path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")
    return f"{files_outside.repository()}/{file.as_posix()}"
