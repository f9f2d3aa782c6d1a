"""How Sphinx makes the documentation: `make docs`, into build/docs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "oodflow"
html_title = "oodflow"
copyright = ""
html_show_copyright = html_show_sphinx = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_click", "sphinx_copybutton"]
exclude_patterns = ["results"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nitpicky = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
python_maximum_signature_line_length = 80
# Commands are copied without what they print.
copybutton_selector = "div.highlight-bash pre, div.highlight-python pre"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["docs.css"]
html_copy_source = False


def _look() -> tuple[dict[str, str], dict[str, str]]:
    """Theme variables, light and dark, of the look that the report and the detector page have."""
    text = (ROOT / "oodflow" / "look.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (.+);", part)) for part in text.split("@media"))
    named = {
        "color-background-primary": "paper",
        "color-background-secondary": "tint",
        "color-background-border": "line",
        "color-foreground-primary": "ink",
        "color-foreground-secondary": "soft",
        "color-foreground-muted": "soft",
        "color-brand-primary": "link",
        "color-brand-content": "link",
        "color-brand-visited": "link",
        "font-stack": "text",
        "font-stack--headings": "heading",
    }
    return tuple(
        {theirs: (light | own)[ours] for theirs, ours in named.items()} for own in ({}, dark)
    )


_light, _dark = _look()
html_theme_options = {"light_css_variables": _light, "dark_css_variables": _dark}


def _options_as_list(app, what, name, thing, options, lines: list[str]) -> None:
    """The options of a function, which its docstring has indented, as a list with their names."""
    if "Options:" not in lines:
        return
    start = lines.index("Options:")
    for number in range(start + 1, len(lines)):
        option, _, text = lines[number].strip().partition(": ")
        lines[number] = f"* ``{option}``: {text}" if option else ""
    lines.insert(start + 1, "")


def _no_options_in_signature(app, what, name, thing, *_) -> tuple[str, str] | None:
    """A function's options are in its list: its signature would say them a second time."""
    listed = what == "function" and "\nOptions:\n" in (thing.__doc__ or "")
    return ("(**options)", "") if listed else None


def setup(app) -> None:
    app.connect("autodoc-process-signature", _no_options_in_signature)
    app.connect("autodoc-process-docstring", _options_as_list)
