"""Gallery: the pictures of one image, with a row for each model, and the numbers of each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mmkd_plugin.losses import ChannelWiseLoss
from mmkd_plugin.taps import Maps, Tap, Taps
from mmkd_plugin.terms.term import Term
from mmkd_plugin.visualization.explanations import default_explainer, default_tap
from mmkd_plugin.visualization.panels import PANELS, Picture, Place, Seen, check_panels
from mmkd_plugin.visualization.predictions import numbers
from mmkd_plugin.visualization.scene import Boxes, Labels, Meta, Scene, Viewer


@dataclass
class Gallery:
    """Makes the pictures of scenes.

    Args:
        viewers (Sequence[Viewer]): The models, in the order of the rows; the first teacher first.
        panels (Sequence[str], optional): Names from ``PANELS``; None for all panels that can be
            drawn.
        meta (Meta): Names and colours of the classes.
        places (Sequence[Place]): Places of the panels of maps. Defaults to ``()``.
        reference (str, optional): Name of the teacher with which the others are compared. Defaults
            to None.
        chosen (bool): Whether the user chose the places; then all panels of maps show them.
            Defaults to False.
        score_thr (float): Score from which boxes are drawn. Defaults to 0.3.
        channels (int): Number of channels in a picture. Defaults to 5.
        classes (int): Largest number of explained classes of an image. Defaults to 4.

    Raises:
        ValueError: If a panel is unknown or cannot be drawn.
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
        if not self.compared:
            possible['channels'] = (
                'where terms of `distill` compare maps, and this config has none that does'
            )
        if not self.explained:
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
    def stages(self) -> Sequence[Place]:
        """The places of attention maps: backbone and neck of each model, or the chosen places."""
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

    @property
    def compared(self) -> list[Place]:
        """The places where terms compare maps."""
        return [place for place in self.places if place.explainer is None]

    @property
    def explained(self) -> list[Place]:
        """The places of explanations: those of the terms that compare them, otherwise Grad-CAM."""
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
        """Makes the pictures of a scene.

        Args:
            scene (Scene): The scene.

        Returns:
            tuple[list[Picture], dict[str, dict[str, str]]]: The pictures, and the numbers of each
            model by their names.
        """
        predictions = self._predict(scene)
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

    def _predict(self, scene: Scene) -> dict[str, Labels | None]:
        """The predictions of each model that has some, if a panel needs them."""
        predictions: dict[str, Labels | None] = {}
        if 'predictions' in self.panels or 'channels' in self.panels:
            for viewer in self.viewers:
                if not viewer.predicts:
                    continue
                found = viewer.predict(scene)
                if isinstance(found, Boxes):
                    found = found.over(self.score_thr)
                predictions[viewer.name] = found
        return predictions

    def _read(self, scene: Scene) -> dict[str, dict[Tap, Maps]]:
        """The maps of all taps of each model, from one forward."""
        places: list[Place] = []
        if 'attention' in self.panels:
            places += self.stages
        if 'channels' in self.panels:
            places += self.compared
        return {v.name: v.read(scene, _taps(places, v.name)) for v in self.viewers}


def _taps(places: Sequence[Place], name: str) -> list[Tap]:
    """The taps of a model at some places, each once."""
    return list(dict.fromkeys(tap for place in places for tap in place.taps.get(name, ())))


def places_of(terms: Sequence[Term], others: Sequence[str] = ()) -> list[Place]:
    """The places where the terms of a config compare maps or explanations, each once.

    Args:
        terms (Sequence[Term]): The terms; those that compare gradients or RoI heads are left out.
        others (Sequence[str]): Names of further models with the student's taps. Defaults to ``()``.
    """
    places: dict[tuple[str, ...], Place] = {}
    for term in terms:
        if term.traits.compares == 'gradients' or term.on_rois:
            continue
        taps = dict.fromkeys(term.teachers, term.teacher_tap)
        taps |= dict.fromkeys(('student', *others), term.student_tap)
        tau = term.loss.tau if isinstance(term.loss, ChannelWiseLoss) else 1.0
        key = (*map(str, taps.values()), str(term.explainer))
        places.setdefault(key, Place(taps, tau, term.explainer))
    return list(places.values())
