"""Every config under ``configs/`` builds, and every term of every recipe teaches the backbone.

Nothing is downloaded: weights are random, and a teacher's checkpoint is only compared with the
metafile that the OpenMMLab packages carry.

Recipes of one pair in ``_base_/pairs`` differ in what they add to it. The first of each pair is
built as it is; the others are built an eighth as wide, with the same modules.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from PIL import Image
from torch import Tensor, nn

from mmkd_plugin import losses, stack
from mmkd_plugin.models.batch_augments import use_stock_preprocessor
from mmkd_plugin.paraphrasing import stage_config
from tests.models.foundation.weights import stand_in
from tests.narrow_models import narrow, shallow

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
SHIPPED = sorted(
    path for path in CONFIGS.rglob('*.py') if '_base_' not in path.relative_to(CONFIGS).parts
)
PAIRS = sorted(path.stem for path in CONFIGS.glob('_base_/pairs/*.py'))
PAIR_OF = {path: pair for path in SHIPPED for pair in PAIRS if path.stem.endswith(f'_{pair}')}
#: A student and a self-teacher, and no pair in ``_base_/pairs``.
ALONE = [path for path in SHIPPED if path.parent.name == 'frskd' and path not in PAIR_OF]
#: Folders of the models that are trained on small data sets, teachers and students.
OWN_DATA = ('digit_scenes', 'camvid', 'bccd')
#: Recipes that are the only one of their pair, and name it themselves.
ONLY_ONE = [p for p in SHIPPED if p not in (*PAIR_OF, *ALONE) and p.parent.name not in OWN_DATA]
#: Pairs whose whole models take long to build: ``make families`` builds them.
LARGE = ('x101', 'swin', 'convnext', 'rtmdet', 'yolox', 'deeplabv3plus', 'mit-b0_8xb2')
if os.environ.get('FAMILIES') == 'all':
    LARGE = ()
ONE_OF_EACH = list({pair: path for path, pair in reversed(PAIR_OF.items())}.values())
#: One recipe of each pair; what is true of the pair is tested with it alone.
SAMPLES = [path for path in ONE_OF_EACH if not any(part in path.stem for part in LARGE)]
WHOLE = [path for path in SHIPPED if path not in PAIR_OF or path in SAMPLES]
CITYSCAPES, DIGITS_SEG, COCO, DIGITS_DET = (
    next(pair for pair in PAIRS if re.search(pattern, pair))
    for pattern in (
        '^pspnet.*pspnet_r18.*cityscapes',
        '^fpn.*digit-scenes',
        '^retinanet.*coco',
        '^retinanet.*digit-scenes',
    )
)
#: What needs labels of positions, or compares one class of several at each.
SEGMENTATION_ONLY = (
    'DecoupledLoss',
    'DenseContrastLoss',
    'IntraClassVariationLoss',
    'JaccardLoss',
    'MemoryContrastLoss',
    'NormalizedTargetLoss',
)
#: What a segmentor has no boxes for, or no assigner, or was made for detectors.
DETECTION_ONLY = (
    'AttentionGuidedLoss', 'BoxDistributionLoss', 'CrossHeadLoss', 'FocalGlobalLoss',
    'ProtocolLoss',
)  # fmt: skip
#: What needs a head with distributions of boxes.
DISTRIBUTIONS_ONLY = ('BoxDistributionLoss',)
#: What needs decoders that take the same queries: the pairs of all methods do not have them.
QUERIES_ONLY = ('SharedQueriesLoss', 'SharedMasksLoss')
FAMILIES = (
    'pspnet', 'deeplabv3', 'segformer', 'retinanet', 'faster-rcnn', 'fcos', 'reppoints', 'gfl',
)  # fmt: skip
SIZE = 128


@pytest.fixture(autouse=True, scope='module')
def one_thread() -> Iterator[None]:
    """One thread: small maps gain nothing from more, and threads wait on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths in the configs start at the root of the repository."""
    monkeypatch.chdir(CONFIGS.parent)


pytestmark = pytest.mark.usefixtures('counters')


def config_id(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix('').as_posix()


def first_of(family: str) -> Path:
    return next(
        path
        for path in SHIPPED
        if path.stem.startswith(('cwd', 'cirkd')) and f'_{family}' in path.stem
    )


@cache
def read(path: Path | str) -> Config:
    stack.prepare()
    path = stack.shipped_config(path) if '::' in str(path) else path
    return Config.fromfile(path)


def buildable(paths: Iterable[Path]) -> list:
    """Recipes as arguments of a test that builds their teachers; one library may be missing."""
    lacks = pytest.mark.skipif(find_spec('mmpretrain') is None, reason='mmpretrain: ConvNeXt')
    return [pytest.param(p, marks=[lacks] * ('convnext' in p.stem), id=config_id(p)) for p in paths]


@contextmanager
def loaded(path: Path) -> Iterator[Config]:
    """Read a config and work in its scope, as a runner does; skip what is not installed."""
    try:
        cfg = copy.deepcopy(read(path))
    except PackageNotFoundError as error:
        pytest.skip(str(error))
    if cfg.default_scope == 'mmdet' or 'mmdet.' in str(cfg.model):
        pytest.importorskip('mmcv.ops')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield cfg


def teachers_of(model: dict) -> list[dict]:
    teacher = model.get('teacher') or []
    return [teacher] if isinstance(teacher, dict) else teacher


def stock_teachers(model: dict) -> list[dict]:
    """The teachers that OpenMMLab has trained."""
    teachers = teachers_of(model)
    names = [str(teacher.get('config')) for teacher in teachers]
    return [
        teacher
        for teacher, name in zip(teachers, names)
        if '::' in name and not name.startswith('mmkd::')
    ]


def offline(cfg: Any) -> Any:
    """Fit a model's config to a test: random weights, BN for SyncBN, no large crops."""
    if isinstance(cfg, dict):
        for key, value in list(cfg.items()):
            if key in ('pretrained', 'checkpoint') or (
                key == 'init_cfg' and isinstance(value, dict) and value.get('type') == 'Pretrained'
            ):
                cfg[key] = None
            elif key == 'data_preprocessor':  # both libraries may pad to the crop size
                for one in (value, *(value.get('batch_augments') or ())):
                    if 'size' in one:
                        one['size'] = (SIZE, SIZE)
            elif key == 'type' and value == 'SyncBN':
                cfg[key] = 'BN'
            elif key == 'teacher_connector' and 'Normalizer' in value['type']:
                del cfg[key]  # there is no file, and nothing is random about it
            elif key == 'teacher_connector':
                value['checkpoint'] = None  # tools/train.py names the file
            elif key == 'source':
                cfg['path'] = stand_in(value, cfg['path'])
            else:
                offline(value)
    elif isinstance(cfg, (list, tuple)):
        for item in cfg:
            offline(item)
    return cfg


def quick(model: Any) -> Any:
    """A Distiller's config for small images, where it has models that ask queries.

    There are few queries, and a Swin Transformer has one block in each stage.
    """
    if not asks_queries(model):
        return model
    for teacher in stock_teachers(model):
        teacher.config = offline(copy.deepcopy(read(teacher.config).model))
    taught = [one.config for one in teachers_of(model) if not isinstance(one.config, str)]
    for one in (model.student, *taught):  # a teacher of ours is small as it is
        if 'depths' in one.backbone:
            shallow(one)
        for part in (one, one.get('decode_head', {}), one.get('panoptic_head', {})):
            if 'num_queries' in part:
                part['num_queries'] = 20
    return model


def asks_queries(model: Any) -> bool:
    """Whether the student or a teacher has a decoder with queries, which are not made narrow."""
    models = [model.get('student', {}), *(read(t.config).model for t in stock_teachers(model))]
    return any('num_queries' in str(one) for one in models)


def fit_for_a_test(model: Any) -> Any:
    """A Distiller's config with student and teacher narrow, where they are stock models.

    A step here has labelled images alone.
    """
    model = offline(model)
    model.pop('unlabelled', None)
    if asks_queries(model):
        return quick(model)
    if stock_teachers(model):
        model.student = narrow(model.student)
    for teacher in stock_teachers(model):
        teacher.config = narrow(offline(copy.deepcopy(read(teacher.config).model)))
    return model


def packed_inputs(scope: str, num: int = 2, masks: bool = True) -> dict:
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
            sample.gt_edge_map = PixelData(data=randint(2, (1, SIZE, SIZE)))
        else:
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks

            corner = randint(SIZE // 2, (3, 2)).float()
            size = 16 + randint(SIZE // 2 - 16, (3, 2)).float()
            sample = DetDataSample(metainfo={**metainfo, 'img_id': index})
            sample.gt_instances = InstanceData(
                bboxes=torch.cat([corner, corner + size], dim=1), labels=randint(3, (3,))
            )
            if masks:
                pixels = randint(2, (3, SIZE, SIZE)).byte().numpy()
                sample.gt_instances.masks = BitmapMasks(pixels, SIZE, SIZE)
                # behind the things: stuff, whose numbers follow those of the things of COCO
                sample.gt_sem_seg = PixelData(sem_seg=80 + randint(10, (1, SIZE, SIZE)))
            sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    images = [randint(256, (3, SIZE, SIZE)).to(torch.uint8) for _ in range(num)]
    return {'inputs': images, 'data_samples': samples}


def stock_configs(package: str) -> Path:
    return Path(find_spec(package).origin).parent / '.mim' / 'configs'


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
        if path not in WHOLE:  # writing a whole model takes most of the time
            for part in ('student', 'teacher'):
                del cfg.model[part]
            cfg = Config(dict(model=cfg.model))
        cfg.dump(tmp_path / 'dumped.py')
        assert Config.fromfile(tmp_path / 'dumped.py').model == cfg.model


@pytest.mark.parametrize('path', SHIPPED, ids=config_id)
def test_teacher_checkpoint_is_the_official_one(path: Path) -> None:
    with loaded(path) as cfg:
        for teacher in stock_teachers(cfg.model):
            official = urlparse(official_checkpoint(teacher.config))
            named = urlparse(teacher.checkpoint)
            # The stacks serve the same files from different hosts.
            assert (named.scheme, named.path) == ('https', official.path)


@pytest.mark.parametrize('path', SHIPPED, ids=config_id)
def test_name_ends_with_that_of_the_students_config(path: Path) -> None:
    with loaded(path) as cfg:
        if 'student' not in cfg.model:
            pytest.skip('a model that is trained alone')
        known = [*stock_configs(cfg.default_scope).glob('*/*.py')]
        for folder in ('_base_/students', *OWN_DATA):
            known += CONFIGS.glob(f'{folder}/*.py')
        known = [student for student in known if path.stem.endswith(f'_{student.stem}')]
        model = Config.fromfile(max(known, key=lambda student: len(student.stem))).model
        use_stock_preprocessor(cfg.model)  # the recipes with CutMix have another one
        assert {**cfg.model.student, '_scope_': None} == {**model, '_scope_': None}


@pytest.mark.parametrize('path', buildable(WHOLE))
def test_config_builds(path: Path) -> None:
    with loaded(path) as cfg:
        model = quick(offline(cfg.model))
        alone = copy.deepcopy(model.get('student', model))  # some detectors change their config
        model, student = MODELS.build(offline(model)), MODELS.build(alone)
    assert list(model.state_dict()) == list(student.state_dict())


@pytest.mark.parametrize('path', buildable(SAMPLES))
def test_narrow_models_have_the_modules_of_the_whole_ones(path: Path) -> None:
    with loaded(path) as cfg:
        if not stock_teachers(cfg.model) or 'mobilenet-v3' in path.stem:
            pytest.skip('these models are small as they are')
        for model in (cfg.model.student, read(cfg.model.teacher.config).model):
            whole = MODELS.build(offline(copy.deepcopy(model)))
            small = MODELS.build(narrow(offline(copy.deepcopy(model))))
            for get in (nn.Module.named_modules, nn.Module.named_parameters):
                ours, theirs = dict(get(small)), dict(get(whole))
                assert list(ours) == list(theirs)
                assert [type(x) for x in ours.values()] == [type(x) for x in theirs.values()]
            frozen = [[not p.requires_grad for p in m.parameters()] for m in (small, whole)]
            assert frozen[0] == frozen[1]
            count = [sum(p.numel() for p in m.parameters()) for m in (small, whole)]
            assert 30 * count[0] < count[1]


@pytest.mark.parametrize('path', [*map(first_of, FAMILIES), *ALONE], ids=config_id)
def test_config_trains_and_predicts(path: Path, counters: MessageHub) -> None:
    torch.manual_seed(0)
    with loaded(path) as cfg:
        model = MODELS.build(offline(cfg.model))
    scope, terms = cfg.default_scope, cfg.model.distill
    for counter in ('iter', 'epoch'):
        counters.update_info(counter, 10**6)  # every term is on
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


# Recipes: what each term does ---------------------------------------------------------------------


def schedules_of(model: Any) -> dict[str, dict]:
    """The schedule of each term, and that of the student's own losses, if any, as ``''``."""
    task = model.get('task') or {}
    lines = {**({} if task.get('loss_weight') == 0 else {'': task}), **model.distill}
    return {name: dict(line.get('schedule') or {}) for name, line in lines.items()}


def is_on(schedule: dict, moment: int) -> bool:
    return schedule.get('start', 0) <= moment < schedule.get('stop', float('inf'))


def gradients(loss: Tensor, module: nn.Module) -> dict[str, float]:
    """The largest gradient of each parameter that the loss depends on, by name."""
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        return {}
    found = torch.autograd.grad(loss, [*parameters.values()], retain_graph=True, allow_unused=True)
    return {
        n: g.abs().max().item() for n, g in zip(parameters, found, strict=True) if g is not None
    }


@pytest.mark.parametrize('path', buildable([*PAIR_OF, *ALONE, *ONLY_ONE]))
def test_every_term_teaches_the_backbone(path: Path, counters: MessageHub) -> None:
    """One step in each phase of a recipe; two images have no angles between them, so three."""
    torch.manual_seed(0)
    with loaded(path) as cfg:
        config = fit_for_a_test(cfg.model)
        if 'lraspp' in path.stem:  # its head pools 49×49 positions
            config.student.data_preprocessor.size = (8 * 52, 8 * 52)
        model = MODELS.build(config)
    for teacher in model.teachers.values():
        for parameter in teacher.model.parameters():  # some of DINO's are memory as it is found
            parameter.data.nan_to_num_(0, 0, 0).clamp_(-1, 1)
    schedules, length = schedules_of(cfg.model), cfg.train_cfg
    moments = {0} | {s[key] for s in schedules.values() for key in ('start', 'stop') if key in s}
    unit = 'iters' if 'max_iters' in length else 'epochs'
    counters.update_info(f'max_{unit}', length[f'max_{unit}'])
    moments |= {s['start'] + s['ramp'] - 1 for s in schedules.values() if 'ramp' in s}
    assert max(moments) < length[f'max_{unit}']
    assert all(s.get('by_epoch', False) == (unit == 'epochs') for s in schedules.values() if s)
    model.init_weights()
    model.train()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
    seen = set()
    for moment in sorted(moments):
        counters.update_info('iter', moment)
        counters.update_info('epoch', moment)
        on = {name for name, schedule in schedules.items() if is_on(schedule, moment)}
        before = [p.clone() for p in model.student.backbone.parameters()]
        teaching = [[*own.parameters()] for own in model.self_teachers.values()]
        taught = [[p.clone() for p in own] for own in teaching]

        masks = any(part in str(cfg.model) for part in ('mask_head', 'panoptic_head'))
        data = model.data_preprocessor(packed_inputs(cfg.default_scope, 3, masks), True)
        result = model(**data, mode='loss')
        total, logs = model.parse_losses(result)

        own = {key for key in logs if not key.startswith('distill.') and key != 'loss'}
        # a term is missing before it starts and costs 0 after it has stopped
        terms = {key.split('.')[1] for key in logs if key.startswith('distill.') and logs[key] != 0}
        assert terms == on - {''} and any('loss' in key for key in own) == ('' in on)
        assert all(torch.isfinite(value).all() for value in logs.values()), logs
        for name in terms:
            loss = result[f'distill.{name}.loss']
            reached = gradients(loss, model.student.backbone)
            assert reached and max(reached.values()) > 0, name
            connectors = gradients(loss, model.distill[name].connectors)
            assert all(value > 0 for value in connectors.values()), connectors
            assert len(connectors) == len([*model.distill[name].connectors.parameters()])
        optimizer.update_params(total)
        after = [*model.student.backbone.parameters()]
        assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
        for old, new in zip(taught, teaching, strict=True):
            assert not all(torch.equal(x, y) for x, y in zip(old, new, strict=True))
        assert all(torch.isfinite(p).all() for p in model.parameters())
        seen |= on
    assert seen == set(schedules)


def losses_of(pair: str) -> set[str]:
    """The names of the losses that the recipes of a pair use."""
    found = set()
    for path in (path for path in PAIR_OF if PAIR_OF[path] == pair):
        with loaded(path) as cfg:
            found |= {term.loss.type.rpartition('.')[2] for term in cfg.model.distill.values()}
    return found


@pytest.mark.parametrize('pair', [CITYSCAPES, DIGITS_SEG, COCO, DIGITS_DET])
def test_every_loss_has_a_recipe(pair: str) -> None:
    segments = pair in (CITYSCAPES, DIGITS_SEG)
    exempt = DETECTION_ONLY if segments else (*SEGMENTATION_ONLY, *DISTRIBUTIONS_ONLY)
    kinds = {name for name in losses.__all__ if name[0].isupper()}
    assert kinds - {*exempt, *QUERIES_ONLY} - losses_of(pair) == set()


def test_losses_on_distributions_of_boxes_have_a_recipe() -> None:
    pairs = [pair for pair in PAIRS if pair.startswith('gfl')]
    assert set(DISTRIBUTIONS_ONLY) <= set().union(*map(losses_of, pairs))


@pytest.mark.parametrize(
    'path', [path for path in PAIR_OF if 'Paraphraser' in path.read_text()], ids=config_id
)
def test_a_paraphraser_is_trained_for_an_eighth_of_the_run(path: Path, tmp_path: Path) -> None:
    with loaded(path) as cfg:
        whole = copy.deepcopy(cfg.train_cfg)
        stage_config(cfg, str(tmp_path))
        key = 'max_iters' if 'max_iters' in whole else 'max_epochs'
        assert cfg.train_cfg == {**whole, key: whole[key] // 8}
        model = MODELS.build(fit_for_a_test(cfg.model))
        model.train()
        before = [p.clone() for p in model.parameters()]
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        logs = model.train_step(packed_inputs(cfg.default_scope), optimizer)
    assert {*logs} == {'loss', *(f'{term}.loss' for term in cfg.model.distill)}
    assert torch.isfinite(logs['loss'])
    assert not any(
        torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)
    )


#: Teachers and students that users look for.
LOOKED_FOR = (
    'deeplabv3plus_r101-d8_deeplabv3plus_r18-d8',
    'upernet_swin-b_upernet_r18',
    'upernet_convnext-b_mobilenet-v3-d8',
    'segformer_mit-b4_segformer_mit-b0',
    'mask2former_swin-l_mask2former_r50',
    'rtmdet_l_rtmdet_tiny',
    'yolox_l_yolox_s',
    'dino-5scale_swin-l_dino-4scale_r50',
    'cascade-mask-rcnn_x101-64x4d_mask-rcnn_r50',
    'gfl_x101-32x4d_atss_r50',
    'fcos_x101-64x4d_fcos_r50-caffe',
)


def test_pairs_that_users_look_for_have_a_recipe() -> None:
    names = ' '.join(path.stem for path in SHIPPED)
    assert [pair for pair in LOOKED_FOR if f'_{pair}_' not in names] == []


def test_the_readme_lists_every_recipe() -> None:
    text = (CONFIGS / 'README.md').read_text(encoding='utf-8')
    listed = set(re.findall(r'\]\(([\w/.-]+\.py)\)', text))
    small = (DIGITS_SEG, DIGITS_DET)  # they are listed by method
    recipes = [path for path in SHIPPED if PAIR_OF.get(path) not in small]
    paths = {path.relative_to(CONFIGS).as_posix() for path in recipes}
    assert {
        path for path in paths if not path.startswith(tuple(f'{x}/' for x in OWN_DATA))
    } <= listed


# Data ---------------------------------------------------------------------------------------------


def test_both_voc_sets_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout that the README describes, with a few images."""
    path = next(path for path in ALONE if 'voc0712' in path.stem)
    with loaded(path) as cfg:
        lists = {'VOC2007': ('trainval', 'test'), 'VOC2012': ('trainval',)}
        for year, parts in lists.items():
            root = tmp_path / 'data' / 'VOCdevkit' / year
            for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
                (root / folder).mkdir(parents=True)
            for part in parts:
                names = [f'{year}_{part}_{n}' for n in range(3)]
                (root / f'ImageSets/Segmentation/{part}.txt').write_text('\n'.join(names) + '\n')
                for name in names:
                    Image.new('RGB', (60, 50)).save(root / f'JPEGImages/{name}.jpg')
                    label = Image.new('P', (60, 50), 20)
                    label.putpalette([*range(256)] * 3)
                    label.save(root / f'SegmentationClass/{name}.png')
        monkeypatch.chdir(tmp_path)
        train, val = (DATASETS.build(cfg[f'{x}_dataloader'].dataset) for x in ('train', 'val'))
        first = [data.get_data_info(0)['img_path'] for data in (*train.datasets, val)]
        names = [Path(name).parts[-3:] for name in first]
        assert names == [
            ('VOC2007', 'JPEGImages', 'VOC2007_trainval_0.jpg'),
            ('VOC2012', 'JPEGImages', 'VOC2012_trainval_0.jpg'),
            ('VOC2007', 'JPEGImages', 'VOC2007_test_0.jpg'),
        ]
        assert len(train) == 6 and len(val) == 3
        for data in (train[5], val[0]):
            assert (data['data_samples'].gt_sem_seg.data == 20).all()
