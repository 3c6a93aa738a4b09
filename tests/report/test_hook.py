"""A real run ends with a report, learns as without it, and can leave it out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmkd_plugin.report import FILE, ReportHook, read_run
from mmkd_plugin.report import hook as reporting
from mmkd_plugin.training import report_on
from tests import stock_models
from tests.runs import SEG_CLASSES, Record, assert_same, config, train, validated

pytestmark = pytest.mark.usefixtures('own_globals')


def settings(data: Path, work_dir: Path) -> object:
    classes = len(SEG_CLASSES)
    model = dict(
        _scope_='mmseg',
        type='mmkd_plugin.Distiller',
        student=stock_models.pspnet(8, classes),
        teacher=dict(config=stock_models.pspnet(12, classes), checkpoint=None),
        distill=dict(cwd=dict(tap='decode_head.conv_seg', loss=stock_models.cwd(tau=2))),
    )
    return validated(config(model, data, work_dir, 3, augment=True), data)


def test_a_run_ends_with_a_report(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, 'WARM_UP', 1)
    with_it, without = Record(), Record()
    runner = train(settings(data, tmp_path / 'with'), with_it, ReportHook(images=1))
    train(settings(data, tmp_path / 'without'), without)
    assert_same(with_it.losses, without.losses)
    assert_same(with_it.inputs, without.inputs)

    page = (tmp_path / 'with' / FILE).read_text(encoding='utf-8')
    for wanted in (
        'mIoU', 'ChannelWiseLoss', 'data:image/jpeg;base64,', 'Predictions, image 0',
        'share of the task&#x27;s gradient', 'of the pixels have the same class',
    ):  # fmt: skip
        assert wanted in page
    facts = json.loads(Path(runner.log_dir, 'run.json').read_text())
    assert {*facts['parts']} == {'teachers', 'student', 'terms', 'backward and optimizer'}
    assert all(seconds > 0 for seconds in facts['parts'].values())
    (agreement,) = facts['agreement']
    assert agreement['images'] == 6 and 0 <= agreement['shares']['pixel'] <= 100
    assert facts['peak_bytes'] > 2**20 and 'torch' in facts['versions'] and facts['seed'] == 0


@pytest.mark.parametrize(('length', 'logged'), [(3, [2]), (1, [])])
def test_a_run_whose_length_is_no_multiple_of_the_interval_has_ended(
    data: Path, tmp_path: Path, length: int, logged: list[int]
) -> None:
    """As mmengine logs by default: each second iteration here, and validations by epochs."""
    cfg = settings(data, tmp_path)
    cfg.train_cfg.update(max_iters=length, val_interval=1)
    cfg.default_hooks = dict(logger=dict(type='LoggerHook', interval=2))
    runner = train(cfg, ReportHook(images=0))
    run = read_run(tmp_path)
    assert run.logged('loss')[0] == logged and run.iterations == length
    assert run.curve('mIoU')[0] == list(range(1, length + 1))
    page = (tmp_path / FILE).read_text(encoding='utf-8')
    assert '--resume' not in page and f'{length} of {length}' in page
    facts = Path(runner.log_dir, 'run.json')
    facts.unlink()  # as stock tools leave it
    assert read_run(tmp_path).iterations == length


def test_what_cannot_be_shown_is_said_and_the_run_ends_well(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError('no font')

    monkeypatch.setattr(reporting, 'gallery_of', broken)
    monkeypatch.setattr(reporting, 'agreement_of', broken)
    runner = train(settings(data, tmp_path), ReportHook())
    assert 'the report has no pictures: RuntimeError: no font' in Path(
        runner.log_dir, f'{runner.timestamp}.log'
    ).read_text(encoding='utf-8')
    page = (tmp_path / FILE).read_text(encoding='utf-8')
    assert 'not measured: RuntimeError: no font<' in page


@pytest.mark.parametrize(
    ('said', 'before', 'after'),
    [({}, [], 1), (dict(report=False), [], 0), ({}, [ReportHook(images=0)], 1)],
)
def test_a_config_can_leave_it_out(said: dict, before: list, after: int) -> None:
    class Runner:
        cfg, hooks = said, list(before)

        def register_hook(self, hook: ReportHook) -> None:
            self.hooks.append(hook)

    report_on(Runner())
    assert sum(isinstance(hook, ReportHook) for hook in Runner.hooks) == after


def test_arguments():
    with pytest.raises(
        ValueError, match=r'^ReportHook\.images: expected a whole number from 0 on, got -1'
    ):
        ReportHook(images=-1)
    with pytest.raises(ValueError, match="no panel 'prediction'; did you mean 'predictions'"):
        ReportHook(panels=('prediction',))
