"""Pictures of models side by side: their channels, attention, explanations and predictions."""

from mmkd_plugin.visualization.gallery import Gallery, places_of
from mmkd_plugin.visualization.hook import DistillVisualizationHook
from mmkd_plugin.visualization.page import Page
from mmkd_plugin.visualization.panels import PANELS, Picture, Place
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
