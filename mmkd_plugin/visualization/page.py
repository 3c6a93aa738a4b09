"""The page: one HTML file and its pictures, readable without a network and without scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from mmkd_plugin.pages import definitions, document
from mmkd_plugin.saving import write_text
from mmkd_plugin.visualization.figure import draw, save
from mmkd_plugin.visualization.panels import Picture

THUMB = 760  # pixels, width of a small picture on the page

STYLE = """
th[colspan] { text-align: center; }
.pictures { columns: 2 480px; column-gap: 1.2rem; }
figure { margin: 0 0 1.2rem; padding: 0.8rem; background: var(--ground); border-radius: 8px;
  break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; margin-top: 0.5rem; border-radius: 4px;
  background: #fff; }
figcaption p { margin: 0; font-size: 0.9rem; color: var(--soft); }
"""


@dataclass
class Entry:
    """An image on the page.

    Args:
        name (str): Name of the image.
        anchor (str): Anchor of its section, and beginning of the names of its files.
        numbers (dict[str, dict[str, str]]): Numbers by model and by kind.
        pictures (list[str]): HTML of its pictures. Defaults to an empty list.
    """

    name: str
    anchor: str
    numbers: dict[str, dict[str, str]]
    pictures: list[str] = field(default_factory=list)


class Page:
    """Writes pictures to a folder, and a page that shows them.

    Args:
        folder (Path): An empty folder, or one that does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []

    def add(
        self, name: str, pictures: Sequence[Picture], numbers: dict[str, dict[str, str]]
    ) -> None:
        """Writes the pictures of an image.

        Args:
            name (str): Name of the image.
            pictures (Sequence[Picture]): The pictures.
            numbers (dict[str, dict[str, str]]): Numbers by model and by kind.
        """
        entry = Entry(name, f'{len(self.entries) + 1:03d}-{file_name(name)}', numbers)
        for folder in ('images', 'thumbs'):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            caption = (
                f'<figcaption><h3>{escape(picture.title)}</h3>'
                f'<p>{escape(picture.text)}</p></figcaption>'
            )
            image = '' if picture.grid is None else self._image(entry, picture)
            entry.pictures.append(f'<figure>{caption}{image}</figure>')
        self.entries.append(entry)

    def _image(self, entry: Entry, picture: Picture) -> str:
        """Writes a picture in both sizes, and returns the HTML that shows it."""
        stem = f'{entry.anchor}-{file_name(picture.name)}'
        pixels = draw(picture.grid)
        save(pixels, self.folder / f'images/{stem}.png')
        width, height = save(pixels, self.folder / f'thumbs/{stem}.jpg', THUMB)
        rows = ', '.join(row for row, _ in picture.grid.rows)
        columns = ', '.join(picture.grid.columns)
        alt = f'{picture.title}, image {entry.name}. Rows: {rows}. Columns: {columns}.'
        return (
            f'<a href="images/{stem}.png"><img src="thumbs/{stem}.jpg" width="{width}" '
            f'height="{height}" loading="lazy" alt="{escape(alt)}"></a>'
        )

    def write(self, title: str, facts: dict[str, str]) -> Path:
        """Writes ``index.html``.

        Args:
            title (str): Title of the page.
            facts (dict[str, str]): Facts at the top of the page: models, files, places.

        Returns:
            Path: The written file.
        """
        sections = ''.join(
            f'<section id="{e.anchor}"><h2>{escape(e.name)}</h2>'
            f'<div class="pictures">{"".join(e.pictures)}</div></section>\n'
            for e in self.entries
        )
        file = self.folder / 'index.html'
        body = f'{definitions(facts)}\n{self._table()}\n{sections}'
        write_text(file, document(title, body, STYLE))
        return file

    def _table(self) -> str:
        """The HTML of the table of all numbers."""
        found = dict.fromkeys(
            (kind, model)
            for entry in self.entries
            for model, values in entry.numbers.items()
            for kind in values
        )
        groups: dict[str, list[str]] = {}
        for kind, model in found:
            groups.setdefault(kind, []).append(model)
        heads = [(kind, model) for kind, models in groups.items() for model in models]
        spans = ''.join(
            f'<th colspan="{len(models)}" scope="colgroup">{escape(kind)}</th>'
            for kind, models in groups.items()
        )
        models = ''.join(f'<th scope="col">{escape(model)}</th>' for _, model in heads)
        rows = ''.join(
            f'<tr><td><a href="#{e.anchor}">{escape(e.name)}</a></td>'
            + ''.join(
                f'<td>{escape(e.numbers.get(model, {}).get(kind, ""))}</td>'
                for kind, model in heads
            )
            + '</tr>\n'
            for e in self.entries
        )
        span = ' rowspan="2"' if heads else ''
        head = f'<tr><th{span} scope="col">image</th>{spans}</tr>'
        head += f'<tr>{models}</tr>' if heads else ''
        return (
            f'<div class="wide"><table><thead>{head}</thead><tbody>\n{rows}</tbody></table></div>'
        )


def file_name(text: str) -> str:
    """Makes a name for a file from any text.

    Args:
        text (str): The text.

    Examples:
        >>> file_name("attention-backbone / neck[0]")
        'attention-backbone-neck-0'
    """
    return re.sub(r'[^\w.]+', '-', text).strip('-.') or 'image'
