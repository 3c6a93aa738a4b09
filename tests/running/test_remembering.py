"""Caches of transforms, filled again when a run is resumed."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.data import ConcatDataset

from mmkd_plugin.running import randomness
from mmkd_plugin.running.remembering import images_to_load, last_images
from tests.running.tiny import Mixing, Numbers, tiny_run


@pytest.mark.parametrize('size', [4, 20])
@pytest.mark.parametrize('random_pop', [False, True])
def test_a_cache_depends_on_no_image_before_the_last_ones(size, random_pop):
    count = images_to_load(Numbers(False, Mixing(size, random_pop)))
    for seed in range(20):
        caches = []
        for start in (0, 500):
            transform = Mixing(size, random_pop)
            for number in range(start, 500 + count):
                random.seed(f'{seed}, {number}')
                transform(torch.tensor(number))
            caches.append([int(x) for x in transform.results_cache])
        assert caches[0] == caches[1]


def test_how_many_images_decide():
    assert images_to_load(Numbers()) == 0
    assert images_to_load(Numbers(False, Mixing(20, False), Mixing(10, False))) == 30
    assert images_to_load(Numbers(False, Mixing(20, True))) < 600
    assert images_to_load(ConcatDataset([Numbers(False, Mixing(20, False))] * 2)) is None


def test_a_process_that_comes_in_place_of_another_gets_its_images():
    history = [(n % 3, [(n, (0, n))]) for n in reversed(range(8))]
    found = last_images(history, workers=3, count=2, first=8 % 3)
    assert [[index for index, _ in one] for one in found] == [[2, 5], [3, 6], [4, 7]]
    assert found[0][0] == (2, (0, 2))


@pytest.mark.usefixtures('own_globals')
def test_within_an_epoch_of_processes_that_stay_it_says_that_it_is_not_exact(tmp_path, monkeypatch):
    told: list[str] = []  # a run has a logger of its own
    monkeypatch.setattr(randomness, 'print_log', lambda text, **_: told.append(text))
    settings = dict(keep=((3, False),), by_epoch=True, workers=2, persistent=True, length=2)
    saves = dict(save_iterations=True, interval=1)
    tiny_run(tmp_path / 'whole', **settings, **saves).train()
    start = dict(load_from=str(tmp_path / 'whole/iter_1.pth'), resume=True)
    tiny_run(tmp_path / 'resumed', **settings, **saves, **start).train()
    assert any('processes that load data may change places' in text for text in told)
    assert '--resume: 4 images are loaded again, for transforms that keep images' in told
