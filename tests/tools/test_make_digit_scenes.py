"""The DigitScenes generator: what it draws, what it writes, what it refuses, who can read it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmkd_plugin import digit_scenes
from tests.tools.tool_runs import load_tool

pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'make_digit_scenes.py'
DATASETS = ROOT / 'configs' / '_base_' / 'datasets'
SMALL = ('--train', '5', '--val', '3', '--size', '96')


tool = load_tool('make_digit_scenes')


def make(out: str | Path, *args: str) -> int:
    """Run the tool in this process."""
    return tool.main(['--out', str(out), *args])


def run(out: Path, *args: str) -> subprocess.CompletedProcess:
    """Run the tool as a user does; whatever goes wrong, nobody should see a traceback."""
    command = [sys.executable, str(TOOL), '--out', str(out), *args]
    result = subprocess.run(command, capture_output=True, text=True)
    assert 'Traceback' not in result.stderr, result.stderr
    return result


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file()
    }


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A small data set that no test may change."""
    out = tmp_path_factory.mktemp('digits') / 'scenes'
    assert make(out, *SMALL) == 0
    return out


@pytest.fixture
def copy(made, tmp_path):
    """The same for tests that damage it."""
    out = tmp_path / 'scenes'
    for name, content in contents(made).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    return out


def coco(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / 'annotations' / f'instances_{split}.json').read_text())


def mask_of(folder: Path, split: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(folder / 'ann_dir' / split / name))


def decode(rle: dict[str, list[int]]) -> np.ndarray:
    """Undo COCO run lengths, independently of the tool and of pycocotools."""
    height, width = rle['size']
    values = np.arange(len(rle['counts'])) % 2
    return np.repeat(values, rle['counts']).reshape(width, height).T.astype(bool)


class TestBytes:
    def test_same_arguments_same_bytes(self, made, tmp_path):
        make(tmp_path / 'again', *SMALL)
        assert contents(tmp_path / 'again') == contents(made)

    def test_other_process_same_bytes(self, made, tmp_path):
        run(tmp_path / 'again', *SMALL)
        assert contents(tmp_path / 'again') == contents(made)

    def test_other_seed_other_images(self, made, tmp_path):
        make(tmp_path / 'other', *SMALL, '--seed', '1')
        first, second = contents(made), contents(tmp_path / 'other')
        assert first.keys() == second.keys()
        assert all(first[name] != second[name] for name in first)

    def test_a_scene_does_not_depend_on_how_many_there_are(self, made, tmp_path):
        make(tmp_path / 'fewer', '--train', '2', '--val', '1', '--size', '96')
        whole = contents(made)
        images = {n: c for n, c in contents(tmp_path / 'fewer').items() if n.endswith('.png')}
        assert len(images) == 6
        assert all(whole[name] == content for name, content in images.items())

    def test_scenes_differ_from_each_other(self, made):
        images = [c for name, c in contents(made).items() if name.startswith('img_dir')]
        assert len(set(images)) == 8

    def test_manifest_lists_every_other_file(self, made):
        manifest = json.loads((made / 'manifest.json').read_text())
        assert {*manifest['files'], 'manifest.json'} == set(contents(made))
        assert manifest['arguments'] == {'train': 5, 'val': 3, 'size': 96, 'seed': 0}


class TestOriginals:
    def test_no_digit_and_no_column_in_both_splits(self):
        train, val = (set(digit_scenes.originals_of(split, 1797)) for split in digit_scenes.SPLITS)
        assert not train & val
        assert train | val == set(range(1797))
        assert digit_scenes.COLUMNS_OF['train'][1] <= digit_scenes.COLUMNS_OF['val'][0]

    def test_every_class_in_both_splits(self):
        labels = tool.load_sources().labels
        for split in digit_scenes.SPLITS:
            assert set(labels[list(digit_scenes.originals_of(split, 1797))]) == set(range(10))

    def test_what_was_drawn_keeps_to_the_split(self, made):
        labels = tool.load_sources().labels
        for split in digit_scenes.SPLITS:
            allowed = digit_scenes.originals_of(split, 1797)
            for annotation in coco(made, split)['annotations']:
                assert annotation['original'] in allowed
                assert labels[annotation['original']] + 1 == annotation['category_id']

    def test_backgrounds_come_from_the_columns_of_the_split(self):
        ramp = np.broadcast_to(np.arange(640) / 640 * 255, (427, 640)).astype(np.uint8)
        photo = np.stack([ramp] * 3, axis=-1)
        for seed in range(20):
            rng = np.random.default_rng(seed)
            assert digit_scenes.draw_background((photo,), 'train', 64, rng).max() <= 0.7
            assert digit_scenes.draw_background((photo,), 'val', 64, rng).min() >= 0.69


class TestDrawing:
    def test_upright_digit_keeps_its_shape(self):
        digits = tool.load_sources().digits[:10]
        for digit in digits:
            ink = digit_scenes.draw_digit(digit, 40, 0)
            assert ink.shape == (60, 60)
            middle = ink[10:50, 10:50].reshape(8, 5, 8, 5).mean((1, 3))
            assert np.corrcoef(middle.ravel(), digit.ravel())[0, 1] > 0.98
            assert middle.sum() * 25 > 0.98 * ink.sum()  # almost nothing outside its side

    def test_rotation_turns_by_the_angle(self):
        digit = np.zeros((8, 8))
        digit[:, 3:5] = 1
        assert np.allclose(
            digit_scenes.draw_digit(digit, 40, 90), digit_scenes.draw_digit(digit, 40, 0).T
        )

    def test_ink_has_the_contrast_asked_for(self):
        for seed in range(50):
            behind = np.full((10, 3), seed / 50)
            ink = digit_scenes.pick_ink(behind, np.random.default_rng(seed))
            assert 0 <= ink.min() <= ink.max() <= 1
            assert abs(ink.mean() - behind.mean()) > 0.5 * digit_scenes.CONTRAST[0]

    @pytest.mark.parametrize('size', [64, 128, 256])
    def test_number_and_visibility_of_digits(self, size):
        sources = tool.load_sources()
        low, high = digit_scenes.DIGITS_PER_SCENE
        for index in range(8):
            scene = digit_scenes.compose_scene(sources, 'train', index, size, seed=0)
            assert scene.image.shape == (size, size, 3)
            assert low <= len(scene.instances) <= high
            for instance in scene.instances:
                assert instance.mask.sum() > 0.005 * size * size
        # every pixel of an instance is in the class mask, and the other way round
        assert sum(i.mask.sum() for i in scene.instances) == ((scene.labels % 255) > 0).sum()

    def test_digits_overlap_somewhere(self):
        sources = tool.load_sources()
        hidden = 0
        for index in range(12):
            scene = digit_scenes.compose_scene(sources, 'train', index, 128, seed=0)
            boxes = [tool.bounding_box(i.mask) for i in scene.instances]
            hidden += sum(
                a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3]
                and b[1] < a[1] + a[3]
                for k, a in enumerate(boxes)
                for b in boxes[:k]
            )  # fmt: skip
        assert hidden > 6


class TestMasks:
    def test_palette_and_values(self, made):
        for split in digit_scenes.SPLITS:
            for path in (made / 'ann_dir' / split).iterdir():
                image = Image.open(path)
                assert image.mode == 'P'
                assert image.getpalette()[:33] == [v for colour in tool.PALETTE for v in colour]
                values = set(np.unique(np.asarray(image)))
                assert values <= {*range(11), 255}
                assert {0, 255} < values

    def test_a_ring_lies_between_digits_and_everything_else(self, made):
        mask = mask_of(made, 'train', '00000.png').astype(int)
        for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            ink = (a % 255 > 0) & (b % 255 > 0)
            assert np.all(a[ink] == b[ink])
            touching = (a % 255 > 0) != (b % 255 > 0)
            assert np.all((a == 255) | (b == 255) | ~touching)


class TestCoco:
    def test_instances_and_class_mask_are_the_same_pixels(self, made):
        for split, count in (('train', 5), ('val', 3)):
            content = coco(made, split)
            assert len(content['images']) == count
            assert [c['name'] for c in content['categories']] == [str(d) for d in range(10)]
            assert len({a['id'] for a in content['annotations']}) == len(content['annotations'])
            for image in content['images']:
                labels = mask_of(made, split, image['file_name'])
                assert labels.shape == (image['height'], image['width'])
                classes = np.zeros_like(labels)
                for a in content['annotations']:
                    if a['image_id'] == image['id']:
                        mask = decode(a['segmentation'])
                        assert not classes[mask].any()
                        classes[mask] = a['category_id']
                assert np.array_equal(np.where(labels == 255, 0, labels), classes)

    def test_boxes_enclose_the_masks_tightly(self, made):
        for a in coco(made, 'train')['annotations']:
            mask = decode(a['segmentation'])
            x, y, w, h = a['bbox']
            inside = mask[y : y + h, x : x + w]
            assert inside.sum() == mask.sum() == a['area']
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))

    def test_pycocotools_reads_the_masks(self, made):
        pytest.importorskip('pycocotools')
        from pycocotools.coco import COCO

        api = COCO(str(made / 'annotations' / 'instances_val.json'))
        for a in api.loadAnns(api.getAnnIds()):
            assert np.array_equal(api.annToMask(a), decode(a['segmentation']))

    @pytest.mark.parametrize('first', [0, 1])
    def test_rle_of_a_mask_that_starts_with(self, first):
        mask = np.zeros((4, 3), bool)
        mask[:2] = first
        mask[3, 2] = True
        rle = tool.encode_rle(mask)
        assert sum(rle['counts']) == 12
        assert np.array_equal(decode(rle), mask)


class TestExistingFolder:
    def test_complete_is_left_as_it_is(self, copy):
        before = {path: path.stat().st_mtime_ns for path in copy.rglob('*')}
        result = run(copy, *SMALL)
        assert result.returncode == 0
        assert 'already there' in result.stdout
        assert {path: path.stat().st_mtime_ns for path in copy.rglob('*')} == before

    def test_other_arguments(self, copy):
        result = run(copy, '--train', '6', '--val', '3', '--size', '96', '--seed', '7')
        assert result.returncode == 2
        assert '--train is 5 there and 6 here' in result.stderr
        assert '--seed is 0 there and 7 here' in result.stderr
        assert '--val is' not in result.stderr
        assert f'--out {copy}_train6_seed7' in result.stderr

    def test_other_settings(self, copy, monkeypatch, capsys):
        monkeypatch.setattr(digit_scenes, 'MAX_ROTATION', 45.0)
        assert make(copy, *SMALL) == 2
        assert 'MAX_ROTATION is 20.0 there and 45.0 here' in capsys.readouterr().err

    def test_other_version(self, copy, monkeypatch, capsys):
        monkeypatch.setattr(tool, 'VERSION', tool.VERSION + 1)
        assert make(copy, *SMALL) == 2
        assert 'VERSION' in capsys.readouterr().err

    @pytest.mark.parametrize(
        'name', ['img_dir/train/00003.png', 'annotations/instances_val.json', 'manifest.json']
    )
    def test_missing_file(self, copy, name):
        (copy / name).unlink()
        result = run(copy, *SMALL)
        assert result.returncode == 1
        assert Path(name).name in result.stderr
        assert f'Remove the folder {copy}' in result.stderr

    def test_changed_byte(self, copy, capsys):
        path = copy / 'ann_dir' / 'val' / '00001.png'
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
        assert make(copy, *SMALL) == 1
        assert f'{path} was changed' in capsys.readouterr().err

    @pytest.mark.parametrize('text', ['', '{"format": "mmkd', '[]', '{"format": "other"}'])
    def test_damaged_manifest(self, copy, text, capsys):
        (copy / 'manifest.json').write_text(text)
        assert make(copy, *SMALL) == 1
        assert 'manifest.json is missing or damaged' in capsys.readouterr().err

    def test_an_image_too_many(self, copy, capsys):
        extra = copy / 'img_dir' / 'train' / 'holiday.png'
        extra.write_bytes(b'')
        assert make(copy, *SMALL) == 1
        assert str(extra) in capsys.readouterr().err
        assert extra.exists()

    @pytest.mark.parametrize('name', ['notes.txt', 'manifest.json'])
    def test_foreign_folder_is_not_touched(self, tmp_path, name):
        (tmp_path / name).write_text('{"mine": 1}')
        result = run(tmp_path, *SMALL)
        assert result.returncode == 2
        assert f"holds something else ('{name}')" in result.stderr
        assert contents(tmp_path) == {name: b'{"mine": 1}'}

    def test_file_in_the_way(self, tmp_path, capsys):
        path = tmp_path / 'scenes'
        path.write_text('mine')
        assert make(path, *SMALL) == 2
        assert 'is a file' in capsys.readouterr().err
        assert path.read_text() == 'mine'

    def test_empty_folder_is_filled(self, made, tmp_path, monkeypatch):
        empty = tmp_path / 'empty'
        empty.mkdir()
        monkeypatch.chdir(empty)
        assert make('.', *SMALL) == 0
        assert contents(tmp_path / 'empty') == contents(made)

    def test_missing_parents_are_made(self, tmp_path):
        assert make(tmp_path / 'a' / 'b', '--train', '1', '--val', '1', '--size', '64') == 0
        assert len(contents(tmp_path / 'a' / 'b')) == 7
        assert [path.name for path in (tmp_path / 'a').iterdir()] == ['b']

    def test_place_that_cannot_be_written(self, tmp_path):
        (tmp_path / 'file').write_text('')
        result = run(tmp_path / 'file' / 'scenes', *SMALL)
        assert result.returncode == 1
        assert result.stderr.startswith('Error: cannot read or write')


STOPPED = """
import os, runpy, signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
write = Path.write_bytes
def stopped(path, content):
    write(path, content)
    if path.match('img_dir/train/00002.png'):
        os.kill(os.getpid(), {stop})
Path.write_bytes = stopped
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name='__main__')
"""


class TestInterruptedRun:
    @pytest.mark.skipif(sys.platform == 'win32', reason='signals')
    @pytest.mark.parametrize('stop', [signal.SIGKILL, signal.SIGINT])
    def test_leaves_nothing_that_looks_complete(self, made, tmp_path, stop):
        out, partial = tmp_path / 'scenes', tmp_path / 'scenes.partial'
        code = STOPPED.format(stop=int(stop), argv=[str(TOOL), '--out', str(out), *SMALL])
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
        assert not out.exists() and (partial / 'img_dir' / 'train' / '00002.png').exists()
        if stop == signal.SIGINT:
            assert 'Interrupted' in done.stderr
            assert 'Traceback' not in done.stderr

        result = run(out, *SMALL)
        assert result.returncode == 0
        assert 'Replacing what an interrupted run left' in result.stdout
        assert contents(out) == contents(made)
        assert not partial.exists()

    def test_partial_folder_of_somebody_else_is_not_touched(self, tmp_path, capsys):
        mine = tmp_path / 'scenes.partial' / 'mine.txt'
        mine.parent.mkdir()
        mine.write_text('mine')
        assert make(tmp_path / 'scenes', *SMALL) == 2
        assert 'not from this tool' in capsys.readouterr().err
        assert mine.read_text() == 'mine'


class TestArguments:
    @pytest.mark.parametrize(
        ('name', 'value', 'message'),
        [
            ('--size', '63', '--size must be at least 64'),
            ('--train', '0', '--train must be at least 1'),
            ('--val', '-3', '--val must be at least 1'),
            ('--seed', '-1', '--seed must be at least 0'),
            ('--train', 'many', 'invalid int value'),
        ],
    )
    def test_wrong_value(self, tmp_path, capsys, name, value, message):
        with pytest.raises(SystemExit) as stopped:
            make(tmp_path / 'scenes', name, value)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err

    def test_defaults_are_those_of_the_configs(self):
        args = tool.parse_args([])
        for name in ('seg', 'det'):
            text = (DATASETS / f'digit_scenes_{name}.py').read_text()
            assert f"data_root = '{args.out.as_posix()}/'" in text
            assert f'({args.size}, {args.size})' in text

    def test_without_scikit_learn(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
        assert make(tmp_path / 'scenes', *SMALL) == 2
        assert 'pip install scikit-learn' in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def dataset_config(task: str, made: Path) -> Any:
    """The shipped config, pointed at the folder."""
    from mmengine.config import Config

    cfg = Config.fromfile(DATASETS / f'digit_scenes_{task}.py')
    cfg.merge_from_dict(
        {f'{split}_dataloader.dataset.data_root': f'{made}/' for split in ('train', 'val', 'test')}
    )
    return cfg


def built(task: str, made: Path) -> tuple[Any, Any]:
    """The training and validation sets of the shipped config."""
    from mmengine.registry import DATASETS

    cfg = dataset_config(task, made)
    train, val = (DATASETS.build(x.dataset) for x in (cfg.train_dataloader, cfg.val_dataloader))
    assert (len(train), len(val)) == (5, 3)
    assert train[0]['inputs'].shape == (3, 128, 128)
    return train, val


@pytest.fixture
def scope(request):
    """Build by unprefixed names, as a Runner with this default scope does."""
    package = pytest.importorskip(request.param)
    pytest.importorskip(f'{package.__name__}.datasets')
    from mmengine.registry import DefaultScope

    __import__(f'{package.__name__}.evaluation')
    with DefaultScope.overwrite_default_scope(package.__name__):
        yield package.__name__


@pytest.mark.parametrize('scope', ['mmseg'], indirect=True)
class TestStockSegmentation:
    def test_dataset(self, scope, made):
        from mmseg.datasets import BaseSegDataset

        train, val = built('seg', made)
        assert type(train) is BaseSegDataset
        assert train.metainfo['classes'] == tool.CLASSES
        assert train.metainfo['palette'] == [list(colour) for colour in tool.PALETTE]

        assert train[0]['data_samples'].gt_sem_seg.data.shape == (1, 128, 128)
        read = val[1]['data_samples'].gt_sem_seg.data[0].numpy()
        assert np.array_equal(read, mask_of(made, 'val', '00001.png'))

    def test_metric_gives_full_marks_to_the_truth(self, scope, made):
        from mmengine.registry import DATASETS, METRICS

        cfg = dataset_config('seg', made)
        val = DATASETS.build(cfg.val_dataloader.dataset)
        metric = METRICS.build(cfg.val_evaluator)
        metric.dataset_meta = val.metainfo
        for item in val:
            sample = item['data_samples']
            sample.pred_sem_seg = sample.gt_sem_seg.clone()
            sample.pred_sem_seg.data = sample.gt_sem_seg.data % 255
            metric.process({}, [sample.to_dict()])
        assert metric.evaluate(len(val))['mIoU'] == 100


@pytest.mark.parametrize('scope', ['mmdet'], indirect=True)
class TestStockDetection:
    def test_dataset(self, scope, made):
        from mmdet.datasets import CocoDataset

        train, _ = built('det', made)
        assert type(train) is CocoDataset
        assert train.metainfo['classes'] == tool.CLASSES[1:]
        assert train.metainfo['palette'] == list(tool.PALETTE[1:])

        wanted = [a for a in coco(made, 'train')['annotations'] if a['image_id'] == 0]
        found = train[0]['data_samples'].gt_instances
        assert found.labels.tolist() == [a['category_id'] - 1 for a in wanted]
        corners = np.array([a['bbox'] for a in wanted], float)
        corners[:, 2:] += corners[:, :2]
        assert np.allclose(found.bboxes.tensor.numpy(), corners * 128 / 96, atol=1e-3)

    def test_masks(self, scope, made):
        from mmengine.registry import DATASETS

        cfg = dataset_config('det', made)
        cfg.val_dataloader.dataset.pipeline[2].with_mask = True
        cfg.val_dataloader.dataset.pipeline[1].scale = (96, 96)
        val = DATASETS.build(cfg.val_dataloader.dataset)
        masks = val[0]['data_samples'].gt_instances.masks.to_ndarray()
        wanted = [a for a in coco(made, 'val')['annotations'] if a['image_id'] == 0]
        assert np.array_equal(masks, np.stack([decode(a['segmentation']) for a in wanted]))

    def test_metric_gives_full_marks_to_the_truth(self, scope, made):
        import torch
        from mmengine.registry import DATASETS, METRICS

        cfg = dataset_config('det', made)
        assert cfg.val_evaluator.ann_file == 'data/digit_scenes/annotations/instances_val.json'
        cfg.val_evaluator.ann_file = str(made / 'annotations' / 'instances_val.json')
        val = DATASETS.build(cfg.val_dataloader.dataset)
        metric = METRICS.build(cfg.val_evaluator)
        metric.dataset_meta = val.metainfo
        for item in val:
            sample = item['data_samples']
            truth = sample.gt_instances  # loaded after Resize, so in pixels of the file
            sample.pred_instances = type(truth)(
                bboxes=truth.bboxes.tensor,
                labels=truth.labels,
                scores=torch.ones(len(truth)),
            )
            metric.process({}, [sample.to_dict()])
        assert metric.evaluate(len(val))['coco/bbox_mAP'] == 1
