"""Folders of images, the order of images, and a data set of two parts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch
from mmengine.dataset import default_collate

from mmkd_plugin import ImageFolder
from mmkd_plugin.unlabelled import images
from mmkd_plugin.unlabelled.images import (
    Bare,
    Collate,
    Joined,
    Order,
    collate_without_labels,
    size_of,
)
from tests.unlabelled.runs import MORE, make_more


def test_all_images_of_a_folder_in_the_order_of_their_names(tmp_path):
    folder = Path(make_more(tmp_path / 'more'))
    (folder / 'notes.txt').write_text('no image')
    found = ImageFolder(data_root=str(folder), pipeline=[])
    names = [found.get_data_info(i)['img_path'] for i in range(len(found))]
    assert len(names) == MORE and names == sorted(names) and any('first.PNG' in n for n in names)
    assert [found.get_data_info(i)['img_id'] for i in range(MORE)] == list(range(MORE))
    (folder / 'some.txt').write_text('3.jpg\n\n1.jpg\n')
    listed = ImageFolder(data_root=str(folder), ann_file='some.txt', pipeline=[])
    assert [Path(listed.get_data_info(i)['img_path']).name for i in (0, 1)] == ['1.jpg', '3.jpg']
    with pytest.raises(FileNotFoundError):
        ImageFolder(data_root=str(folder / 'missing'), pipeline=[])


def test_the_size_of_an_image_is_known_before_it_is_loaded(tmp_path):
    found = ImageFolder(data_root=make_more(tmp_path / 'more'), pipeline=[]).get_data_info(0)
    assert (found['width'], found['height']) == (72, 64)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    assert size_of(str(tmp_path / 'broken.png')) == {}  # its loading says it


def test_each_pass_has_all_images_in_another_order():
    order = Order(total=6, count=4, seed=0)
    drawn = [index for number in range(6) for index in order(number)]
    passes = [drawn[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(one) == list(range(6)) for one in passes)
    assert len(set(map(tuple, passes))) > 1
    assert Order(6, 4, seed=0)(4) == drawn[16:20]  # whatever came before
    assert [Order(6, 4, seed=1)(n) for n in range(6)] != [order(n) for n in range(6)]


def test_each_pass_has_other_views():
    order = Order(total=6, count=2, seed=0, views=3)
    drawn = [index for number in range(12) for index in order(number)]
    passes = [drawn[start : start + 6] for start in range(0, 24, 6)]
    assert sorted(drawn[:18]) == list(range(18))  # every view of every image
    assert sorted(passes[3]) == sorted(passes[0])
    assert len({index // 6 for index in passes[0]}) > 1  # not the same number for all images
    plain = Order(total=6, count=2, seed=0)
    assert [index % 6 for index in drawn] == [i for number in range(12) for i in plain(number)]


def test_processes_share_a_pass():
    drawn = []
    for rank in (0, 1):
        with (
            mock.patch.object(images, 'get_rank', lambda rank=rank: rank),
            mock.patch.object(images, 'get_world_size', lambda: 2),
        ):
            drawn += Order(total=8, count=2, seed=0)(0) + Order(total=8, count=2, seed=0)(1)
    assert sorted(drawn) == list(range(8))


class Part(list):
    """A data set of dicts, with something that hooks change."""

    metainfo: ClassVar[dict] = dict(classes=('a',))
    pipeline = None


def test_a_joined_data_set_is_the_labelled_one_in_everything_else():
    labelled, others = (Part(dict(inputs=c) for c in text) for text in ('abc', 'xy'))
    joined = Joined(labelled, others, Order(2, 1, 0))
    assert len(joined) == 3 and joined.metainfo == dict(classes=('a',))
    assert isinstance(joined[-1], Bare) and not isinstance(joined[2], Bare)
    assert {joined.beside(n)[0] for n in range(2)} == {-1, -2}
    assert {joined[joined.beside(n)[0]]['inputs'] for n in range(2)} == {'x', 'y'}
    joined.pipeline = 'other'  # as PipelineSwitchHook does
    assert labelled.pipeline == 'other' and others.pipeline is None
    assert pickle.loads(pickle.dumps(joined)).datasets == [labelled, others]
    with pytest.raises(AttributeError):
        _ = joined.missing


def test_a_batch_carries_another_one():
    def collate(items: list[dict]) -> dict:
        return dict(inputs=[item['inputs'] for item in items])

    batch = Collate(collate)([dict(inputs=1), Bare(inputs=3), dict(inputs=2)])
    assert batch == dict(inputs=[1, 2], unlabelled=dict(inputs=[3]))


def test_a_batch_says_that_it_has_no_labels():
    items = [dict(inputs=torch.ones(2)), dict(inputs=torch.zeros(2))]
    for collate_fn in (dict(type='default_collate'), default_collate):
        batch = collate_without_labels(items, collate_fn)
        assert batch['inputs'].shape == (2, 2) and batch['unlabelled'] is True
    assert len(collate_without_labels(items)['inputs']) == 2
