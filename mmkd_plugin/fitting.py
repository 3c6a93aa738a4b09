"""Fitting: teacher connectors that are measured on maps, before the student trains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate, worker_init_fn
from mmengine.device import get_device
from mmengine.registry import DATASETS, MODELS
from mmengine.runner import save_checkpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from mmkd_plugin.building import build_module
from mmkd_plugin.paraphrasing import has_teacher_connector, measured, usual_file
from mmkd_plugin.saving import replacing
from mmkd_plugin.taught_maps import TaughtMaps


def measured_lines(cfg: Config) -> dict[str, dict]:
    """The terms of a config whose teacher connector is measured, by their names.

    Args:
        cfg (Config): A distilled config.

    Returns:
        dict[str, dict]: Their lines of ``distill``.

    Raises:
        ValueError: If there is none.
    """
    terms = cfg.model.get('distill') or {}
    found = {
        name: line
        for name, line in terms.items()
        if has_teacher_connector(line) and measured(name, line)
    }
    if not found:
        raise ValueError(
            'no term of `distill` has a `teacher_connector` that is measured, such as '
            "dict(type='mmkd_plugin.PHISNormalizer'); nothing to fit"
        )
    return found


def files_of(lines: dict[str, dict], work_dir: str) -> dict[str, list[str]]:
    """The files that the student's run reads, with the names of their terms.

    Args:
        lines (dict[str, dict]): See :func:`measured_lines`.
        work_dir (str): The work dir of that run.

    Returns:
        dict[str, list[str]]: Names of terms by file.

    Raises:
        ValueError: If a config names a file on the web.
    """
    files: dict[str, list[str]] = {}
    for name, line in lines.items():
        file = line['teacher_connector'].get('checkpoint') or usual_file(name, line, work_dir)
        if '://' in str(file):
            raise ValueError(
                f'distill.{name}.teacher_connector.checkpoint: {file} is no file of this machine'
            )
        files.setdefault(str(file), []).append(name)
    return files


class Fitting:
    """Measures the teacher connectors of some terms, image by image.

    Args:
        cfg (Config): A distilled config.
        lines (dict[str, dict]): See :func:`measured_lines`.

    Raises:
        ValueError: If a connector or a teacher cannot be built.
    """

    def __init__(self, cfg: Config, lines: dict[str, dict]) -> None:
        model = cfg.model
        config = model.student.get('data_preprocessor') or model.get('data_preprocessor')
        self.preprocessor = MODELS.build(config or cfg.data_preprocessor)
        self.taught = TaughtMaps(model.teacher, lines, self.preprocessor)
        self.connectors: dict[str, Sequence[nn.Module]] = {}
        for name, maps in self.taught.first.items():
            here = f'distill.{name}.teacher_connector'
            given = {k: v for k, v in lines[name]['teacher_connector'].items() if k != 'checkpoint'}
            self.connectors[name] = [
                build_module(given, here, dict(in_channels=x.shape[1])) for x in maps
            ]
        device = torch.device(get_device())
        self.preprocessor.to(device)
        self.taught.apply_to_tensors(lambda x: x.to(device))

    @torch.no_grad()
    def observe(self, data: dict) -> None:
        """Adds the maps of a batch.

        Args:
            data (dict): A batch of a data loader, before the preprocessor.
        """
        ready = self.preprocessor(data, True)
        for name, maps in self.taught.of(ready['inputs'], ready['data_samples']):
            for connector, x in zip(self.connectors[name], maps, strict=True):
                connector.observe(x)

    def save(self, path: str, terms: Sequence[str]) -> None:
        """Concludes what was measured for some terms and writes their file.

        Args:
            path (str): The file.
            terms (Sequence[str]): Names of the terms.

        Raises:
            ValueError: If there was too little to measure.
        """
        state = {}
        for name in terms:
            for number, connector in enumerate(self.connectors[name]):
                try:
                    connector.conclude()
                except ValueError as error:
                    raise ValueError(
                        f'distill.{name}.teacher_connector, map {number}: {error}'
                    ) from error
                for key, value in connector.state_dict().items():
                    state[f'{name}.{number}.{key}'] = value
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as (beside,):
            save_checkpoint(dict(state_dict=state), str(beside))


def training_images(cfg: Config, count: int | None) -> DataLoader:
    """The training images in a random order, one by one and each once, through the train pipeline.

    Args:
        cfg (Config): The config.
        count (int, optional): As many of them at most. None: all.

    Returns:
        DataLoader: Batches of one image, which need no padding to a common size.
    """
    dataset: Dataset = DATASETS.build(cfg.train_dataloader.dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    workers = cfg.train_dataloader.get('num_workers', 0)
    return DataLoader(
        Subset(dataset, order[:count]),
        num_workers=workers,
        collate_fn=pseudo_collate,
        worker_init_fn=partial(worker_init_fn, num_workers=workers, rank=0, seed=0),
    )
