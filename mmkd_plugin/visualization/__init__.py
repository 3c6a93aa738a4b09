"""Pictures of what was taught: channels, attention, explanations and predictions of models."""

from mmkd_plugin.visualization.gallery import PANELS, Gallery, Picture, Place, places_of
from mmkd_plugin.visualization.hook import DistillVisualizationHook
from mmkd_plugin.visualization.page import Page
from mmkd_plugin.visualization.scene import Boxes, Meta, Scene, Viewer, evenly

__all__ = [
    'PANELS',
    'Boxes',
    'DistillVisualizationHook',
    'Gallery',
    'Meta',
    'Page',
    'Picture',
    'Place',
    'Scene',
    'Viewer',
    'evenly',
    'places_of',
]
