"""``tools/from_mmrazor.py``: a config is written or printed, a model is taken out of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.tools.tool_runs import start_tool

THEIRS = """
_base_ = ['student.py']
model = dict(
    _delete_=True, type='mmrazor.SingleTeacherDistill',
    architecture=dict(cfg_path='student.py', pretrained=False),
    teacher=dict(cfg_path='teacher.py', pretrained=False), teacher_ckpt='teacher.pth',
    distiller=dict(
        type='ConfigurableDistiller',
        student_recorders=dict(logits=dict(type='ModuleOutputs', source='decode_head.conv_seg')),
        teacher_recorders=dict(logits=dict(type='ModuleOutputs', source='decode_head.conv_seg')),
        distill_losses=dict(loss_kl=dict(type='KLDivergence', tau=4, loss_weight=3)),
        loss_forward_mappings=dict(loss_kl=dict(
            preds_S=dict(from_student=True, recorder='logits'),
            preds_T=dict(from_student=False, recorder='logits')))))
optim_wrapper = dict(optimizer=dict(lr=0.5))
val_cfg = dict(_delete_=True, type='mmrazor.SingleTeacherDistillValLoop')
"""


@pytest.fixture
def theirs(segmentation: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(segmentation)
    (segmentation / 'razor.py').write_text(THEIRS)
    return segmentation / 'razor.py'


def test_as_a_user_runs_it(theirs: Path, tmp_path: Path) -> None:
    out = tmp_path / 'ours.py'
    assert start_tool('from_mmrazor', theirs, out, cwd=theirs.parent).splitlines()[-1] == str(out)
    text = out.read_text()
    assert '# theirs divides by the images alone: multiply loss_weight by H·W of the map' in text
    moved = theirs.with_name('ours.py')
    moved.write_text(text)
    cfg = Config.fromfile(moved)
    assert cfg.model.distill.pi.tap == 'decode_head.conv_seg'
    assert cfg.model.distill.pi.loss == dict(type='mmkd_plugin.PixelWiseLoss', tau=4, loss_weight=3)
    assert cfg.optim_wrapper.optimizer.lr == 0.5 and cfg.optim_wrapper.optimizer.momentum == 0.9
    assert cfg.val_cfg == dict(type='ValLoop')
    moved.unlink()


def test_a_config_is_printed_without_a_file(theirs: Path, call_tool) -> None:
    assert call_tool('from_mmrazor', theirs).startswith('# From razor.py.\n_base_ = ')


def test_models_of_a_checkpoint(call_tool, fails, tmp_path: Path) -> None:
    keys = ('architecture.backbone.w', 'teacher.backbone.w', 'distiller.connectors.a.w')
    weights = {key: torch.full((1,), float(i)) for i, key in enumerate(keys)}
    meta = dict(dataset_meta=dict(classes=('a',)), iter=5)
    torch.save(dict(meta=meta, state_dict=weights), tmp_path / 'iter_5.pth')
    for value, part in enumerate(('student', 'teacher')):
        files = tmp_path / 'iter_5.pth', tmp_path / f'{part}.pth'
        call_tool('from_mmrazor', '--checkpoint', *files, '--part', part)
        found = torch.load(tmp_path / f'{part}.pth')
        assert found['state_dict'] == {'backbone.w': torch.tensor([float(value)])}
        assert found['meta'] == dict(dataset_meta=meta['dataset_meta'])
    refused = fails('from_mmrazor', tmp_path / 'student.pth', tmp_path / 'again.pth')
    assert "none of its keys begins with 'architecture.'" in refused
    refused = fails('from_mmrazor', tmp_path / 'iter_5.pth', tmp_path / 'student.pth')
    assert 'exists already; nothing is overwritten' in refused
    assert 'say where the weights go' in fails('from_mmrazor', tmp_path / 'iter_5.pth')
