"""Expected: what a model can learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from mmkd_plugin.annotations import fits
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.taps.example import library_of

#: Where the models of a library have the head that knows the number of classes.
HEADS = dict(
    mmseg=('decode_head',),
    mmdet=('bbox_head', 'roi_head.bbox_head', 'mask_head', 'panoptic_head'),
)

#: Where a detector has what learns from the masks of its boxes.
MASKS = ('roi_head.mask_head', 'panoptic_head')

#: What heads call their classes with boxes that may have others, of stuff.
THINGS = 'num_things_classes'

#: Where mmdet chooses among the scores of queries.
OF_QUERIES = 'mmdet.models.dense_heads.detr_head'


@dataclass(frozen=True)
class Expected:
    """What a model can learn from.

    Args:
        classes (int, optional): Labels are whole numbers from 0 to below this. Defaults to None:
            anything.
        ignored (int, optional): A further label, of pixels that do not count. Defaults to None.
        head (str): The module that says so. Defaults to nothing.
        label_map (bool): Whether each image needs a label map. Defaults to False.
        pixels (bool): Whether the labels are those of pixels. Defaults to False: of boxes, and a
            label map beside them has classes of its own.
        stuff (int): How many of the classes have no boxes; a data set may name them elsewhere.
            Defaults to 0.
        key (str): The argument of the head that says how many have. Defaults to ``'num_classes'``.
        masks (str): The module that learns from the mask of each box. Defaults to nothing.
    """

    classes: int | None = None
    ignored: int | None = None
    head: str = ''
    label_map: bool = False
    pixels: bool = False
    stuff: int = 0
    key: str = 'num_classes'
    masks: str = ''

    @classmethod
    def by(cls, model: nn.Module) -> Expected:
        """What a segmentor or a detector, or the student of a Distiller, expects."""
        learns = True
        if isinstance(model, Distiller):
            learns, model = model.task_weight > 0, model.student
        library = library_of(model)
        if hasattr(model, 'language_model'):
            return cls()  # classes are words, and each image asks for its own
        for path in HEADS.get(library, ()):
            head = _at(model, path)
            classes = getattr(head, 'num_classes', None)
            if not isinstance(classes, int):
                continue
            if library == 'mmdet':
                things = getattr(head, THINGS, None)
                masks = _learns_masks(model) if learns else ''
                if isinstance(things, int):
                    stuff = classes - things
                    return cls(classes, None, path, stuff=stuff, key=THINGS, masks=masks)
                return cls(classes, None, path, masks=masks)
            if getattr(head, 'out_channels', None) == 1:  # one score, for the second of two classes
                classes = max(classes, 2)
            labelled = learns and hasattr(head, 'loss_decode')
            return cls(classes, getattr(head, 'ignore_index', None), path, labelled, pixels=True)
        return cls()

    def without_labels(self) -> Expected:
        """What it expects of images without labels."""
        return Expected(head=self.head)

    def wrong(self, labels: np.ndarray) -> list[int]:
        """The ids among labels that the model does not know."""
        if self.classes is None or not labels.size:
            return []
        found = (labels >= self.classes) | (labels < 0)
        if self.ignored is not None:
            found &= labels != self.ignored
        return np.unique(labels[found]).tolist() if found.any() else []

    def told(self) -> str:
        """The labels that it knows, in words."""
        ignored = '' if self.ignored is None else f', and ignore_index={self.ignored}'
        return f'`{self.head}` knows 0 to {self.classes - 1} (num_classes={self.classes}{ignored})'


def _learns_masks(model: nn.Module) -> str:
    """Where a detector has a head of mmdet that learns masks; one of others may do without."""
    heads = ((path, _at(model, path)) for path in MASKS)
    return next((path for path, head in heads if type(head).__module__.startswith('mmdet.')), '')


def too_many_boxes(model: nn.Module) -> str | None:
    """What is wrong with the boxes that a detector with queries keeps of an image, if anything.

    mmdet takes the best of the scores, and ends if these are fewer.

    Args:
        model (nn.Module): The model, or a Distiller.
    """
    model = model.student if isinstance(model, Distiller) else model
    head, queries = getattr(model, 'bbox_head', None), getattr(model, 'num_queries', None)
    chooses = getattr(type(head), '_predict_by_feat_single', None)
    kept = (getattr(head, 'test_cfg', None) or {}).get('max_per_img')
    if getattr(chooses, '__module__', '') != OF_QUERIES or not fits(queries, int) or kept is None:
        return None
    each = head.num_classes if head.loss_cls.use_sigmoid else 1
    if not fits(kept, int) or kept <= queries * each:
        return None
    of_classes = f' * num_classes={each}' if head.loss_cls.use_sigmoid else ''
    return (
        f'test_cfg.max_per_img={kept} is more than num_queries={queries}{of_classes} gives, so '
        f'validation would end; write max_per_img={queries * each}'
    )


def _at(module: Any, path: str) -> Any:
    """The module of a path, the last one of several stages; None if there is none."""
    for part in path.split('.'):
        module = getattr(module, part, None)
    return module[-1] if isinstance(module, nn.ModuleList) and len(module) else module
