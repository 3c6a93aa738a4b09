"""Class scores are compared by the names of the classes: order, subsets, other classes."""

from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmkd_plugin import OnlineTeacher
from mmkd_plugin.cache.wiring import wire
from mmkd_plugin.metrics.frozen_teacher import FrozenTeacher
from mmkd_plugin.teachers.classes import (
    classes_of_checkpoint,
    classes_of_config,
    classes_of_the_student,
    order_between,
)
from tests import stock_models
from tests.caches import use_cache, write_cache
from tests.runs import SEG_CLASSES, Record, config, make_data, train
from tests.stock_models import batch, build, distiller
from tests.teachers.test_cached import model_of, recipe, scenes  # noqa: F401

pytestmark = pytest.mark.usefixtures('own_globals', 'counters')  # no data set of another run

STILL = dict(type='Resize', scale=(128, 128), keep_ratio=True)
OURS = ('sky', 'road', 'car', 'tree')
ORDER = (2, 0, 3, 1)  # of the student's classes among the teacher's
THEIRS = ('road', 'tree', 'sky', 'car')
CE = dict(type='mmkd_plugin.PixelWiseLoss', tau=1)
SIGMOID = dict(type='mmkd_plugin.PixelWiseLoss', tau=1, sigmoid=True)
CWD = dict(type='mmkd_plugin.ChannelWiseLoss', tau=1)


def retinanet(width: int = 8, classes: int = 4) -> dict:
    model = stock_models.retinanet(width, classes)
    model['bbox_head']['anchor_generator']['ratios'] = [0.5, 1.0]
    return model


def fcn(width: int = 8, classes: int = 4) -> dict:
    return stock_models.fcn(width, classes)


FAMILIES = dict(fcn=fcn, retinanet=retinanet, gfl=stock_models.gfl)
SCORES = dict(fcn='decode_head.conv_seg', retinanet='bbox_head.retina_cls', gfl='bbox_head.gfl_cls')
BOXES = dict(retinanet='bbox_head.retina_reg', gfl='bbox_head.gfl_reg')


def weights(model: dict) -> dict:
    torch.manual_seed(3)
    built = build(model)
    for name, value in built.named_parameters():  # no two classes alike
        if '_cls.' in name or 'conv_seg.' in name:
            torch.nn.init.normal_(value, 0, 0.3)
    return dict(built.state_dict())


def reordered(state: dict, numbers, classes: int) -> dict:
    """The same weights with another order, or a part, of the classes."""
    state = dict(state)
    for name, value in state.items():
        if '_cls.' in name or 'conv_seg.' in name:
            blocks = value.unflatten(0, (-1, classes))
            state[name] = blocks[:, list(numbers)].flatten(0, 1)
    return state


def saved(state: dict, file, names=None, **meta) -> str:
    meta = dict(dataset_meta=dict(classes=names), **meta) if names else meta
    torch.save(dict(state_dict=state, meta=meta), file)
    return str(file)


def made(family: str, file: str, distill: dict, classes: int = 4, ours=OURS, **keys):
    """A Distiller whose data set has the classes ``OURS``."""
    models = FAMILIES[family](4, len(ours or OURS)), FAMILIES[family](8, classes)
    with classes_of_the_student(ours):
        teacher = dict(config=models[1], checkpoint=file, **keys)
        return distiller(models[0], teacher, distill).train()


def losses_of(model) -> dict[str, torch.Tensor]:
    inputs, samples = batch(model)
    found = model(inputs, samples, mode='loss')
    return {key: value for key, value in found.items() if key.startswith('distill')}


@pytest.fixture
def log(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def terms(family: str, **loss) -> dict:
    tap = SCORES[family]
    explainer = dict(type='mmkd_plugin.GradCAM', scores=tap, score_thr=0.05)
    feature = 'backbone.layer4' if family == 'fcn' else 'neck'
    return dict(
        scores=dict(tap=tap, loss=CE if family == 'fcn' else SIGMOID),
        explained=dict(
            tap=feature, explainer=explainer, loss=dict(type='mmkd_plugin.ExplanationLoss')
        ),
    )


# --- the same classes in another order -----------------------------------------------------------


@pytest.mark.parametrize('family', FAMILIES)
def test_another_order_is_brought_into_the_students(family, tmp_path, log):
    # With the student's own order in the teacher's classifier everything has to be the same.
    theirs = weights(FAMILIES[family](8))
    here = saved(reordered(theirs, ORDER, 4), tmp_path / 'here.pth', OURS)
    there = saved(theirs, tmp_path / 'there.pth', THEIRS)
    expected = losses_of(made(family, here, terms(family)))
    assert 'another order' not in log.text
    got = losses_of(made(family, there, terms(family)))
    said = [r.getMessage() for r in log.records if 'in another order' in r.getMessage()]
    assert len(said) == 1 and SCORES[family] in said[0]
    unknown = losses_of(made(family, saved(theirs, tmp_path / 'no.pth'), terms(family)))
    assert len(got) == 2
    for key, value in got.items():
        torch.testing.assert_close(value, expected[key])
        assert not torch.isclose(value, unknown[key])


@pytest.mark.parametrize('names', [THEIRS, ('a', 'b', 'c', 'd'), OURS])
def test_a_task_loss_needs_labels_of_the_same_numbers(names, tmp_path):
    line = dict(tap='backbone.layer1', loss=dict(type='mmkd_plugin.GradientAttentionLoss'))
    file = saved(weights(fcn(8)), tmp_path / 't.pth', names)

    def made_here():
        with classes_of_the_student(OURS):
            return distiller(fcn(8), dict(config=fcn(8), checkpoint=file), dict(g=line)).train()

    if names is OURS:
        assert losses_of(made_here())
        return
    with pytest.raises(ValueError, match=r'distill\.g: .* labels mean something else'):
        made_here()


@pytest.mark.parametrize('family', BOXES)
@pytest.mark.parametrize('part', ['boxes', 'features'])
def test_what_is_no_score_stays(family, part, tmp_path, log):
    # All of these have a multiple of four channels.
    tap = BOXES[family] if part == 'boxes' else 'bbox_head.cls_convs.0'
    file = saved(weights(FAMILIES[family](8)), tmp_path / 't.pth', THEIRS)
    model = made(family, file, dict(cwd=dict(tap=tap, loss=CWD)))
    assert 'another order' not in log.text and not model.teachers['teacher']._orders


def test_all_maps_of_a_head_at_once(tmp_path, log):
    # The head gives scores and boxes: the former are brought into the order, the latter stay.
    theirs = weights(retinanet(8))
    files = (
        saved(reordered(theirs, ORDER, 4), tmp_path / 'here.pth', OURS),
        saved(theirs, tmp_path / 'there.pth', THEIRS),
    )
    here, there = (
        losses_of(made('retinanet', file, dict(cwd=dict(tap='bbox_head', loss=CWD))))
        for file in files
    )
    torch.testing.assert_close(here, there)


def test_the_stock_tools_meet_the_classes_in_the_first_iteration(tmp_path, log):
    make_data(data := tmp_path)
    student, teacher = stock_models.fcn(4, 3), stock_models.fcn(8, 3)
    theirs, losses = weights(teacher), []
    there = saved(theirs, tmp_path / 'there.pth', ['disc', 'ground', 'box'])
    here = saved(reordered(theirs, (1, 2, 0), 3), tmp_path / 'here.pth', SEG_CLASSES)
    for file in (here, there):
        model = dict(
            type='mmkd_plugin.Distiller',
            _scope_='mmseg',
            student=student,
            teacher=dict(config=teacher, checkpoint=file),
            distill=dict(kd=dict(tap='decode_head.conv_seg', loss=CE)),
        )
        record = Record()
        train(config(model, data, tmp_path / 'work', 2), record)
        losses.append([one['distill.kd.loss'] for one in record.losses])
    assert losses[0] == pytest.approx(losses[1])


def test_spellings_of_a_name_are_one_name():
    assert order_between(('traffic light', 'car'), ('Car', 'traffic_light')).numbers == (1, 0)


# --- more classes, other classes -----------------------------------------------------------------


@pytest.mark.parametrize('family', FAMILIES)
def test_of_more_classes_the_students_are_taken(family, tmp_path, log):
    names, numbers = ('car', 'dog', 'tree', 'road', 'sky'), (4, 3, 0, 2)
    theirs = weights(FAMILIES[family](8, 5))
    here = saved(reordered(theirs, numbers, 5), tmp_path / 'here.pth', OURS)
    there = saved(theirs, tmp_path / 'there.pth', names)
    expected = losses_of(made(family, here, terms(family)))
    got = losses_of(made(family, there, terms(family), classes=5))
    (said,) = [r for r in log.records if 'among them' in r.getMessage()]
    softmax = family == 'fcn'
    assert (said.levelno == logging.WARNING) is softmax
    assert ('compares probabilities' in said.getMessage()) is softmax
    torch.testing.assert_close(got['distill.scores.loss'], expected['distill.scores.loss'])
    if family != 'fcn':  # with a softmax, positions of the fifth class are others' now
        torch.testing.assert_close(got, expected)


OTHERS = [
    (('road', 'tree', 'sky', 'dog'), ["student has 'car'", "teacher has 'dog'"]),
    (('road', 'tree', 'sky', 'dog', 'cat'), ["student has 'car'", "teacher has 'dog', 'cat'"]),
]


@pytest.mark.parametrize(('names', 'words'), OTHERS)
def test_other_classes_are_refused_with_the_difference(names, words, tmp_path):
    file = saved(weights(stock_models.fcn(8, len(names))), tmp_path / 't.pth', names)
    with pytest.raises(ValueError, match=r'distill\.scores.*decode_head\.conv_seg') as caught:
        made('fcn', file, terms('fcn'), classes=len(names))
    assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'line',
    [
        dict(tap='backbone.layer4', loss=CWD),
        dict(tap=SCORES['fcn'], loss=dict(type='mmkd_plugin.AttentionLoss')),
        dict(tap=SCORES['fcn'], connector=dict(type='mmkd_plugin.ConvConnector'), loss=CWD),
    ],
)
def test_other_classes_do_not_matter_to_what_compares_none(line, tmp_path):
    file = saved(weights(stock_models.fcn(8, 4)), tmp_path / 't.pth', ('a', 'b', 'c', 'd'))
    assert losses_of(made('fcn', file, dict(x=line)))


def test_names_of_the_config_correct_those_of_the_file(tmp_path):
    file = saved(weights(stock_models.fcn(8, 4)), tmp_path / 't.pth', ('a', 'b', 'c', 'd'))
    with classes_of_the_student(OURS):
        model = distiller(
            stock_models.fcn(4, 4),
            dict(config=stock_models.fcn(8, 4), checkpoint=file, classes=list(THEIRS)),
            terms('fcn'),
        )
    assert model.teachers['teacher'].class_names == THEIRS
    with pytest.raises(ValueError, match='classes must be a list of distinct names'):
        distiller(
            stock_models.fcn(4, 4),
            dict(config=stock_models.fcn(8, 4), checkpoint=file, classes=['a', 'a']),
            terms('fcn'),
        )


@pytest.mark.parametrize('ours', [None, OURS[:3], (*OURS, 'dog')])
def test_where_names_are_not_known_all_is_as_before(ours, tmp_path, log):
    file = saved(weights(stock_models.fcn(8, 4)), tmp_path / 't.pth', THEIRS)
    with classes_of_the_student(ours):
        model = distiller(
            stock_models.fcn(4, 4),
            dict(config=stock_models.fcn(8, 4), checkpoint=file),
            terms('fcn'),
        )
    assert not model.teachers['teacher']._orders and 'another order' not in log.text


@pytest.mark.parametrize('single', ['student', 'teacher'])
def test_one_score_for_two_classes_is_not_compared_with_two(single):
    models = dict(student=stock_models.fcn(4, 2), teacher=stock_models.fcn(8, 2))
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    models[single]['decode_head'].update(out_channels=1, threshold=0.3, loss_decode=loss)
    with pytest.raises(ValueError, match=r'distill\.kd: .*out_channels') as caught:
        distiller(models['student'], models['teacher'], dict(kd=dict(tap=SCORES['fcn'], loss=CWD)))
    assert 'tap features below' in str(caught.value)


def test_one_score_in_another_order_is_refused(tmp_path):
    models = stock_models.fcn(4, 2), stock_models.fcn(8, 2)
    for model in models:
        loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
        model['decode_head'].update(out_channels=1, threshold=0.3, loss_decode=loss)
    file = saved(weights(models[1]), tmp_path / 't.pth', ('digit', 'ground'))
    line = dict(kd=dict(tap=SCORES['fcn'], loss=CWD))
    with classes_of_the_student(('ground', 'digit')), pytest.raises(ValueError, match='one score'):
        distiller(models[0], dict(config=models[1], checkpoint=file), line)


# --- data that number the classes otherwise ------------------------------------------------------


def with_data(file, model: dict, scope: str, dataset: dict) -> str:
    """Writes a config of a teacher that says on what it was trained."""
    loader = dict(dataset=dataset)
    Config(dict(default_scope=scope, model=model, train_dataloader=loader)).dump(file)
    return str(file)


@pytest.mark.parametrize(
    ('changes', 'kept'),
    [
        ({}, OURS),
        (dict(type='Objects365V1Dataset'), THEIRS),  # which numbers them otherwise
        (dict(ann_file='gone.json'), THEIRS),
        (dict(metainfo=dict(classes=OURS)), THEIRS),  # the file was made with other data
        (dict(metainfo=dict(classes=(*THEIRS, 'cow'))), THEIRS),
    ],
)
def test_a_teacher_has_its_classes_in_the_order_of_its_file(changes, kept, tmp_path, log):
    categories = [dict(id=number, name=name) for number, name in enumerate(OURS)]
    (tmp_path / 'boxes.json').write_text(json.dumps(dict(categories=categories)))
    model = retinanet(8)
    file = saved(weights(model), tmp_path / 't.pth', THEIRS)
    dataset = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='boxes.json',
        metainfo=dict(classes=THEIRS),
    )
    dataset = dict(type='RepeatDataset', times=2, dataset={**dataset, **changes})
    config = with_data(tmp_path / 'teacher.py', model, 'mmdet', dataset)
    teacher = OnlineTeacher(config, file)
    assert teacher.class_names == kept
    said = [r.getMessage() for r in log.records if 'metainfo.classes in' in r.getMessage()]
    assert len(said) == (kept == OURS)
    assert not said or said[0].startswith("Teacher 'teacher': metainfo.classes in ")
    assert not said or f'in this order: {", ".join(OURS)}; if' in said[0]
    assert OnlineTeacher(config, file, classes=THEIRS).class_names == THEIRS  # its own word


@pytest.mark.parametrize(
    ('ours', 'theirs', 'names', 'line', 'said'),
    [
        (True, {}, OURS, dict(tap=SCORES['fcn'], loss=CWD), True),
        (False, dict(reduce_zero_label=True), OURS, dict(tap=SCORES['fcn'], loss=CWD), True),
        (False, dict(type='ADE20KDataset'), OURS, dict(tap=SCORES['fcn'], loss=CWD), True),
        (True, dict(type='ADE20KDataset'), OURS, dict(tap=SCORES['fcn'], loss=CWD), False),
        (False, dict(type='CityscapesDataset'), OURS, dict(tap=SCORES['fcn'], loss=CWD), False),
        (None, {}, OURS, dict(tap=SCORES['fcn'], loss=CWD), False),
        (True, {}, THEIRS, dict(tap=SCORES['fcn'], loss=CWD), False),  # the names tell
        (True, {}, OURS, dict(tap='backbone.layer4', loss=CWD), False),
        (True, dict(type='NoSuchDataset'), OURS, dict(tap=SCORES['fcn'], loss=CWD), False),
    ],
)
def test_label_0_left_out_by_one_model_alone(ours, theirs, names, line, said, tmp_path, log):
    file = saved(weights(fcn(8)), tmp_path / 't.pth', names)
    config = with_data(tmp_path / 't.py', fcn(8), 'mmseg', dict(type='BaseSegDataset') | theirs)
    with classes_of_the_student(OURS, ours):
        distiller(fcn(4), dict(config=config, checkpoint=file), dict(kd=line))
    told = [r.getMessage() for r in log.records if 'reduce_zero_label' in r.getMessage()]
    assert len(told) == said
    start = 'distill.kd compares class scores, and the data set of the student has reduce_zero_lab'
    assert not told or told[0].startswith(f'{start}el={ours}, that of teacher')
    assert not told or f"'teacher' reduce_zero_label={not ours}: if" in told[0]


def test_the_head_that_does_not_fit_the_names_is_the_wrong_one(tmp_path):
    line = dict(kd=dict(tap=SCORES['fcn'], loss=CWD))
    for count, words in (
        (4, 'data set names 4: write num_classes=4 in the student'),
        (6, 'take a'),
    ):
        models = fcn(4, 6), fcn(8, 4)
        with (
            classes_of_the_student(OURS if count == 4 else tuple('abcdef')),
            pytest.raises(ValueError, match='6 classes in the student and 4 in the teacher') as e,
        ):
            distiller(*models, line)
        assert words in str(e.value)


# --- caches, metrics, where names come from ------------------------------------------------------


def test_a_cache_knows_the_classes(scenes, tmp_path, log):  # noqa: F811
    theirs = weights(model_of('mmseg', 16))
    count = theirs['decode_head.conv_seg.weight'].shape[0]
    names = [str(number) for number in range(count)]
    numbers = [*range(1, count), 0]
    there = saved(theirs, tmp_path / 'there.pth', [names[-1], *names[:-1]])
    here = saved(reordered(theirs, numbers, count), tmp_path / 'here.pth', names)
    losses = []
    for number, file in enumerate((here, there)):
        cfg = recipe('mmseg', scenes, dict(mmseg=file), STILL)
        cfg.model.distill = terms('fcn')
        cfg.train_dataloader.dataset.metainfo = dict(classes=names)
        path = write_cache(cfg, tmp_path / f'cache{number}')
        cached = use_cache(cfg, path)
        cached.work_dir = str(tmp_path / f'work{number}')
        wire(cached)
        record = Record()
        train(cached, record)
        losses.append(
            [(one['distill.scores.loss'], one['distill.explained.loss']) for one in record.losses]
        )
    assert torch.tensor(losses[0]).allclose(torch.tensor(losses[1]), rtol=1e-3)


def test_a_metric_refuses_another_order(tmp_path):
    file = saved(weights(stock_models.fcn(8, 4)), tmp_path / 't.pth', THEIRS)
    teacher = FrozenTeacher(
        dict(config=stock_models.fcn(8, 4), checkpoint=file), 'TeacherAgreement'
    )
    teacher.check_classes(THEIRS)
    with pytest.raises(ValueError, match='another order'):
        teacher.check_classes(OURS)


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=['a', 'b'])),
        dict(dataset_meta=dict(CLASSES=('a', 'b'))),
        dict(CLASSES=('a', 'b')),
    ],
)
def test_spellings_of_metadata(meta):
    assert classes_of_checkpoint(dict(state_dict={}, meta=meta)) == ('a', 'b')


@pytest.mark.parametrize('meta', [None, {}, 5, dict(CLASSES=None), dict(CLASSES=['a', 'a'])])
def test_checkpoints_that_name_none(meta):
    assert classes_of_checkpoint(dict(state_dict={}, meta=meta)) is None


INNER = dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b')))


@pytest.mark.parametrize(
    ('dataset', 'names'),
    [
        (INNER, ('a', 'b')),
        (dict(type='RepeatDataset', times=2, dataset=INNER), ('a', 'b')),
        (dict(type='ConcatDataset', datasets=[INNER, INNER]), ('a', 'b')),
        (dict(type='PascalVOCDataset'), ('background', 'aeroplane')),
        (dict(type='NoSuchDataset'), None),
        (dict(type='PascalVOCDataset', metainfo=dict(classes='background')), None),
        (dict(type='PascalVOCDataset', metainfo=dict(classes='names.txt')), ('c', 'd')),
    ],
)
def test_names_in_a_config(dataset, names, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'names.txt').write_text('c\nd\n')
    cfg = Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=copy.deepcopy(dataset))))
    found = classes_of_config(cfg)
    assert found is names if names is None else found[:2] == names
