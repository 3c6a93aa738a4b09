"""Watching: the data of a run is looked at before training, and errors in it name the file."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import Compose
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmkd_plugin.cache.images import leaves, wrappers_with_pipelines
from mmkd_plugin.distiller import Distiller
from mmkd_plugin.registry import DATASETS, HOOKS
from mmkd_plugin.terms.without_labels import WIRING
from mmkd_plugin.training_data.checks import check_data, check_switch
from mmkd_plugin.training_data.classes import check_count, check_is_list, check_same_order
from mmkd_plugin.training_data.errors import DataError, dataset_errors_named, without_images
from mmkd_plugin.training_data.evaluators import warn_of_other_file
from mmkd_plugin.training_data.expected import Expected, too_many_boxes
from mmkd_plugin.training_data.pipelines import CheckedPipeline
from mmkd_plugin.unlabelled import Unlabelled
from mmkd_plugin.unlabelled.images import join, parts_of


@HOOKS.register_module()
class CheckTrainingData(Hook):
    """Looks at the data before training starts: see :func:`check_data`.

    ``tools/train.py`` adds it. In a distributed run the first process looks.

    Args:
        samples (int): How many training images are loaded. Defaults to 8.

    Raises:
        ValueError: If ``samples`` is not above 0.

    Examples:
        >>> hook = CheckTrainingData(samples=4)
    """

    def __init__(self, samples: int = 8) -> None:
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
            raise ValueError(f'samples: expected a whole number above 0, got {samples!r}')
        self.samples = samples

    def before_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        model = _model_of(runner)
        expected, (dataset, *more) = Expected.by(model), parts_of(runner.train_dataloader.dataset)
        for one in more:
            check_data(one, expected.without_labels(), self.samples, 'unlabelled')
        if _learns_without_labels_only(model):
            check_data(dataset, expected.without_labels(), self.samples, 'unlabelled')
            expected = expected.without_labels()
        else:
            check_count(dataset, expected)
            check_data(dataset, expected, self.samples)
        for hook in runner.hooks:
            if hasattr(hook, 'switch_pipeline'):
                check_switch(dataset, expected, hook)
        if runner.val_loop is not None:
            if text := too_many_boxes(model):
                raise DataError(text)
            check_data(runner.val_dataloader.dataset, Expected(), 1, 'val')
            if expected.classes is not None:
                check_same_order(dataset, runner.val_dataloader.dataset)


def _model_of(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def watch_data(runner: Runner) -> None:
    """Builds the data of a run, and lets errors in it name the file: before training, and in it.

    Args:
        runner (Runner): A runner whose training has not started.

    Raises:
        DataError: If a data set cannot be built.
    """
    for key in ('train', 'val'):
        loader = getattr(runner, f'_{key}_dataloader', None)
        if isinstance(loader, dict):
            setattr(runner, f'_{key}_dataloader', _build(runner, loader, key))
    _warn_of_evaluator(runner, 'val')
    dataset = getattr(runner._train_dataloader, 'dataset', None)
    model, bare = _model_of(runner), None
    expected = Expected.by(model)
    more = getattr(model, 'unlabelled', None) if isinstance(model, Distiller) else None
    if _learns_without_labels_only(model):
        expected = expected.without_labels()
    elif more is not None:
        bare = build_unlabelled(more)
        loader = runner._train_dataloader
        join(loader, bare, more.images(_batch_size(runner)), runner.seed)
    for one, kind in ((dataset, expected), (bare, expected.without_labels())):
        inside = [leaf for wrapper in wrappers_with_pipelines(one) for leaf in leaves(wrapper)]
        for leaf in leaves(one):
            pipeline = getattr(leaf, 'pipeline', None)
            if type(pipeline) is Compose:
                leaf.pipeline = CheckedPipeline(pipeline.transforms, kind, leaf not in inside)
    if not any(isinstance(hook, CheckTrainingData) for hook in runner.hooks):
        runner.register_hook(CheckTrainingData())


def watch_test_data(runner: Runner) -> None:
    """Builds the test data of a run, and lets errors in it name the file.

    Args:
        runner (Runner): A runner whose test has not started.

    Raises:
        DataError: If the data set cannot be built, or has no image.
    """
    if isinstance(runner._test_dataloader, dict):
        runner._test_dataloader = _build(runner, runner._test_dataloader, 'test')
    dataset = runner._test_dataloader.dataset
    for leaf in leaves(dataset):
        if len(leaf) == 0:
            raise DataError(without_images(leaf, 'test'))
        pipeline = getattr(leaf, 'pipeline', None)
        if type(pipeline) is Compose:
            leaf.pipeline = CheckedPipeline(pipeline.transforms, Expected(), packs=False)
    _warn_of_evaluator(runner, 'test')


def _build(runner: Runner, loader: dict, key: str) -> Any:
    """Builds a data loader as the loop of the runner would."""
    different = runner._randomness_cfg.get('diff_rank_seed', False)
    with dataset_errors_named(key, loader):
        built = runner.build_dataloader(loader, seed=runner.seed, diff_rank_seed=different)
    for leaf in leaves(built.dataset):
        check_is_list(leaf, key)
    return built


def _batch_size(runner: Runner) -> int:
    """Images of a training batch; of a loader with a ``batch_sampler`` torch does not say it."""
    said = getattr(runner._train_dataloader.batch_sampler, 'batch_size', None)
    return said or runner.cfg.train_dataloader.batch_size


def _warn_of_evaluator(runner: Runner, key: str) -> None:
    dataset = getattr(getattr(runner, f'_{key}_dataloader'), 'dataset', None)
    if dataset is not None and is_main_process():
        warn_of_other_file(getattr(runner, f'_{key}_evaluator'), dataset, key)


def _learns_without_labels_only(model: nn.Module) -> bool:
    settings = getattr(model, 'unlabelled', None) if isinstance(model, Distiller) else None
    return settings is not None and settings.only


def build_unlabelled(settings: Unlabelled) -> Dataset:
    """Builds the data set of images without labels."""
    config = settings.dataset
    if not isinstance(config, dict):
        raise ValueError(WIRING)
    with dataset_errors_named('unlabelled', config):
        dataset = DATASETS.build(config)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
    if len(dataset) == 0:
        raise DataError(without_images(dataset, 'unlabelled'))
    return dataset
