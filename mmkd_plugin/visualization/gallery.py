"""Gallery: the pictures of one image, a row for each model, and its numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from mmkd_plugin.explanations import Explainer
from mmkd_plugin.losses import ChannelWiseLoss
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.terms.term import Term
from mmkd_plugin.visualization.attention import LEAST, attention_grid
from mmkd_plugin.visualization.channels import channels_grid
from mmkd_plugin.visualization.explanations import (
    default_explainer,
    default_tap,
    explanations_grid,
)
from mmkd_plugin.visualization.figure import Grid
from mmkd_plugin.visualization.predictions import (
    detection_grid,
    numbers,
    segmentation_grid,
)
from mmkd_plugin.visualization.scene import Boxes, Labels, Meta, Scene, Viewer
from mmkd_plugin.words import did_you_mean


@dataclass(frozen=True)
class Place:
    """Where maps of several models are compared.

    Args:
        taps (Mapping[str, Taps]): By the name of the model.
        tau (float): Temperature of the channel-wise loss there is. Defaults to 1.0.
        explainer (Explainer, optional): What explains class scores by the maps, where a term
            compares explanations instead of maps. Defaults to None.
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
        name (str): For the file.
        title (str): What it shows.
        text (str): How to read it.
        grid (Grid, optional): What to draw; None where there is nothing to see, as ``text`` says.
    """

    name: str
    title: str
    text: str
    grid: Grid | None


@dataclass(frozen=True)
class Column:
    """Maps of all models that belong together.

    Args:
        name (str): The place, or the places where they differ.
        maps (dict[str, Tensor]): ``(1, C, H, W)``, by the name of the model.
    """

    name: str
    maps: dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """What the models make of a scene.

    Args:
        scene (Scene): The scene.
        predictions (dict[str, Labels | None]): By the name of the model; empty if no panel asks.
        maps (dict[str, dict[Tap, Maps]]): What taps read, by the name of the model.
    """

    scene: Scene
    predictions: dict[str, Labels | None]
    maps: dict[str, dict[Tap, Maps]]


@dataclass
class Gallery:
    """Makes the pictures of scenes.

    Args:
        viewers (Sequence[Viewer]): The models, in the order of the rows; the first teacher first.
        panels (Sequence[str], optional): Some of ``PANELS``; None for all that can be drawn.
        meta (Meta): Names and colours of the classes.
        places (Sequence[Place]): Where the panels of maps look. Defaults to ``()``.
        reference (str, optional): The teacher that the others are compared with. Defaults to None.
        chosen (bool): Whether the user chose the places, so that all panels of maps look there.
            Defaults to False.
        score_thr (float): Boxes with a lower score are left out. Defaults to 0.3.
        channels (int): How many channels. Defaults to 5.
        classes (int): How many classes of an image are explained at most. Defaults to 4.
    """

    viewers: Sequence[Viewer]
    panels: Sequence[str] | None
    meta: Meta
    places: Sequence[Place] = ()
    reference: str | None = None
    chosen: bool = False
    score_thr: float = 0.3
    channels: int = 5
    classes: int = 4

    def __post_init__(self) -> None:
        possible = dict.fromkeys(PANELS, '')
        if not self._compared:
            possible['channels'] = (
                'where terms of `distill` compare maps, and this config has none that does'
            )
        if not self._explained:
            possible['explanations'] = (
                'why a class is seen, and the models have no class scores that can be explained '
                '(conv_seg of a segmentor, those of a one-stage detector)'
            )
        if self.panels is None:
            self.panels = [name for name, problem in possible.items() if not problem]
        check_panels(self.panels)
        for panel in self.panels:
            if possible[panel]:
                raise ValueError(
                    f"the panel '{panel}' shows {possible[panel]}; leave it out of the panels"
                    + (', or choose taps' if panel == 'channels' else '')
                )

    @property
    def _compared(self) -> list[Place]:
        """Where maps are compared."""
        return [place for place in self.places if place.explainer is None]

    @property
    def _explained(self) -> list[Place]:
        """What explains: the terms that compare explanations, else Grad-CAM."""
        places = [place for place in self.places if place.explainer is not None]
        if places:
            return places
        student = next(v.model for v in self.viewers if v.side == 'student')
        teacher = next((v.model for v in self.viewers if v.side == 'teacher'), None)
        explainer = default_explainer(student, teacher)
        if explainer is None:
            return []
        if self.chosen:
            return [Place(place.taps, explainer=explainer) for place in self.places]
        taps = {viewer.name: default_tap(viewer.model) for viewer in self.viewers}
        return [Place(taps, explainer=explainer)]

    def pictures(self, scene: Scene) -> tuple[list[Picture], dict[str, dict[str, str]]]:
        """The pictures of a scene, and the numbers of each model."""
        predictions: dict[str, Labels | None] = {}
        if 'predictions' in self.panels or 'channels' in self.panels:
            for viewer in self.viewers:
                found = viewer.predict(scene)
                if isinstance(found, Boxes):
                    found = found.over(self.score_thr)
                predictions[viewer.name] = found
        seen = Seen(scene, predictions, self._read(scene))
        pictures = [picture for panel in self.panels for picture in PANELS[panel](self, seen)]
        teacher = predictions.get(self.reference)
        scores = {
            name: numbers(
                found, scene.truth, None if name == self.reference else teacher, self.meta
            )
            for name, found in predictions.items()
            if found is not None
        }
        return pictures, scores

    def _read(self, scene: Scene) -> dict[str, dict[Tap, Maps]]:
        """What all taps read in each model, in one forward."""
        places: list[Place] = []
        if 'attention' in self.panels:
            places += self._stages
        if 'channels' in self.panels:
            places += self._compared
        return {v.name: v.read(scene, _taps(places, v.name)) for v in self.viewers}

    def _predictions_panel(self, seen: Seen) -> list[Picture]:
        scene, rows = seen.scene, [*seen.predictions.items()]
        for name, found in rows:
            if found is None:
                raise ValueError(
                    f"the panel 'predictions' draws label maps and boxes, and {name} predicts "
                    'neither; leave it out of the panels'
                )
        args = (scene.size, scene.image, scene.truth, rows, self.meta, self.reference)
        if isinstance(rows[0][1], Boxes):
            text = f'Boxes with a score over {self.score_thr:g}.'
            if scene.truth is not None or self.reference is not None:
                text += ' Matched: same class, and at least half of the union in common.'
            return [Picture('predictions', 'Predictions', text, detection_grid(*args))]
        text = 'Label maps in the colours of the data set.'
        if scene.truth is not None:
            text += ' mIoU is over the classes in prediction or ground truth of this image.'
        return [Picture('predictions', 'Predictions', text, segmentation_grid(*args))]

    def _attention_panel(self, seen: Seen) -> list[Picture]:
        text = (
            'How strong the activations are at each position: the mean of their squares over the '
            'channels, as a multiple of its mean over the positions. A column has one scale.'
        )
        if self.reference is not None:
            text += f' Cosine: of the map and that of {self.reference}.'
        pictures, scene = [], seen.scene
        for places in [self._stages] if self.chosen else [[place] for place in self._stages]:
            columns = self._columns(seen, places)
            rows = [
                (viewer.name, {column.name: column.maps.get(viewer.name) for column in columns})
                for viewer in self.viewers
            ]
            grid = attention_grid(scene.size, scene.image, scene.covers, rows, self.reference)
            if grid is not None:
                where = ', '.join(map(str, places))
                pictures.append(Picture(f'attention-{where}', f'Attention: {where}', text, grid))
        return pictures

    @property
    def _stages(self) -> Sequence[Place]:
        """Where attention looks: the backbone and the neck of each model, unless chosen."""
        if self.chosen:
            return self.places
        places = []
        for name in ('backbone', 'neck'):
            taps = {
                viewer.name: Taps.parse(name)
                for viewer in self.viewers
                if isinstance(getattr(viewer.model, name, None), nn.Module)
            }
            if taps:
                places.append(Place(taps))
        return places

    def _channels_panel(self, seen: Seen) -> list[Picture]:
        return [
            self._channels_picture(seen, place, column)
            for place in self._compared
            for column in self._columns(seen, [place])
            if all(maps.shape[2:].numel() >= LEAST for maps in column.maps.values())
        ]

    def _channels_picture(self, seen: Seen, place: Place, column: Column) -> Picture:
        rows, scene = [*column.maps.items()], seen.scene
        leader, names, first = rows[0][0], None, []
        widths = {maps.shape[1] for maps in column.maps.values()}
        if 'head' in column.name.split('.')[0] and widths == {len(self.meta.classes)}:
            names = [f'class {c}' for c in self.meta.classes]
            first = _most_predicted(seen.predictions[leader], self.meta)
        grid = channels_grid(
            scene.size, scene.image, scene.covers, rows, self.channels, place.tau, names, first
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

    def _explanations_panel(self, seen: Seen) -> list[Picture]:
        return [
            picture for place in self._explained for picture in self._explanations_of(seen, place)
        ]

    def _explanations_of(self, seen: Seen, place: Place) -> list[Picture]:
        explainer = copy.copy(place.explainer)
        explainer.max_classes = self.classes
        chosen, found = None, {}
        for viewer in self.viewers:
            if viewer.name in place.taps:
                taps = place.taps[viewer.name]
                explanation = viewer.explain(seen.scene, explainer, taps, chosen)
                chosen = explanation.chosen  # the first model's, which is the teacher
                found[viewer.name] = [x[0] for x in explanation.maps]
        leader, kind = next(iter(found)), type(explainer).__name__
        classes = [int(label) for label in chosen.classes[0] if label >= 0]
        title, scene = f'{kind} at {place}', seen.scene
        if not classes:
            text = f'{leader} sees no class with a probability over {explainer.score_thr:g}.'
            return [Picture(f'explanations-{place}', title, text, None)]
        text = (
            f'What speaks for the classes that {leader} sees most, in {leader} and in the others: '
            f'{kind}, each scaled to its maximum.'
        )
        if len(found) > 1:
            text += f' Cosine: of the explanation and that of {leader}.'
        pictures = []
        for number in range(min(map(len, found.values()))):
            maps = {name: explained[number] for name, explained in found.items()}
            shown = [k for k in range(len(classes)) if any(x[k].any() for x in maps.values())]
            if not shown:  # a level of a pyramid where none of them is seen
                continue
            where = f'{place}' + (f', map {number}' if len(found[leader]) > 1 else '')
            grid = explanations_grid(
                scene.size,
                scene.image,
                scene.covers,
                [(name, [x[k] for k in shown]) for name, x in maps.items()],
                [self.meta.name(classes[k]) for k in shown],
                leader,
            )
            title = f'{kind} at {where}'
            pictures.append(Picture(f'explanations-{where}', title, text, grid))
        return pictures

    def _columns(self, seen: Seen, places: Sequence[Place]) -> list[Column]:
        """The maps that places compare, those of all models together.

        Raises:
            ValueError: If there is nothing that can be drawn.
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
    """Maps with their names; what has no height and width is left out."""
    if isinstance(maps, Tensor):
        return [(str(tap), maps)] if maps.ndim == 4 else []
    base, where = str(tap).partition('@')[::2]
    where = f'@{where}' if where else ''
    return [(f'{base}[{n}]{where}', x) for n, x in enumerate(maps) if x.ndim == 4]


def _taps(places: Sequence[Place], name: str) -> list[Tap]:
    return list(dict.fromkeys(tap for place in places for tap in place.taps.get(name, ())))


def _most_predicted(found: Labels | None, meta: Meta) -> list[int]:
    """Classes of a prediction, the most frequent first."""
    if found is None:
        return []
    labels = found.labels if isinstance(found, Boxes) else found
    values, counts = np.unique(labels, return_counts=True)
    return [int(v) for v in values[np.argsort(-counts, kind='stable')] if v < len(meta.classes)]


#: The panels in the order of the page.
PANELS: dict[str, Callable[[Gallery, Seen], list[Picture]]] = {
    'predictions': Gallery._predictions_panel,
    'attention': Gallery._attention_panel,
    'channels': Gallery._channels_panel,
    'explanations': Gallery._explanations_panel,
}


def check_panels(panels: Sequence[str]) -> None:
    """Refuses panels that there are not.

    Raises:
        ValueError: With the nearest names.
    """
    if isinstance(panels, str) or not panels:
        raise ValueError(f'panels: expected some of {", ".join(PANELS)}, got {panels!r}')
    for panel in panels:
        if panel not in PANELS:
            hint = did_you_mean(str(panel), PANELS, "'{}'", cutoff=0.5) or '.'
            raise ValueError(f"there is no panel '{panel}'{hint} Panels: {', '.join(PANELS)}")


def places_of(terms: Sequence[Term], others: Sequence[str] = ()) -> list[Place]:
    """Where the terms of a config compare maps, each place once.

    Args:
        terms (Sequence[Term]): Of the config.
        others (Sequence[str]): Further models with the student's taps. Defaults to ``()``.
    """
    places: dict[tuple[str, ...], Place] = {}
    for term in terms:
        if term.traits.compares == 'gradients':
            continue
        taps = {term.teacher: term.teacher_tap}
        taps |= dict.fromkeys(('student', *others), term.student_tap)
        tau = term.loss.tau if isinstance(term.loss, ChannelWiseLoss) else 1.0
        key = (*map(str, taps.values()), str(term.explainer))
        places.setdefault(key, Place(taps, tau, term.explainer))
    return list(places.values())
