"""Settings of the documentation site. ``make docs`` builds it into ``build/site``.

The source folder is the root of the repository, so that a link of a page, to another page or to a
recipe, is the same here and on GitHub::

    python -m sphinx -c docs . build/site
"""

import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

from mmkd_plugin.version import __version__

project = 'MMKD'
author = 'The MMKD authors'
copyright = author
release = version = __version__

root_doc = 'docs/index'
include_patterns = ['*.md', 'docs/**', 'configs/README.md', 'benchmarks/**/*.md']
exclude_patterns = [
    *('.*', '.*/**', 'build', 'data', 'mmkd_plugin', 'tests', 'tools', 'work_dirs'),
    'configs/*/**',
]

extensions = [
    'myst_nb',  # Markdown and notebooks
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinxcontrib.mermaid',
]

# Markdown as GitHub reads it: anchors of headings, diagrams and formulas in fenced blocks.
myst_heading_anchors = 4
myst_fence_as_directive = ['mermaid', 'math']
suppress_warnings = ['myst.xref_ambiguous']

# `make docs` executes the notebooks; a page is then the notebook with what it printed and drew.
nb_execution_mode = 'off'
nb_execution_raise_on_error = True
nb_execution_timeout = 600

# The reference is of our own names: those of torch, numpy and OpenMMLab lead nowhere here.
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!mmkd_plugin).*')]
nitpick_ignore = [  # internal names that docstrings mention
    ('py:mod', 'mmkd_plugin.losses.numerics'),
    ('py:mod', 'mmkd_plugin.terms.needs'),
    ('py:func', 'mmkd_plugin.taps.dry_run.read_once'),
]
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # the docstrings have the types
autodoc_default_options = {'members': True, 'undoc-members': False}
napoleon_use_ivar = True

html_theme = 'furo'
html_title = f'MMKD {release}'
html_theme_options = {'navigation_with_keys': True}
html_copy_source = False
html_math_renderer = 'mathml'  # browsers draw it themselves, without a script from elsewhere


def inline_formula(writer, node):
    """Writes a formula in a line."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def formula(writer, node):
    """Writes a formula on lines of its own."""
    writer.body.append(tex2mathml(node.astext(), as_block=True))
    raise nodes.SkipNode


def setup(app):
    """Adds the formulas."""
    app.add_html_math_renderer('mathml', (inline_formula, None), (formula, None))
