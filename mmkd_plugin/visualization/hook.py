"""DistillVisualizationHook: pictures of student and teacher while the student learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmkd_plugin.distiller import Distiller
from mmkd_plugin.registry import HOOKS
from mmkd_plugin.running.sharding import gather
from mmkd_plugin.taps.example import random_state_kept
from mmkd_plugin.visualization.figure import draw
from mmkd_plugin.visualization.gallery import Gallery, places_of
from mmkd_plugin.visualization.page import file_name
from mmkd_plugin.visualization.panels import check_panels
from mmkd_plugin.visualization.scene import Meta, Scene, Viewer, evenly


@HOOKS.register_module()
class DistillVisualizationHook(Hook):
    """Draws student and teacher on a few validation images every n iterations.

    The runner's visualizer writes the pictures with its backends: to files, to TensorBoard and so
    on. The hook does not change the training: it keeps the random state, and the modes and the
    buffers of the models. In a distributed run the first process draws.

    Args:
        interval (int): Iterations from one drawing to the next. Defaults to 500.
        images (int): Number of images, spread evenly over the validation set. Defaults to 2.
        panels (Sequence[str], optional): Some of ``'predictions'``, ``'attention'``,
            ``'channels'`` and ``'explanations'``. Defaults to None: all that the models allow.
        score_thr (float): Score from which boxes are drawn. Defaults to 0.3.

    Raises:
        ValueError: If an argument cannot be used or, before training, the run has no Distiller, no
            validation images or no backend of its visualizer.

    Examples:
        >>> hook = DistillVisualizationHook(interval=100, panels=['predictions'])
        >>> hook.images
        2
    """

    priority = 'LOW'

    def __init__(
        self,
        interval: int = 500,
        images: int = 2,
        panels: Sequence[str] | None = None,
        score_thr: float = 0.3,
    ) -> None:
        for name, value in (('interval', interval), ('images', images)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name}: expected a whole number above 0, got {value!r}')
        if panels is not None:
            check_panels(panels)
        self.interval = interval
        self.images = images
        self.panels = panels
        self.score_thr = score_thr
        self._gallery: Gallery | None = None
        self._scenes: list[Scene] = []

    def before_train(self, runner: Runner) -> None:
        """Finds the models and the images.

        Args:
            runner (Runner): The runner.

        Raises:
            ValueError: If the run has no Distiller, no validation images or no backend of its
                visualizer.
        """
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        if not isinstance(model, Distiller):
            raise ValueError(
                'DistillVisualizationHook: the model of this run is a '
                f'{type(model).__name__}; it draws a mmkd_plugin.Distiller'
            )
        if runner.val_loop is None:
            raise ValueError(
                'DistillVisualizationHook draws on validation images, and this config has no '
                '`val_dataloader`; add one with `val_cfg` and `val_evaluator`, or take the hook out'
            )
        if not runner.visualizer._vis_backends:
            raise ValueError(
                'DistillVisualizationHook: the visualizer has no backend to write pictures; add '
                "visualizer=dict(vis_backends=[dict(type='LocalVisBackend')], ...)"
            )
        gather(model)
        if is_main_process():
            with random_state_kept():
                self._prepare(runner, model)

    def _prepare(self, runner: Runner, model: Distiller) -> None:
        self._gallery, self._scenes = gallery_of(
            runner, model, self.panels, self.images, self.score_thr
        )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draws in every ``interval``-th iteration.

        Args:
            runner (Runner): The runner.
            batch_idx (int): Number of the batch in the epoch.
            data_batch (Any): The batch; not used. Defaults to None.
            outputs (Any): The losses; not used. Defaults to None.
        """
        if not self.every_n_train_iters(runner, self.interval):
            return
        gather(runner.model)
        if self._gallery is None:
            return
        with random_state_kept():
            for number, scene in enumerate(self._scenes):
                for picture in self._gallery.pictures(scene)[0]:
                    if picture.grid is None:
                        continue
                    name = file_name(f'distill-{picture.name}-{number}-{scene.name}')
                    runner.visualizer.add_image(name, draw(picture.grid), runner.iter + 1)


def gallery_of(
    runner: Runner,
    model: Distiller,
    panels: Sequence[str] | None,
    images: int,
    score_thr: float = 0.3,
) -> tuple[Gallery, list[Scene]]:
    """What draws the student of a run and its teachers on validation images.

    Args:
        runner (Runner): The runner; it has a validation loop.
        model (Distiller): Its model.
        panels (Sequence[str], optional): Some of the panels; None for all that the models allow.
        images (int): Number of images, spread evenly over the validation set.
        score_thr (float): Score from which boxes are drawn. Defaults to 0.3.

    Returns:
        tuple[Gallery, list[Scene]]: The gallery and its images.
    """
    dataset = runner.val_loop.dataloader.dataset
    student, terms = model.student, list(model.distill.values())
    teachers = {n: t.predictor() for n, t in model.teachers.items() if t.predictor()}
    gallery = Gallery(
        [
            *(Viewer(n, m, student.data_preprocessor, 'teacher') for n, m in teachers.items()),
            Viewer('student', student, student.data_preprocessor),
        ],
        panels,
        Meta.of(getattr(dataset, 'metainfo', None), student),
        places_of(terms),
        next(iter(teachers), None),
        score_thr=score_thr,
    )
    numbers = evenly(images, len(dataset))
    return gallery, [Scene.of(dataset[n], student.data_preprocessor) for n in numbers]
