"""Panels: the kinds of pictures of a gallery, with a function for each kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mmkd_plugin.explanations import Explainer, Explanation
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.visualization.attention import LEAST, attention_grid
from mmkd_plugin.visualization.channels import channels_grid
from mmkd_plugin.visualization.explanations import explanations_grid
from mmkd_plugin.visualization.figure import Grid
from mmkd_plugin.visualization.predictions import detection_grid, segmentation_grid
from mmkd_plugin.visualization.scene import Boxes, Labels, Meta, Scene
from mmkd_plugin.words import did_you_mean

if TYPE_CHECKING:
    from mmkd_plugin.visualization.gallery import Gallery


@dataclass(frozen=True)
class Place:
    """A place where maps of several models are compared.

    Args:
        taps (Mapping[str, Taps]): Taps by the names of the models.
        tau (float): Temperature of the channel-wise loss at this place. Defaults to 1.0.
        explainer (Explainer, optional): Explainer of class scores by the maps, if a term compares
            explanations instead of maps. Defaults to None.
    """

    taps: Mapping[str, Taps]
    tau: float = 1.0
    explainer: Explainer | None = None

    def __str__(self) -> str:
        return ' / '.join(dict.fromkeys(map(str, self.taps.values())))


@dataclass(frozen=True)
class Picture:
    """One picture of a scene.

    Args:
        name (str): Name for the file.
        title (str): Subject of the picture.
        text (str): How to read the picture.
        grid (Grid, optional): The grid to draw; None if there is nothing to see, as ``text`` says.
    """

    name: str
    title: str
    text: str
    grid: Grid | None


@dataclass(frozen=True)
class Column:
    """Maps of all models that belong together.

    Args:
        name (str): The place, or several places if those of the models differ.
        maps (dict[str, Tensor]): Maps ``(1, C, H, W)`` by the names of the models.
    """

    name: str
    maps: dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """The maps and predictions of all models for a scene.

    Args:
        scene (Scene): The scene.
        predictions (dict[str, Labels | None]): Predictions by the names of the models that predict;
            empty if no panel needs them.
        maps (dict[str, dict[Tap, Maps]]): Maps by the names of the models and by their taps.
    """

    scene: Scene
    predictions: dict[str, Labels | None]
    maps: dict[str, dict[Tap, Maps]]


def predictions_panel(gallery: Gallery, seen: Seen) -> list[Picture]:
    """The predictions of all models, against the ground truth and against the teacher.

    Args:
        gallery (Gallery): The models and settings.
        seen (Seen): The predictions.

    Raises:
        ValueError: If a model predicts neither a label map nor boxes.
    """
    scene, rows = seen.scene, [*seen.predictions.items()]
    for name, found in rows:
        if found is None:
            raise ValueError(
                f"the panel 'predictions' draws label maps and boxes, and {name} predicts "
                'neither; leave it out of the panels'
            )
    args = (scene.size, scene.image, scene.truth, rows, gallery.meta, gallery.reference)
    if isinstance(rows[0][1], Boxes):
        text = f'Boxes with a score over {gallery.score_thr:g}.'
        if scene.truth is not None or gallery.reference is not None:
            text += ' Matched: same class, and at least half of the union in common.'
        return [Picture('predictions', 'Predictions', text, detection_grid(*args))]
    text = 'Label maps in the colours of the data set.'
    if scene.truth is not None:
        text += ' mIoU is over the classes in prediction or ground truth of this image.'
    return [Picture('predictions', 'Predictions', text, segmentation_grid(*args))]


def attention_panel(gallery: Gallery, seen: Seen) -> list[Picture]:
    """The attention maps of backbones and necks, or of the chosen places.

    Args:
        gallery (Gallery): The models and settings.
        seen (Seen): The maps.
    """
    text = (
        'How strong the activations are at each position: the mean of their squares over the '
        'channels, as a multiple of its mean over the positions. A column has one scale.'
    )
    if gallery.reference is not None:
        text += f' Cosine: of the map and that of {gallery.reference}.'
    pictures, scene = [], seen.scene
    for places in [gallery.stages] if gallery.chosen else [[place] for place in gallery.stages]:
        columns = columns_of(seen, places)
        rows = [
            (viewer.name, {column.name: column.maps.get(viewer.name) for column in columns})
            for viewer in gallery.viewers
        ]
        grid = attention_grid(scene.size, scene.image, scene.covers, rows, gallery.reference)
        if grid is not None:
            where = ', '.join(map(str, places))
            pictures.append(Picture(f'attention-{where}', f'Attention: {where}', text, grid))
    return pictures


def channels_panel(gallery: Gallery, seen: Seen) -> list[Picture]:
    """The most active channels at each place where terms compare maps.

    Args:
        gallery (Gallery): The models and settings.
        seen (Seen): The maps.
    """
    return [
        _channels_picture(gallery, seen, place, column)
        for place in gallery.compared
        for column in columns_of(seen, [place])
        if all(maps.shape[2:].numel() >= LEAST for maps in column.maps.values())
    ]


def _channels_picture(gallery: Gallery, seen: Seen, place: Place, column: Column) -> Picture:
    rows, scene, classes = [*column.maps.items()], seen.scene, gallery.meta.classes
    leader, names, first = rows[0][0], None, []
    widths = {maps.shape[1] for maps in column.maps.values()}
    if 'head' in column.name.split('.')[0] and widths == {len(classes)}:
        names = [f'class {c}' for c in classes]
        first = _most_predicted(seen.predictions.get(leader), gallery.meta)
    grid = channels_grid(
        scene.size, scene.image, scene.covers, rows, gallery.channels, place.tau, names, first
    )
    text = (
        'Where a channel peaks: its softmax over the positions'
        f'{"" if place.tau == 1 else f" at temperature {place.tau:g}"}, as a multiple of an '
        'even distribution. '
    )
    if names:
        text += f'The classes that {leader} predicts most, then those of least entropy.'
    elif len(widths) == 1:
        text += f'The channels of least entropy in {leader}.'
    else:
        text += 'The models differ in channels, so each shows its own of least entropy.'
    title = f'Most active channels: {column.name}'
    return Picture(f'channels-{column.name}', title, text, grid)


def explanations_panel(gallery: Gallery, seen: Seen) -> list[Picture]:
    """The explanations of the classes that the first model sees most.

    Args:
        gallery (Gallery): The models and settings.
        seen (Seen): The scene.
    """
    return [
        picture
        for place in gallery.explained
        for picture in _explanations_pictures(gallery, seen.scene, place)
    ]


def _explanations_pictures(gallery: Gallery, scene: Scene, place: Place) -> list[Picture]:
    explained = _explained(gallery, scene, place)
    leader, kind = next(iter(explained)), type(place.explainer).__name__
    classes = [int(label) for label in explained[leader].chosen.classes[0] if label >= 0]
    if not classes:
        text = f'{leader} sees no class with a probability over {place.explainer.score_thr:g}.'
        return [Picture(f'explanations-{place}', f'{kind} at {place}', text, None)]
    text = (
        f'What speaks for the classes that {leader} sees most, in {leader} and in the others: '
        f'{kind}, each scaled to its maximum.'
    )
    if len(explained) > 1:
        text += f' Cosine: of the explanation and that of {leader}.'
    pictures = []
    levels = {name: [x[0] for x in found.maps] for name, found in explained.items()}
    for number in range(min(map(len, levels.values()))):
        maps = {name: found[number] for name, found in levels.items()}
        shown = [k for k in range(len(classes)) if any(x[k].any() for x in maps.values())]
        if not shown:  # a level of a pyramid that sees none of the classes
            continue
        where = f'{place}' + (f', map {number}' if len(levels[leader]) > 1 else '')
        grid = explanations_grid(
            scene.size,
            scene.image,
            scene.covers,
            [(name, [x[k] for k in shown]) for name, x in maps.items()],
            [gallery.meta.name(classes[k]) for k in shown],
            leader,
        )
        pictures.append(Picture(f'explanations-{where}', f'{kind} at {where}', text, grid))
    return pictures


def _explained(gallery: Gallery, scene: Scene, place: Place) -> dict[str, Explanation]:
    """The explanations of all models at a place, of the classes that the first model sees most."""
    explainer = copy.copy(place.explainer)
    explainer.max_classes = gallery.classes
    chosen, found = None, {}
    for viewer in gallery.viewers:
        if viewer.name in place.taps:
            taps = place.taps[viewer.name]
            found[viewer.name] = viewer.explain(scene, explainer, taps, chosen)
            chosen = found[viewer.name].chosen
    return found


def columns_of(seen: Seen, places: Sequence[Place]) -> list[Column]:
    """The maps at some places, those of all models together.

    Args:
        seen (Seen): The maps.
        places (Sequence[Place]): The places.

    Raises:
        ValueError: If a place of a model has no map that can be drawn.
    """
    columns = []
    for place in places:
        found = {}
        for name, taps in place.taps.items():
            if name in seen.maps:
                found[name] = [m for tap in taps for m in _named(seen.maps[name][tap], tap)]
                if not found[name]:
                    raise ValueError(
                        f"'{taps}' of {name} gives nothing to draw, which is a map "
                        '(N, C, H, W); choose another place with `taps`'
                    )
        for number in range(max(map(len, found.values()), default=0)):
            here = {n: maps[number] for n, maps in found.items() if number < len(maps)}
            label = ' / '.join(dict.fromkeys(label for label, _ in here.values()))
            columns.append(Column(label, {n: x for n, (_, x) in here.items()}))
    return columns


def _named(maps: Maps, tap: Tap) -> list[tuple[str, Tensor]]:
    """The maps of a tap with their names, without those that have no height and width."""
    if isinstance(maps, Tensor):
        return [(str(tap), maps)] if maps.ndim == 4 else []
    base, where = str(tap).partition('@')[::2]
    where = f'@{where}' if where else ''
    return [(f'{base}[{n}]{where}', x) for n, x in enumerate(maps) if x.ndim == 4]


def _most_predicted(found: Labels | None, meta: Meta) -> list[int]:
    """Classes of a prediction, the most frequent first."""
    if found is None:
        return []
    labels = found.labels if isinstance(found, Boxes) else found
    values, counts = np.unique(labels, return_counts=True)
    return [int(v) for v in values[np.argsort(-counts, kind='stable')] if v < len(meta.classes)]


#: The panels in the order of the page.
PANELS: dict[str, Callable[[Gallery, Seen], list[Picture]]] = {
    'predictions': predictions_panel,
    'attention': attention_panel,
    'channels': channels_panel,
    'explanations': explanations_panel,
}


def check_panels(panels: Sequence[str]) -> None:
    """Refuses unknown panels.

    Args:
        panels (Sequence[str]): Names of panels.

    Raises:
        ValueError: If there are none, or a name is unknown; the message names the closest one.
    """
    if isinstance(panels, str) or not panels:
        raise ValueError(f'panels: expected some of {", ".join(PANELS)}, got {panels!r}')
    for panel in panels:
        if panel not in PANELS:
            hint = did_you_mean(str(panel), PANELS, "'{}'", cutoff=0.5) or '.'
            raise ValueError(f"there is no panel '{panel}'{hint} Panels: {', '.join(PANELS)}")
