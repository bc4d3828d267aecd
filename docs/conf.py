"""Settings of the documentation site; `make docs` builds it into build/docs."""

import importlib.util
import os
import pathlib
import shutil
import sys

from sphinx.application import Sphinx

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]
# The notebook's kernel starts in docs/ and imports the library from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import mnm_jax  # noqa: E402

project = "mnm_jax"
author = "the mnm_jax authors"
copyright = f"%Y, {author}"
version = release = mnm_jax.__version__

extensions = [
    "myst_nb",
    "public_names",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_ext"]

# Docstrings: Google style, names in single backticks become links where they are public names.
default_role = "py:obj"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autosummary_generate = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape letters"]
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# Pages: MyST Markdown; a page with a Jupyter header is a notebook, which the build executes.
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = "mnm_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

# Equations: MathJax from the package sphinx-mathjax-offline; only its TeX reader, HTML writer and fonts are copied.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}


def copy_mathjax(app: Sphinx, exception: Exception | None) -> None:
    """Copies MathJax into the built site, so that equations need no network."""
    if exception is None and app.builder.format == "html":
        source = pathlib.Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
        target = pathlib.Path(app.outdir, "_static", "mathjax")
        fonts = pathlib.Path("output", "chtml", "fonts")
        shutil.copytree(source / fonts, target / fonts, dirs_exist_ok=True)
        shutil.copy2(source / "tex-chtml.js", target)


def setup(app: Sphinx) -> None:
    app.connect("build-finished", copy_mathjax)
