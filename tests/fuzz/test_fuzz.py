"""Distillers built from configs with one wrong leaf: each is refused in a line, or makes sense.

``FUZZ=2000 pytest tests/fuzz``, or ``make fuzz``, tries more of them.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.foreign import is_ours
from mmkd_plugin.run_config import check_run
from mmkd_plugin.running.randomness import seed_batches
from mmkd_plugin.taps import as_list
from mmkd_plugin.training_data import build_unlabelled
from mmkd_plugin.unlabelled.images import join
from mmkd_plugin.unlabelled.pipelines import complete
from tests.fuzz import models
from tests.fuzz.mutations import Mutation, makes_sense, mutated
from tests.runs import config, needs_ops

#: Distillers that need nothing, and those that read files.
BASES: dict[str, Callable[[], dict]] = dict(
    segmentor=models.of_a_segmentor,
    detector=models.of_a_detector,
    several=models.with_several_teachers,
    combined=models.with_combined_teachers,
    own=models.with_a_self_teacher,
    explanations=models.with_explanations,
    auto=models.with_automatic_weights,
    memories=models.with_memories,
    foundation=models.with_a_foundation_model,
)
ON_FILES: dict[str, Callable[[Path, Path], dict]] = dict(
    cached=models.with_a_cache,
    views=lambda data, folder: models.with_a_cache(data, folder, views=2),
    unlabelled=lambda data, folder: models.with_images_without_labels(data / 'images'),
)
NAMES = [pytest.param(n, marks=needs_ops) if n == 'detector' else n for n in (*BASES, *ON_FILES)]
COUNT = -(-int(os.environ.get('FUZZ', '200')) // len(NAMES))
SEED = int(os.environ.get('FUZZ_SEED', '0'))

#: How messages say what was expected.
EXPECTED = (
    *('must ', 'expected', 'needs', 'take ', 'takes ', 'add ', 'such as', 'did you mean', 'known:'),
    *('one of ', 'contains:', 'are: ', 'leave ', 'cannot be ', 'missing', 'should ', 'write '),
    *('name one ', 'name each ', 'has to be ', 'Write ', '=dict(', ': a path', '; in ', 'Expected'),
    *('too small', 'give one ', 'give a number', 'for more: ', ', from 0 to ', ': a file or '),
    ': the folder ',
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    logger.setLevel(level)


@pytest.mark.usefixtures('own_globals', 'counters')
@pytest.mark.parametrize('name', NAMES)
def test_configs_with_one_wrong_leaf(name: str, data: Path, tmp_path: Path) -> None:
    model = BASES[name]() if name in BASES else ON_FILES[name](data, tmp_path)
    step(*built(copy.deepcopy(model), data))
    draw = random.Random(f'{SEED} {name}')
    faults = []
    for _ in range(COUNT):
        change = mutated(model, draw)
        fault = fault_of(change, data)
        if fault is not None:
            faults.append(f'{change}\n    {fault}')
    assert not faults, f'{len(faults)} of {COUNT}:\n' + '\n'.join(faults)


def built(model: dict, data: Path) -> tuple[Config, nn.Module]:
    """The config of a run and its model, as tools/train.py checks, completes and builds them."""
    cfg = config(model, data, data / 'unused', 60, augment=True)
    check_run(cfg)
    complete(cfg)
    wire(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return cfg, MODELS.build(cfg.model)


def step(cfg: Config, model: nn.Module) -> dict:
    """The losses of a batch."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        more = model.unlabelled
        if more is not None and not more.only:
            join(loader, build_unlabelled(more), more.images(loader.batch_size), 0)
        seed_batches(loader, 0)
        return model.train()(**model.data_preprocessor(next(iter(loader)), True), mode='loss')


def names(change: Mutation, told: str) -> bool:
    """Whether a message names what was changed: its key, or the term that it lies in.

    A model that can be built is judged by what comes of it: it cannot run, or a term cannot compare
    its maps. Then the model or the term is named. What is gone from a dict that may hold any names
    is missing there.
    """
    path = [key for key in change.path if isinstance(key, str)]
    if change.kind == 'delete' and told.startswith(f'{".".join(path[:-1])} has no '):
        return True
    if path[0] in ('student', 'teacher') and 'config' not in path[-1]:
        if told.startswith('distill.') and f'the {path[0]}' in told:
            return True
        if 'made-up image' in told and path[0] in told:
            return True
    term = path[0] == 'distill' and '.'.join(path[:2]) in told
    return term or re.search(rf'\b{re.escape(path[-1])}s?\b', told) is not None


def fault_of(change: Mutation, data: Path) -> str | None:
    """What is wrong with how a changed config ends, None if it ends well."""
    told = None
    try:
        losses = step(*built(change.config, data))
    except (FloatingPointError, OSError, ValueError) as error:
        told = str(error)
        if not is_ours(error):
            return f'not one of ours: {type(error).__name__}: {told}'
    except Exception as error:
        return f'raw {type(error).__name__}: {error}'
    if told is not None:
        if not names(change, told):
            return f'names no key: {told}'
        if not any(word in told for word in EXPECTED):
            return f'names nothing that was expected: {told}'
        right = change.kind != 'misspell' or re.search(rf'\b{change.path[-1]}\b', told)
        return None if right else f'names no right spelling: {told}'
    if not all(torch.as_tensor(x).isfinite().all() for v in losses.values() for x in as_list(v)):
        return f'nonsense: {losses}'
    return None if makes_sense(change) else 'nonsense is accepted'
