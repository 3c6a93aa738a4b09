"""Distillers built from configs with one wrong leaf: each is refused in a line, or makes sense.

``FUZZ=2000 pytest tests/fuzz``, or ``make fuzz``, tries more of them.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mmengine.logging import MMLogger

from mmkd_plugin.foreign import is_ours
from tests.fuzz import models
from tests.fuzz.mutations import Mutation, makes_sense, mutated
from tests.runs import needs_ops
from tests.stock_models import build

BASES: dict[str, Callable[[], dict]] = dict(
    segmentor=models.of_a_segmentor,
    detector=models.of_a_detector,
    several=models.with_several_teachers,
    own=models.with_a_self_teacher,
    explanations=models.with_explanations,
)
NAMES = [pytest.param(n, marks=needs_ops) if n == 'detector' else n for n in (*BASES, 'cached')]
COUNT = int(os.environ.get('FUZZ', '200')) // len(NAMES)
SEED = int(os.environ.get('FUZZ_SEED', '0'))

#: How messages call the parts of a config.
PLACES = (
    'student',
    'teacher',
    'checkpoint',
    'distill',
    'task',
    'model',
    'compile',
    'data_preprocessor',
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


@pytest.fixture(scope='module')
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict]:
    made: dict[str, dict] = {}

    def get(name: str) -> dict:
        if name not in made:
            if name == 'cached':
                made[name] = models.with_a_cache(data, tmp_path_factory.mktemp('cached'))
            else:
                made[name] = BASES[name]()
        return made[name]

    return get


@pytest.mark.usefixtures('own_globals', 'counters')
@pytest.mark.parametrize('name', NAMES)
def test_configs_with_one_wrong_leaf(name: str, base: Callable[[str], dict]) -> None:
    config = base(name)
    build(copy.deepcopy(config))
    draw = random.Random(f'{SEED} {name}')
    faults = []
    for _ in range(COUNT):
        change = mutated(config, draw)
        fault = fault_of(change)
        if fault is not None:
            faults.append(f'{change}\n    {fault}')
    assert not faults, f'{len(faults)} of {COUNT}:\n' + '\n'.join(faults)


def fault_of(change: Mutation) -> str | None:
    """What is wrong with how a changed config ends, None if it ends well."""
    try:
        build(change.config)
    except (FloatingPointError, OSError, ValueError) as error:
        text = str(error)
        if not is_ours(error):
            return f'not one of ours: {type(error).__name__}: {text}'
        here = PLACES if change.path[0] not in ('distill', 'task') else (str(change.path[0]),)
        if not any(place in text for place in here):
            return f'names no key: {text}'
        return None
    except Exception as error:
        return f'raw {type(error).__name__}: {error}'
    return None if makes_sense(change) else 'nonsense is accepted'
