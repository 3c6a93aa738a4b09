"""Every config under ``configs/`` builds; one of each detector and segmentor trains and predicts.

Nothing is downloaded: weights are random, and a teacher's checkpoint is only compared with the
metafile that the OpenMMLab packages carry.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from mmkd_plugin import stack

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
SHIPPED = sorted(
    path for path in CONFIGS.rglob('*.py') if '_base_' not in path.relative_to(CONFIGS).parts
)
FAMILIES = ('pspnet', 'deeplabv3', 'retinanet', 'faster-rcnn', 'fcos', 'reppoints', 'gfl')
SIZE = 128


@pytest.fixture(autouse=True, scope='module')
def one_thread() -> Iterator[None]:
    """Small maps gain nothing from threads, which on a busy machine wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in the configs start where ``tools/train.py`` is started."""
    monkeypatch.chdir(CONFIGS.parent)


def config_id(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix('').as_posix()


def first_of(family: str) -> Path:
    return next(
        path for path in SHIPPED if path.stem.startswith('cwd') and f'_{family}' in path.stem
    )


@contextmanager
def loaded(path: Path) -> Iterator[Config]:
    """Read a config and work in its scope, as a runner does; skip what is not installed."""
    stack.prepare()
    try:
        cfg = Config.fromfile(path)
    except PackageNotFoundError as error:
        pytest.skip(str(error))
    if cfg.default_scope == 'mmdet':
        pytest.importorskip('mmcv.ops')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield cfg


def teachers_of(model: dict) -> list[dict]:
    teacher = model.get('teacher') or []
    return [teacher] if isinstance(teacher, dict) else list(teacher)


def offline(cfg: Any) -> Any:
    """Fit a model's config to a test: no pretrained weights, BN for SyncBN, no large crops."""
    if isinstance(cfg, dict):
        for key, value in cfg.items():
            if key in ('pretrained', 'checkpoint') or (
                key == 'init_cfg' and isinstance(value, dict) and value.get('type') == 'Pretrained'
            ):
                cfg[key] = None
            elif key == 'data_preprocessor' and 'size' in value:
                value['size'] = (SIZE, SIZE)  # mmseg pads to the crop size
            elif key == 'type' and value == 'SyncBN':
                cfg[key] = 'BN'
            else:
                offline(value)
    elif isinstance(cfg, (list, tuple)):
        for item in cfg:
            offline(item)
    return cfg


def packed_inputs(scope: str, num: int = 2) -> dict:
    """Random images with random labels, as a data loader of mmseg or mmdet hands them over."""
    generator = torch.Generator().manual_seed(0)

    def randint(high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(high, size, generator=generator)

    metainfo = {
        'img_shape': (SIZE, SIZE),
        'ori_shape': (SIZE, SIZE),
        'pad_shape': (SIZE, SIZE),
        'scale_factor': (1.0, 1.0),
        'flip': False,
    }
    samples = []
    for index in range(num):
        if scope == 'mmseg':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=metainfo)
            sample.gt_sem_seg = PixelData(data=randint(10, (1, SIZE, SIZE)))
        else:
            from mmdet.structures import DetDataSample

            corner = randint(SIZE // 2, (3, 2)).float()
            size = 16 + randint(SIZE // 2 - 16, (3, 2)).float()
            sample = DetDataSample(metainfo={**metainfo, 'img_id': index})
            sample.gt_instances = InstanceData(
                bboxes=torch.cat([corner, corner + size], dim=1), labels=randint(10, (3,))
            )
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    images = [randint(256, (3, SIZE, SIZE)).to(torch.uint8) for _ in range(num)]
    return {'inputs': images, 'data_samples': samples}


def stock_configs(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs'


def official_checkpoint(config: str) -> str:
    """Look up the weights of ``pkg::family/name.py`` in that package's own metafile."""
    package, name = config.split('::')
    (metafile,) = (stock_configs(package) / name).parent.glob('metafile.y*ml')
    models = yaml.safe_load(metafile.read_text())['Models']
    (weights,) = [model['Weights'] for model in models if model['Config'] == f'configs/{name}']
    return weights


@pytest.mark.parametrize('path', SHIPPED, ids=config_id)
def test_config_survives_a_dump(path: Path, tmp_path: Path) -> None:
    with loaded(path) as cfg:
        cfg.dump(tmp_path / 'dumped.py')
        assert Config.fromfile(tmp_path / 'dumped.py').model == cfg.model


@pytest.mark.parametrize('path', SHIPPED, ids=config_id)
def test_teacher_checkpoint_is_the_official_one(path: Path) -> None:
    with loaded(path) as cfg:
        for teacher in teachers_of(cfg.model):
            if '::' not in str(teacher.config):
                continue
            official = urlparse(official_checkpoint(teacher.config))
            named = urlparse(teacher.checkpoint)
            # The stacks serve the same files from different hosts.
            assert (named.scheme, named.path) == ('https', official.path)


@pytest.mark.parametrize('path', SHIPPED, ids=config_id)
def test_name_ends_with_that_of_the_students_config(path: Path) -> None:
    with loaded(path) as cfg:
        if not any('::' in str(teacher.config) for teacher in teachers_of(cfg.model)):
            pytest.skip('neither student nor teacher is a stock model')
        known = [*stock_configs(cfg.default_scope).glob('*/*.py'), *CONFIGS.rglob('students/*.py')]
        known = [student for student in known if path.stem.endswith(f'_{student.stem}')]
        model = Config.fromfile(max(known, key=lambda student: len(student.stem))).model
        assert {**cfg.model.student, '_scope_': None} == {**model, '_scope_': None}


@pytest.mark.parametrize('path', SHIPPED, ids=config_id)
def test_config_builds(path: Path) -> None:
    with loaded(path) as cfg:
        model = MODELS.build(offline(cfg.model))
        student = MODELS.build(cfg.model.get('student', cfg.model))
    assert list(model.state_dict()) == list(student.state_dict())


@pytest.mark.parametrize('family', FAMILIES)
def test_config_trains_and_predicts(family: str) -> None:
    torch.manual_seed(0)
    with loaded(first_of(family)) as cfg:
        model = MODELS.build(offline(cfg.model))
    scope, terms = cfg.default_scope, cfg.model.distill
    model.init_weights()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    logs = model.train_step(packed_inputs(scope), OptimWrapper(optimizer))

    assert {key for key in logs if key.startswith('distill.')} == {
        f'distill.{term}.loss' for term in terms
    }
    assert all(torch.isfinite(value).all() for value in logs.values()), logs
    after = model.state_dict()
    learned = {name for name, _ in model.named_parameters() if name in after}
    moved = {name for name in learned if not torch.equal(before[name], after[name])}
    assert any(name.startswith('backbone.') for name in moved)
    assert any(re.match(r'\w*head\.', name) for name in moved)

    model.eval()
    with torch.no_grad():
        (prediction,) = model.test_step(packed_inputs(scope, num=1))
    if scope == 'mmseg':
        assert prediction.pred_sem_seg.data.shape == (1, SIZE, SIZE)
    else:
        assert prediction.pred_instances.bboxes.shape[1:] == (4,)
