"""Several teachers as one target: the mathematics, and Distillers whose terms name several."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmkd_plugin.cache.wiring import names_of, wire
from mmkd_plugin.terms import Term
from mmkd_plugin.terms.combining import combined_scores
from mmkd_plugin.visualization.gallery import places_of
from tests import stock_models
from tests.caches import write_cache
from tests.runs import SEG_CLASSES, Record, config, needs_ops, save_weights, train
from tests.stock_models import batch, distiller

SCORES = 'decode_head.conv_seg'
FORMS = {  # classes of a softmax; anchors with a background; a sigmoid for each
    'softmax': dict(each=6),
    'anchors': dict(each=3),
    'sigmoid': dict(each=3, independent=True),
}


def probabilities(x: torch.Tensor, each: int, independent: bool = False) -> torch.Tensor:
    """Of each teacher: (K, N, A, each, H, W)."""
    x = x.double().unflatten(2, (-1, each))
    return x.sigmoid() if independent else x.softmax(3)


def scores(count: int = 3) -> torch.Tensor:
    return 3 * torch.randn(count, 2, 6, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
@pytest.mark.parametrize('combine', ['mean', 'confidence'])
def test_probabilities_are_averaged(form: dict, combine: str) -> None:
    x = scores()
    p = probabilities(x, **form)
    weights = torch.full_like(p, 1 / len(p))
    if combine == 'confidence':
        entropy = -(p * p.log())
        if form.get('independent'):
            entropy = (entropy - (1 - p) * (1 - p).log()) / math.log(2)
        else:
            entropy = entropy.sum(3, keepdim=True) / math.log(form['each'])
        weights = (1 - entropy) / (1 - entropy).sum(0)
    expected = (weights * p).sum(0)
    found = combined_scores(list(x), combine, **form)
    assert found.shape == x.shape[1:]
    torch.testing.assert_close(
        probabilities(found[None], **form)[0], expected, rtol=1e-5, atol=1e-7
    )
    torch.testing.assert_close(combined_scores([x[0]] * 3, combine, **form), x[0])


def test_labels_weigh_as_in_ca_mkd() -> None:
    x = scores()
    labels = torch.randint(0, 6, (2, 4, 5), generator=torch.Generator().manual_seed(1))
    labels[0, 0] = 255
    p = x.double().softmax(2)
    wrong = torch.stack(
        [F.cross_entropy(one.double(), labels.where(labels < 6, 0), reduction='none') for one in x]
    )
    weights = (1 - wrong.exp() / wrong.exp().sum(0)) / 2
    weights = torch.where(labels == 255, 1 / 3, weights)[:, :, None]
    found = combined_scores(list(x), 'labels', each=6, labels=labels)
    torch.testing.assert_close(
        found.double().softmax(1), (weights * p).sum(0), rtol=1e-5, atol=1e-7
    )
    large = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(combined_scores(list(x), 'labels', each=6, labels=large), found)


def test_extreme_scores_stay_finite() -> None:
    sure = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1)
    for independent in (False, True):
        for combine in ('mean', 'confidence'):
            found = combined_scores(
                [sure, -sure, 0 * sure], combine, each=2, independent=independent
            )
            assert found.isfinite().all()


def teachers(*models: dict, **changes) -> list[dict]:
    options = dict(checkpoint=None)
    return [
        dict(name=name, config=model, **{**options, **changes})
        for name, model in zip('abc', models)
    ]


def term(*names: str, tap: str = SCORES, name: str = 'PixelWiseLoss', **changes) -> dict:
    return dict(
        dict(tap=tap, teacher=list(names), loss=dict(type=f'mmkd_plugin.{name}')), **changes
    )


@pytest.mark.usefixtures('counters')
@pytest.mark.parametrize('combine', ['mean', 'confidence', 'labels'])
def test_segmentors_teach_together(combine: str, log) -> None:
    """One has another stride, and is read at the map of the first."""
    model = distiller(
        stock_models.fcn(),
        teachers(stock_models.fcn(16), stock_models.pspnet()),
        dict(both=term('a', 'b', combine=combine), alone=term('b', name='ChannelWiseLoss')),
    ).train()
    words = {
        'mean': 'mean of the class probabilities of a, b; b resized to a',
        'confidence': 'by confidence of a, b',
        'labels': 'by cross entropy against the labels of a, b',
    }
    plan = '\n'.join(log.messages)
    assert f'a, b: {SCORES}' in plan and words[combine] in plan
    inputs, samples = batch(model)
    losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        shown = [model.teachers[n].model(inputs, samples, mode='tensor') for n in 'ab']
        student = model.student(inputs, samples, mode='tensor')
    a = shown[0]
    b = F.interpolate(shown[1], a.shape[2:], mode='bilinear', align_corners=False)
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples])
    target = combined_scores([a, b], combine, each=5, labels=labels)
    kl = F.kl_div(student.log_softmax(1), target.softmax(1), reduction='none').sum(1).mean()
    assert losses['distill.both.loss'].item() == pytest.approx(kl.item(), rel=1e-3, abs=1e-6)
    sum(v for k, v in losses.items() if k.endswith('.loss')).backward()
    assert model.student.backbone.conv1.weight.grad.abs().sum() > 0


@needs_ops
@pytest.mark.usefixtures('counters')
def test_detectors_teach_together() -> None:
    """Anchors times classes with a sigmoid each, on all levels."""
    model = distiller(
        stock_models.retinanet(),
        teachers(stock_models.retinanet(16), stock_models.retinanet()),
        dict(both=term('a', 'b', tap='bbox_head[0]', combine='confidence', name='HintLoss')),
    ).train()
    inputs, samples = batch(model)
    losses = model(inputs, samples, mode='loss')
    with torch.no_grad():
        shown = [model.teachers[n].model(inputs, samples, mode='tensor')[0] for n in 'ab']
        ours = model.student(inputs, samples, mode='tensor')[0]
    assert len(ours) == len(shown[0]) == 5
    expected = sum(
        F.mse_loss(s, combined_scores(pair, 'confidence', each=4, independent=True))
        for s, *pair in zip(ours, *shown)
    )
    assert losses['distill.both.loss'].item() == pytest.approx(expected.item(), rel=1e-3)


MISTAKES = {
    'nobody': (dict(teacher=[]), 'distill.both does not say which teacher; the teachers are: a, b'),
    'unknown': (dict(teacher=['a', 'x']), "distill.both has teacher='x'; the teachers are: a, b"),
    'twice': (dict(teacher=['a', 'a']), "distill.both.teacher names 'a' twice"),
    'one': (dict(teacher='a', combine='mean'), 'distill.both.combine is for several teachers'),
    'way': (dict(combine='maen'), "distill.both.combine must be one of .*; did you mean 'mean'?"),
    'connector': (
        dict(teacher_connector=dict(type='mmkd_plugin.PHISNormalizer')),
        'distill.both: several teachers are combined by their class scores',
    ),
    'relations': (dict(loss=dict(type='mmkd_plugin.GramLoss')), 'Give each teacher a term'),
}


@pytest.mark.parametrize(('changes', 'words'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Term.from_config('both', term('a', 'b', **changes), ['a', 'b'])


@pytest.mark.usefixtures('counters')
@pytest.mark.parametrize(
    ('second', 'changes', 'words'),
    [
        (
            stock_models.fcn(),
            dict(tap='backbone[3]', name='HintLoss'),
            'the student gives no class',
        ),
        (stock_models.fcn(classes=4), {}, "'a' and 'b' give 5 and 4 channels"),
    ],
)
def test_what_cannot_be_combined_is_told_before_training(second, changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        distiller(
            stock_models.fcn(),
            teachers(stock_models.fcn(), second),
            dict(both=term('a', 'b', **changes)),
        )


@pytest.mark.usefixtures('own_globals')
@pytest.mark.filterwarnings('ignore')
def test_a_cached_teacher_is_one_of_them(data: Path, tmp_path: Path) -> None:
    """Its classes come in another order; the maps in memory and on disk give one loss."""
    count = len(SEG_CLASSES)
    models = [stock_models.fcn(classes=count), stock_models.pspnet(classes=count)]
    given = [
        dict(one, checkpoint=save_weights(model, tmp_path / f'{one["name"]}.pth', seed))
        for seed, (one, model) in enumerate(zip(teachers(*models), models))
    ]
    given[1]['classes'] = SEG_CLASSES[::-1]
    student = stock_models.fcn(classes=count)
    model = dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=student,
        teacher=given,
        distill=dict(both=term('a', 'b')),
    )
    losses = []
    cfg = config(model, data, tmp_path / 'online', 1)
    path = write_cache(cfg, tmp_path / 'cache', teacher='b')
    for stored in (False, True):
        cfg = config(model, data, tmp_path / f'run{stored}', 1)
        if stored:
            cfg.model.teacher[1] = dict(
                type='mmkd_plugin.CachedTeacher', name='b', path=path, classes=SEG_CLASSES[::-1]
            )
            wire(cfg)
        record = Record()
        train(cfg, record)
        losses.append(float(record.losses[0]['distill.both.loss']))
        (log,) = (tmp_path / f'run{stored}').glob('*/*.log')
        assert "Teacher 'b' has the student's classes in another order" in log.read_text()
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_tools_know_both_teachers() -> None:
    line = term('a', 'b')
    one = Term.from_config('both', line, ['a', 'b'])
    assert [names_of(dict(both=line), name) for name in 'abc'] == [[SCORES], [SCORES], []]
    assert list(places_of([one])[0].taps) == ['a', 'b', 'student']
