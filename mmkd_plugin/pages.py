"""Pages: the frame of an HTML page that needs neither network nor scripts, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #d5d9de; --soft: #5a6470; --ground: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3a4048; --soft: #a8b2bd; --ground: #22262b; }
}
* { box-sizing: border-box; }
body { max-width: 1240px; margin: 0 auto; padding: 1rem; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0.2rem 0 0.6rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; margin: 0 0 1rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""


def document(title: str, body: str, style: str = '') -> str:
    """A whole page.

    Args:
        title (str): Its title, as text.
        body (str): HTML beneath the title.
        style (str): CSS beside that of every page. Defaults to ''.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f'<style>{STYLE}{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n'
        f'{body}</body>\n</html>\n'
    )


def definitions(facts: Mapping[str, str]) -> str:
    """A list of names and texts.

    Args:
        facts (Mapping[str, str]): Texts by their names.

    Examples:
        >>> definitions({'seed': '0'})
        '<dl><dt>seed</dt><dd>0</dd></dl>'
    """
    known = ''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts.items())
    return f'<dl>{known}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that can be moved sideways on a narrow screen.

    Args:
        head (Sequence[str]): Names of the columns, as text.
        rows (Iterable[Sequence[str]]): Cells of each row, as text.

    Examples:
        >>> '<td>&lt;1&gt;</td>' in table(['a'], [['<1>']])
        True
    """
    heads = ''.join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = ''.join(
        f'<tr>{"".join(f"<td>{escape(cell)}</td>" for cell in row)}</tr>\n' for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}'
        '</tbody></table></div>'
    )
