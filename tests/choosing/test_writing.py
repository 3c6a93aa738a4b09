"""The config that is written."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

from mmkd_plugin.choosing import Choice, config_text


def test_the_config_says_what_was_chosen(tmp_path: Path) -> None:
    (tmp_path / 'student.py').write_text("model = dict(type='A', depth=18)\nwork_dir = 'here'")
    loss = dict(type='mmkd_plugin.PearsonLoss', loss_weight='auto')
    term = dict(student_tap=['neck[0]', 'neck[1]'], teacher_tap="it's", loss=loss)
    term['queries'] = dict(random=300)
    other = dict(tap='bbox_head', loss=dict(type='mmkd_plugin.ProtocolLoss', loss_weight='auto'))
    choice = Choice('neck', 'pkd', term, 'levels ' * 30, dict(bckd=other))
    text = config_text(str(tmp_path / 'student.py'), 'mmdet::a/b.py', 'https://x/y.pth', choice)
    file = tmp_path / 'distilled.py'
    file.write_text(text)
    cfg = Config.fromfile(file)
    assert cfg.work_dir == 'here'
    assert cfg.model.to_dict() == dict(
        type='mmkd_plugin.Distiller',
        student=dict(type='A', depth=18),
        teacher=dict(config='mmdet::a/b.py', checkpoint='https://x/y.pth'),
        distill=dict(pkd=term, bckd=other),
    )
    assert 'queries=dict(random=300),' in text
    assert all(len(line) <= 100 for line in text.splitlines())
