"""BCCD's converter: what it writes, what it refuses, and that the configs read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from tests.tools.dataset_converters.conftest import ROOT, contents, real

SMALL = ('--size', '32x24')
SPLITS = dict(train=['a', 'b'], val=['c'], test=['d'])
OBJECT = '<object><name>{}</name><bndbox>{}</bndbox></object>'
EDGES = ('xmin', 'ymin', 'xmax', 'ymax')


def annotation(*objects: tuple[str, list[float]], size: tuple[int, int] = (64, 48)) -> str:
    """The text of an annotation: class and xmin, ymin, xmax, ymax of each object."""
    boxes = (
        OBJECT.format(kind, ''.join(f'<{k}>{v}</{k}>' for k, v in zip(EDGES, box, strict=True)))
        for kind, box in objects
    )
    width, height = size
    return (
        f'<annotation><size><width>{width}</width><height>{height}</height></size>'
        f'{"".join(boxes)}</annotation>'
    )


def write_source(folder: Path) -> Path:
    """Four images of 64×48 in BCCD's layout."""
    root = folder / 'BCCD_Dataset' / 'BCCD'
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for split, names in SPLITS.items():
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
        for name in names:
            Image.new('RGB', (64, 48), (200, 100, 0)).save(root / f'JPEGImages/{name}.jpg')
            text = annotation(('RBC', [1, 1, 21, 21]), ('Platelets', [50, 40, 64, 48]))
            (root / f'Annotations/{name}.xml').write_text(text)
    (root / 'Annotations/b.xml').write_text(
        annotation(('WBC', [0, 0, 64, 48]), ('RBC', [5, 5, 5, 5]), ('RBC', [5, 5, 9, 5]))
    )
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path)


def coco(out: Path, split: str) -> dict[str, Any]:
    return json.loads((out / f'annotations/{split}.json').read_text())


@pytest.mark.parametrize('clone', [False, True])
def test_what_it_writes(clone: bool, source: Path, tmp_path: Path, convert, capsys) -> None:
    out = tmp_path / 'data' / 'bccd'
    convert('bccd', source.parent if clone else source, '--out', out, *SMALL)
    assert capsys.readouterr().out == (
        '2 boxes without area left out, in b\n'
        f'{out}: 2 train, 1 val, 1 test images of 32×24 pixels\n'
    )
    images = {f'img_dir/{split}/{name}.png' for split, names in SPLITS.items() for name in names}
    assert set(contents(out)) == images | {f'annotations/{split}.json' for split in SPLITS}
    assert Image.open(out / 'img_dir/val/c.png').size == (32, 24)
    train = coco(out, 'train')
    assert [(x['file_name'], x['width'], x['height']) for x in train['images']] == [
        ('a.png', 32, 24),
        ('b.png', 32, 24),
    ]
    assert [x['name'] for x in train['categories']] == ['RBC', 'WBC', 'Platelets']
    found = [(x['image_id'], x['category_id'], x['bbox'], x['area']) for x in train['annotations']]
    assert found == [
        (0, 1, [0.5, 0.5, 10, 10], 100),
        (0, 3, [25, 20, 7, 4], 28),
        (1, 2, [0, 0, 32, 24], 768),
    ]


def damage(source: Path, what: str) -> None:
    image, labels = source / 'JPEGImages/c.jpg', source / 'Annotations/c.xml'
    lists = source / 'ImageSets/Main'
    if what == 'no list':
        (lists / 'test.txt').unlink()
    elif what == 'empty list':
        (lists / 'test.txt').write_text('\n')
    elif what == 'twice':
        (lists / 'val.txt').write_text('c\nc\n')
    elif what == 'two lists':
        (lists / 'test.txt').write_text('d\nc\n')
    elif what == 'no annotation':
        labels.unlink()
    elif what == 'no image':
        image.unlink()
    elif what == 'not an image':
        image.write_bytes(b'version https://git-lfs')
    elif what == 'not xml':
        labels.write_text('<annotation>')
    elif what == 'no size':
        labels.write_text('<annotation></annotation>')
    elif what == 'no number':
        labels.write_text(annotation(('RBC', [1, 2, 'x', 4])))
    elif what == 'not a number':
        labels.write_text(annotation(('RBC', [1, 2, 'nan', 4])))
    elif what == 'class':
        labels.write_text(annotation(('Platelet', [1, 2, 3, 4])))
    elif what == 'outside':
        labels.write_text(annotation(('RBC', [1, 2, 65, 4])))
    elif what == 'reversed':
        labels.write_text(annotation(('RBC', [9, 2, 3, 4])))
    elif what == 'other size':
        labels.write_text(annotation(('RBC', [1, 2, 3, 4]), size=(640, 480)))
    elif what == 'other proportions':
        Image.new('RGB', (48, 48)).save(image)
        labels.write_text(annotation(('RBC', [1, 2, 3, 4]), size=(48, 48)))


@pytest.mark.parametrize(
    ('what', 'words'),
    [
        ('no list', '{source} is not BCCD: it has no ImageSets/Main/test.txt'),
        ('empty list', '{source}/ImageSets/Main/test.txt lists no image'),
        ('twice', '{source}/ImageSets/Main/val.txt lists c twice'),
        ('two lists', 'c is in two lists, val.txt and test.txt'),
        ('no annotation', 'c.jpg has no annotation {source}/Annotations/c.xml'),
        ('no image', 'there is no {source}/JPEGImages/c.jpg'),
        ('not an image', '{source}/JPEGImages/c.jpg cannot be read as an image: '),
        ('not xml', '{source}/Annotations/c.xml cannot be read as an annotation of VOC: '),
        ('no size', 'c.xml cannot be read as an annotation of VOC: it has no size/width'),
        ('no number', 'c.xml cannot be read as an annotation of VOC: could not convert string'),
        ('not a number', 'c.xml: the box [1.0, 2.0, nan, 4.0] (xmin, ymin, xmax, ymax) does not'),
        ('class', 'c.xml has the class Platelet; BCCD has RBC, WBC, Platelets; did you mean'),
        ('outside', 'c.xml: the box [1.0, 2.0, 65.0, 4.0] (xmin, ymin, xmax, ymax) does not lie'),
        ('reversed', 'c.xml: the box [9.0, 2.0, 3.0, 4.0] (xmin, ymin, xmax, ymax) does not lie'),
        ('other size', 'c.jpg has 64×48 pixels, and its annotation says 640×480'),
        ('other proportions', 'c.jpg has 48×48 pixels; --size 32x24 would change its proportions'),
    ],
)
def test_a_damaged_source_is_refused(
    what: str, words: str, source: Path, tmp_path: Path, refuses: Callable[..., str]
) -> None:
    damage(source, what)
    message = refuses('bccd', source, '--out', tmp_path / 'out', *SMALL)
    assert words.format(source=source) in message
    assert not (tmp_path / 'out').exists()


def read_by_the_config(out: Path, loader: str):
    cfg = Config.fromfile(ROOT / 'configs/_base_/datasets/bccd-256x192.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        __import__('mmdet.datasets')
        return DATASETS.build({**cfg[f'{loader}_dataloader'].dataset, 'data_root': str(out)})


def test_the_config_reads_it(source: Path, tmp_path: Path, convert) -> None:
    pytest.importorskip('mmdet.datasets')
    convert('bccd', source, '--out', tmp_path / 'out', *SMALL)
    for split, names in SPLITS.items():
        data = read_by_the_config(tmp_path / 'out', split)
        assert len(data) == len(names) and f'/{split}/' in data.get_data_info(0)['img_path']
    boxes = data[0]['data_samples'].gt_instances
    assert boxes.labels.tolist() == [0, 2]
    assert boxes.bboxes.tensor.tolist() == [[0.5, 0.5, 10.5, 10.5], [25, 20, 32, 24]]


def test_the_real_one(tmp_path: Path, convert, capsys) -> None:
    convert('bccd', real('BCCD'), '--out', tmp_path / 'out', '--size', '64x48')
    printed = capsys.readouterr().out
    assert '2 boxes without area left out' in printed
    assert '205 train, 87 val, 72 test images' in printed
    assert [len(coco(tmp_path / 'out', split)['annotations']) for split in SPLITS] == [
        2804,
        1137,
        945,
    ]
