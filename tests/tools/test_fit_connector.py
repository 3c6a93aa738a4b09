"""``tools/fit_connector.py``: it measures a teacher, the student trains on that, and it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.cli import read_config
from mmkd_plugin.fitting import training_images
from tests import stock_models

pytestmark = pytest.mark.usefixtures('own_globals')
TAP = 'decode_head.convs'


@pytest.fixture(scope='module')
def config(segmentation: Path) -> Path:
    """A config with a connector that is not measured yet, without random augmentation."""
    text = (segmentation / 'distilled.py').read_text()
    start = text.index('    distill=dict(')
    file = segmentation / 'phis.py'
    file.write_text(
        text[:start]
        + f"""    distill=dict(
        phis=dict(
            tap={TAP!r},
            teacher_connector=dict(type='mmkd_plugin.PHISNormalizer'),
            loss=dict(type='mmkd_plugin.HintLoss'))))
train_dataloader = dict(dataset=dict(pipeline={{{{_base_.test_pipeline}}}}))
train_cfg = dict(max_iters=2, val_interval=10)
"""
    )
    return file


def rows_of(cfg: Config) -> np.ndarray:
    """What the teacher shows at each position of all training images, one image after another."""
    teacher = read_config(cfg.model.teacher.config)
    model = MODELS.build(teacher.model).eval()
    model.load_state_dict(torch.load(cfg.model.teacher.checkpoint)['state_dict'])
    maps = []
    model.get_submodule(TAP).register_forward_hook(lambda *x: maps.append(x[2]))
    with torch.no_grad():
        for data in training_images(cfg, None):
            model(model.data_preprocessor(data, True)['inputs'], mode='tensor')
    return np.concatenate([x.double().flatten(2)[0].numpy() for x in maps], 1)


def test_it_measures_all_training_images_and_the_student_learns_from_them(
    config, call_tool, fails, tmp_path
):
    before = fails('train', config, '--work-dir', tmp_path)
    file = tmp_path / 'fitted.pth'
    assert f'distill.phis.teacher_connector: no checkpoint at {file}' in before
    assert 'Measure it with tools/fit_connector.py CONFIG' in before
    said = call_tool('fit_connector', config, '--work-dir', tmp_path)
    assert 'measured on 6 images' in said and f'{file}: phis; train the student now.' in said

    cfg = read_config(str(config))
    init_default_scope(cfg.default_scope)
    rows = rows_of(cfg)
    state = read_checkpoint(file)['state_dict']
    mean, weight = (state[f'phis.0.{key}'].double().numpy() for key in ('mean', 'weight'))
    np.testing.assert_allclose(mean, rows.mean(1), rtol=1e-4, atol=1e-5)
    covariance = weight @ np.cov(rows) @ weight.T
    np.testing.assert_allclose(np.diag(covariance), 1, rtol=1e-3)
    scale = np.trace(np.cov(rows)) / len(rows)  # a rotation and one scale, and nothing else
    np.testing.assert_allclose(weight @ weight.T * scale, np.eye(len(rows)), atol=1e-4)

    call_tool('train', config, '--work-dir', tmp_path)
    assert read_checkpoint(tmp_path / 'iter_2.pth')['meta']['iter'] == 2
    again = fails('fit_connector', config, '--work-dir', tmp_path)
    assert f'there is one at {file} already; move it away, or add --overwrite' in again
    said = call_tool('fit_connector', config, '--work-dir', tmp_path, '--overwrite', '--images', 4)
    assert 'measured on 4 images' in said


def test_nothing_to_measure(segmentation, config, factors, fails, tmp_path):
    for file in ('distilled.py', factors):
        said = fails('fit_connector', segmentation / file, '--work-dir', tmp_path)
        assert 'no term of `distill` has a `teacher_connector` that is measured' in said
    said = fails('fit_connector', segmentation / 'student.py')
    assert 'distils nothing: its model is no Distiller' in said
    said = fails('train', config, '--work-dir', tmp_path, '--paraphraser')
    assert 'PHISNormalizer has no `reconstruction_loss`' in said and 'fit_connector.py' in said


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--images', '0'], '--images must be at least 1, not 0'),
        (
            ['--cfg-options', 'model.distill.phis.teacher_connector.checkpoint=https://a.b/c.pth'],
            'distill.phis.teacher_connector.checkpoint: https://a.b/c.pth is no file of this',
        ),
        (
            ['--cfg-options', 'model.distill.phis.tap=decode_head.convz'],
            "has no module 'decode_head.convz'",
        ),
        (
            [
                '--cfg-options',
                'model.distill.phis.teacher_connector.type=mmkd_plugin.PHISNormaliser',
            ],
            ".type: there is no 'mmkd_plugin.PHISNormaliser'; did you mean",
        ),
    ],
)
def test_mistakes(config, fails, tmp_path, options, words):
    assert words in fails('fit_connector', config, '--work-dir', tmp_path, *options)


def test_a_detector_has_a_connector_for_each_level(detection, call_tool, tmp_path):
    pytest.importorskip('mmcv.ops')
    text = (detection / 'distilled.py').read_text()
    connector = "teacher_connector=dict(type='mmkd_plugin.ChannelNormalizer', checkpoint='a/b.pth')"
    (detection / 'normalised.py').write_text(text.replace("tap='neck'", f"tap='neck', {connector}"))
    said = call_tool(
        'fit_connector',
        detection / 'normalised.py',
        '--cfg-options',
        f'model.distill.cwd.teacher_connector.checkpoint={tmp_path}/a/b.pth',
    )
    assert f'{tmp_path}/a/b.pth: cwd; train' in said
    state = read_checkpoint(tmp_path / 'a/b.pth')['state_dict']
    assert {key.split('.')[1] for key in state} == {'0', '1', '2', '3', '4'}
    assert all(value.dim() == 1 and value.any() for value in state.values())


def test_a_file_is_needed():
    line = dict(
        tap='decode_head.bottleneck',
        loss=dict(type='mmkd_plugin.HintLoss'),
    )
    for given, words in (
        ({}, 'has no `checkpoint`'),
        (dict(checkpoint=None), 'checkpoint is None'),
    ):
        connector = dict(type='mmkd_plugin.PHISNormalizer', **given)
        terms = dict(hint=dict(line, teacher_connector=connector))
        with pytest.raises(ValueError, match=f'{words}.*tools/fit_connector.py CONFIG'):
            stock_models.distiller(stock_models.pspnet(), stock_models.pspnet(16), terms)
