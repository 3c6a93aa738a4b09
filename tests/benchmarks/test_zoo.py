"""The sweep over the configs of the wheels: its parts, and a sample of unlike families."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from benchmarks.zoo import configs, page, records
from benchmarks.zoo.attempt import (
    FAILS,
    NOT_OURS,
    SIBLING,
    TEACHERS,
    TRAINS,
    WORKS,
    Outcome,
    Work,
    attempt,
    compared_in,
)
from benchmarks.zoo.configs import Candidate
from benchmarks.zoo.data import HUGE, tame
from benchmarks.zoo.processes import Limits, attempts, memory_mb
from benchmarks.zoo.records import Record
from benchmarks.zoo.shrinking import RUNGS, Rung, classes_of, shrunken
from mmkd_plugin.choosing.choosing import Choice
from mmkd_plugin.choosing.writing import config_text
from mmkd_plugin.cli import UsageError
from tests.attacks.harness import call_tool, fork
from tests.imports import import_all
from tests.pages import ROOT
from tests.runs import needs_ops
from tests.tools.tool_runs import load_tool, run_tool

SMALL, SHALLOW, _, WHOLE = RUNGS

#: What is compared with the teacher that all share, for a sample of the zoo. A family is a kind of
#: model that people ask for by name, wherever its configs lie: the twelve that
#: ``tests/test_families.py`` trains, resumes and exports. Here each has one config of a wheel, and
#: SegFormer and Swin-UPerNet, which only have transformers in common, have one each.
SAMPLE = {
    'mmdet::retinanet/retinanet_r101-caffe_fpn_1x_coco.py': 'levels of the neck',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': 'levels of the neck',
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': 'levels of the neck',
    'mmdet::mask_rcnn/mask-rcnn_r101-caffe_fpn_1x_coco.py': 'levels of the neck',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r101-caffe_fpn_1x_coco.py': 'levels of the neck',
    'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py': 'levels of the neck',
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py': 'levels of the neck',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': 'levels of the neck',
    'mmdet::mask2former/mask2former_r101_8xb2-lsj-50e_coco-panoptic.py': 'maps of the backbone',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': 'class scores',
    'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py': (
        'class scores'
    ),
    'mmseg::segnext/segnext_mscan-b_1xb16-adamw-160k_ade20k-512x512.py': 'class scores',
    'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py': 'class scores',
}


@needs_ops
@pytest.mark.parametrize('name', SAMPLE)
def test_a_family(name, tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    teacher = TEACHERS[name.partition('::')[0]]
    outcome = attempt(Work(name, teacher, tmp_path), load_tool('distill'))
    assert outcome.outcome == WORKS, outcome
    assert outcome.rung == 'small'
    assert outcome.compared.startswith(SAMPLE[name])


@needs_ops
def test_a_model_that_trains_and_does_not_predict(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    name, told = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', []
    outcome = attempt(Work(name, TEACHERS['mmdet'], tmp_path, told.append), load_tool('distill'))
    assert (outcome.outcome, outcome.stage) == (TRAINS, 'predict')
    assert "has no attribute 'loss_cls'" in outcome.reason  # which its predictions read
    assert outcome.compared.startswith('levels of the neck')
    assert told[-2:] == [f'{stage}, {outcome.rung}' for stage in ('distill', 'load')]


def test_a_model_that_initialises_itself_from_a_file_only(tmp_path, monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '0')
    name = 'mmseg::san/san-vit-b16_coco-stuff164k-640x640.py'
    outcome = attempt(Work(name, TEACHERS['mmseg'], tmp_path), load_tool('distill'))
    assert outcome.outcome == WORKS, outcome


def test_all_lines_of_the_comment_say_what_is_compared():
    why = f'class scores: {"one " * 30}(CWD); and levels of the neck: another (PKD)'
    choice = Choice('scores', 'cwd', dict(tap='class_scores', loss=dict(type='x')), why)
    text = config_text('student.py', 'teacher.py', 'teacher.pth', choice)
    assert text.splitlines()[1].startswith('# ') and compared_in(text) == why


def test_weights_that_nobody_has_written():
    model = torch.nn.Linear(2, 3)
    model.bias.data[1], before = HUGE * 2, model.weight.clone()
    tame(model)
    assert model.bias.abs().max() < 1 and torch.equal(model.weight, before)
    model.weight.data[0, 0] = torch.nan
    tame(model)
    assert model.weight.isfinite().all()
    model.text_projection = torch.nn.Parameter(torch.zeros(2, 3))  # of SAN, if memory is empty
    tame(model)
    assert model.text_projection.any()


def test_a_config_that_needs_another_library(tmp_path):
    name = 'mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py'
    told = []
    work = Work(name, SIBLING, tmp_path, told.append)
    outcome = attempt(work, load_tool('distill'))
    assert (outcome.outcome, outcome.stage) == (NOT_OURS, 'alone')
    assert 'mmpretrain' in outcome.reason
    assert told == ['alone, small']  # less shrinking would not help


def model(text: str = '') -> Config:
    """A config with a model."""
    return Config.fromstring(f'model = dict(type="EncoderDecoder", {text})', '.py')


@pytest.mark.parametrize(
    ('text', 'rung', 'expected'),
    [
        ('a=dict(in_channels=[256, 2048], channels=512)', SMALL, dict(in_channels=[32, 256])),
        ('a=dict(in_channels=3, out_channels=(64,))', SMALL, dict(in_channels=3)),
        ('a=dict(in_channels=256)', SHALLOW, dict(in_channels=256)),
        ('a=dict(type="ResNet", depth=101)', SMALL, dict(depth=50, base_channels=8)),
        ('a=dict(type="ResNet", depth=101)', SHALLOW, dict(type='ResNet', depth=50)),
        ('a=dict(type="ResNet", depth=101)', WHOLE, dict(type='ResNet', depth=101)),
        ('a=dict(type="BN", init_cfg=dict(checkpoint="x"))', WHOLE, dict(type='BN')),
        ('a=dict(type="SyncBN")', WHOLE, dict(type='BN')),
        ('a=dict(type="GN", num_groups=32)', SMALL, dict(type='GN', num_groups=4)),
        ('a=dict(depths=[2, 2, 18, 2])', SHALLOW, dict(depths=[1, 1, 1, 1])),
        (
            'a=dict(num_layers=12, out_indices=(2, 5, 11))',
            SHALLOW,
            dict(num_layers=3, out_indices=(0, 1, 2)),
        ),
        ('a=dict(img_size=(768, 512))', SHALLOW, dict(img_size=(128, 128))),
        ('a=dict(img_size=640)', WHOLE, dict(img_size=640)),
        ('a=dict(num_classes=19)', WHOLE, dict(num_classes=3)),
        (
            'a=dict(num_classes=150, class_weight=[1.0] * 150 + [0.1])',
            WHOLE,
            dict(class_weight=[1.0, 1.0, 1.0, 0.1]),
        ),
        ('a=dict(num_queries=300, max_per_img=100)', SMALL, dict(num_queries=10, max_per_img=10)),
        ('a=dict(num_points=12544, max_per_image=100)', SMALL, dict(num_points=1024)),
        ('a=dict(type="STDCNet", num_convs=4)', WHOLE, dict(type='STDCNet', num_convs=2)),
    ],
)
def test_a_rule(text: str, rung: Rung, expected: dict) -> None:
    found = shrunken(model(text), 'mmseg', rung)['a']
    assert {key: found[key] for key in expected} == expected
    assert not {'init_cfg'} & set(found)
    assert rung.width > 1 or set(found) <= set(model(text).model.a)


def test_panoptic_classes_fit_together():
    text = """a=dict(num_things_classes=80, num_stuff_classes=53, num_classes=133,
                     loss_cls=dict(class_weight=[1.0] * 133 + [0.1]))"""
    found = shrunken(model(text), 'mmdet', SMALL)
    assert found['a']['num_things_classes'] + found['a']['num_stuff_classes'] == 3
    assert found['a']['loss_cls']['class_weight'] == [1.0, 1.0, 1.0, 0.1]
    assert classes_of(found) == 2


def test_configs_of_one_model_are_one_group():
    names = [
        f'mmseg::pspnet/pspnet_{one}-512x1024.py'
        for one in ('r50-d8_4xb2-40k_cityscapes', 'r101-d8_4xb2-80k_cityscapes')
    ]
    found = [configs.candidate(name) for name in names]
    assert configs.groups(found) == [found]


def test_what_is_no_segmentor_and_no_detector():
    found = configs.candidate('mmdet::reid/reid_r50_8xb32-6e_mot15train80_test-mot15val20.py')
    assert not found.model and 'no segmentor and no detector' in found.reason
    assert not any('_base_' in name for name in configs.names())


def test_families_take_turns():
    groups = [[Candidate(f'mmseg::{name}.py', name)] for name in ('a/1', 'a/2', 'b/1')]
    assert [group[0].model for group in configs.in_turn(groups)] == ['a/1', 'b/1', 'a/2']


def record(name: str, outcome: str, reason: str = '', **changes: str) -> Record:
    values = dict(
        config=name, teacher='t', outcome=outcome, stage='', reason=reason, rung='small',
        compared='class scores: CWD', seconds=2.0, model='', tried=name,
    )  # fmt: skip
    return Record(**{**values, **changes})


SOME = [
    record('mmseg::a/1.py', WORKS),
    record('mmseg::a/2.py', WORKS, tried='mmseg::a/1.py'),
    record('mmseg::b/1.py', FAILS, 'ValueError: x|y'),
    record('mmseg::e/1.py', TRAINS, 'has no loss_cls', compared='neck: CWD; and head: BCKD'),
    record('mmdet::c/1.py', NOT_OURS, 'needs mmpretrain'),
    record('mmdet::d/1.py', 'no model', 'has no model'),
]


def test_records_are_what_was_written(tmp_path):
    file = tmp_path / 'results' / 'zoo.jsonl'
    assert records.read(file) == {}
    records.write(file, SOME)
    assert records.read(file) == {(one.config, 't'): one for one in SOME}
    file.write_text(file.read_text() + '{"config": 1}\n')
    with pytest.raises(UsageError, match='line 7 is no outcome'):
        records.read(file)


def test_the_page():
    text = page.text_of(SOME, shipped=9)
    assert '6 of 9 configs have been looked at' in text
    assert '5 configs of 4 different models were tried' in text
    assert '4 train alone, **3 of these work (75.0 %)**' in text
    assert '2 of them predict; 1 do not predict alone either' in text
    assert '| mmseg/a | 2 | 2 | 2 | class scores |' in text
    assert '| mmseg/e | 1 | 1 | 1 | neck, and head |' in text
    assert '| ValueError: x\\|y | 1 | `mmseg::b/1.py` |' in text
    assert text.index('has no loss_cls') > text.index('does not predict alone\n')
    assert text.index('needs mmpretrain') > text.index('What does not train alone')
    assert text.index('has no model') > text.index('Left out')


def test_limits_and_other_ends(tmp_path):
    configs = ['mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py', 'mmseg::none/none.py']
    ended: dict[str, Outcome] = {}

    def note(config: str, teacher: str, outcome: Outcome, seconds: float) -> None:
        ended[config] = outcome

    todo = [(name, SIBLING) for name in configs]
    attempts(todo, load_tool('distill'), Limits(0.01, 10_000), 1, tmp_path / 'logs', note)
    beyond, missing = (ended[name] for name in configs)
    assert beyond.reason == 'took more than 0.01 s'  # wherever that was
    assert beyond.outcome == (NOT_OURS if beyond.stage == 'alone' else FAILS)
    assert missing.outcome == NOT_OURS
    assert len(list((tmp_path / 'logs').iterdir())) == 2


def test_the_limit_of_memory(tmp_path, monkeypatch):
    """It ends a model that needs more, at once, and lets one pass that needs less."""
    little, much = (
        'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmseg::mobilenet_v3/mobilenet-v3-d8-scratch_lraspp_4xb4-320k_cityscapes-512x1024.py',
    )
    ended: dict[str, Outcome] = {}
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    import_all()
    limits = Limits(1000, memory_mb(os.getpid()) + 800)  # a fork begins with what this process has
    attempts(
        [(much, SIBLING), (little, SIBLING)],
        load_tool('distill'),
        limits,
        1,
        tmp_path / 'logs',
        lambda config, teacher, outcome, seconds: ended.update({config: outcome}),
    )
    assert ended[little].outcome == WORKS, ended[little]
    assert ended[much].reason == f'took more than {limits.megabytes:g} MB'
    assert (ended[much].outcome, ended[much].stage) == (NOT_OURS, 'alone')
    assert list((tmp_path / 'temporary').iterdir()) == []


ONE, OTHER = (
    f'mmseg::pspnet/pspnet_r{depth}-d8_4xb2-80k_cityscapes-512x1024.py' for depth in (18, 50)
)


SWEPT = '--results', 'zoo.jsonl', '--logs', 'logs', '--only'


def sweep(folder: Path, *options: str) -> str:
    """Runs the tool over some configs in a fork; returns what it printed."""
    return run_tool('zoo_sweep', *SWEPT, *options, cwd=folder)


@needs_ops
def test_a_sweep_goes_on(tmp_path):
    """What has an outcome is not tried again, unless it is asked for."""
    file = tmp_path / 'zoo.jsonl'
    noted = record(
        ONE, WORKS, teacher=TEACHERS['mmseg'], model=configs.candidate(ONE).model, seconds=77.5
    )
    records.write(file, [noted])
    assert '2 different models; 1 to try, for 1 configs' in sweep(tmp_path, ONE, OTHER)
    first, second = records.read(file).values()
    assert first == noted and second.config == OTHER and second.outcome == WORKS
    assert [one.name for one in (tmp_path / 'logs').iterdir()] == [log_of(OTHER)]

    before = file.read_bytes()
    assert '0 to try' in sweep(tmp_path, ONE, OTHER) and file.read_bytes() == before

    assert '1 to try' in sweep(tmp_path, ONE, '--again', WORKS)
    again, other = records.read(file).values()
    assert other == second and again.outcome == WORKS
    assert again.seconds != noted.seconds and again.compared != noted.compared


def log_of(config: str) -> str:
    """The name of the file with what an attempt printed."""
    return config.replace('::', '_').replace('/', '_').removesuffix('.py') + '.log'


class DiesAtTheFirstOutcome(io.StringIO):
    """Output of a sweep over two models that ends it at once when the first one is told."""

    def write(self, text: str) -> int:
        if '[1/2' in text:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(text)


@needs_ops
def test_a_killed_sweep_goes_on(tmp_path, monkeypatch):
    def run() -> None:
        sys.stdout = DiesAtTheFirstOutcome()
        arguments = [*SWEPT, ONE, OTHER, '--jobs', '2']  # the other one is being tried
        call_tool(load_tool('zoo_sweep').main, 'zoo_sweep', arguments)

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    assert fork(run, tmp_path).status == -signal.SIGKILL
    (kept,) = records.read(tmp_path / 'zoo.jsonl').values()
    assert '1 to try, for 1 configs' in sweep(tmp_path, ONE, OTHER)
    found = records.read(tmp_path / 'zoo.jsonl')
    assert found[kept.config, kept.teacher] == kept
    assert {one.config: one.outcome for one in found.values()} == {ONE: WORKS, OTHER: WORKS}


def test_the_page_of_the_docs_is_that_of_the_outcomes():
    found = list(records.read(ROOT / 'benchmarks' / 'results' / 'zoo.jsonl').values())
    text = (ROOT / 'docs' / 'zoo.md').read_text(encoding='utf-8')
    shipped = int(re.search(r' of (\d+) configs have been looked at', text)[1])
    again = 'write it again: python tools/zoo_sweep.py --report'
    assert text == page.text_of(found, shipped), again
    counts = page.counts_of(page.with_shared_teacher(found))
    told = re.findall(r'all ([\d,]+) configs of both', (ROOT / 'README.md').read_text('utf-8'))
    assert told == [f'{counts.distilled:,}'] and counts.distilled == counts.alone


def test_outcomes_fit_together():
    found = records.read(ROOT / 'benchmarks' / 'results' / 'zoo.jsonl').values()
    for one in found:
        assert bool(one.compared) == (one.outcome in (WORKS, TRAINS)), one
        assert one.compared.endswith(')') == bool(one.compared), one  # the last method, in full
        assert bool(one.reason) == (one.outcome != WORKS), one
