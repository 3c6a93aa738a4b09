"""Files that run code when they are unpickled, handed to all that reads weights: none runs."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.attacks.harness import call_tool, fork
from tests.attacks.runs import changed, segmentation, written
from tests.fuzz import models
from tests.runs import Touch, config, validated
from tests.stock_models import build
from tests.tools.tool_runs import load_tool

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='forks a process with threads')

WEIGHTS = 'efficientnet-lite0.pth'  # a name that says a foundation model

#: Every n-th tool is tried; ``make attacks`` tries all.
EVERY = 1 if os.environ.get('ATTACKS_EVERY') == '1' else 4

#: Tools, and what is typed behind them; ``{bad}`` is the file.
TYPED: dict[str, list[str]] = {
    'a run that goes on': ['train', '{config}', '--resume', '{bad}'],
    'the newest of a work dir': ['train', '{config}', '--work-dir', '{work}', '--resume'],
    'the start of a run': ['train', '{config}', '--cfg-options', 'load_from={bad}'],
    'a teacher': ['train', '{config}', '--cfg-options', 'model.teacher.checkpoint={bad}'],
    'a part of a student': [
        *('train', '{config}', '--cfg-options', 'model.student.init_cfg.type=Pretrained'),
        'model.student.init_cfg.checkpoint={bad}',
    ],
    'a teacher connector': ['train', '{factors}'],
    'a foundation model': ['train', '{foundation}'],
    'a foundation model of transformers': ['train', '{transformers}'],
    'a part of a model of transformers': ['train', '{parts}'],
    'a step': ['train', '--replay', '{step}'],
    'a test': ['test', '{config}', '{bad}'],
    'an export': ['export_student', '{config}', '{bad}', 'out.pth'],
    'an export of EMA': ['export_student', '{config}', '{bad}', 'out.pth', '--live'],
    'an export as ONNX': ['export_onnx', '{config}', '{bad}', 'out.onnx'],
    'pictures': ['visualize', '{config}', '{bad}', '--out', 'out'],
    'pictures of a baseline': [
        *('visualize', '{config}', '{good}', '--out', 'out', '--against', '{bad}'),
    ],
    'pictures of a teacher': [
        *('visualize', '{config}', '{good}', '--out', 'out', '--teacher', '{config}', '{bad}'),
    ],
    'a checkpoint of MMRazor': ['from_mmrazor', '{bad}', 'out.pth'],
    'a cache': [
        *('cache_teacher', '{config}', '--out', 'out', '--cfg-options'),
        'model.teacher.checkpoint={bad}',
    ],
    'a chosen teacher': ['distill', '{plain}', '{plain}', '{bad}', '--dry-run'],
}


@pytest.fixture(scope='module')
def files(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Configs, a good checkpoint, and bad ones where they are looked for."""
    root = tmp_path_factory.mktemp('hostile')
    run = segmentation(data, root / 'teacher.pth')
    whole = validated(config(copy.deepcopy(run['model']), data, root, 1), data).to_dict()
    run.update({key: whole[key] for key in whole if key.startswith('val_')})
    run.update({key.replace('val_', 'test_'): whole[key] for key in run if key.startswith('val_')})
    run['test_cfg'] = dict(type='TestLoop')
    good, bad = root / 'good.pth', root / WEIGHTS
    state = build(models.segmentor(4)).state_dict()
    torch.save(dict(state_dict=state), good)
    bomb = Touch(root / 'canary')
    torch.save(dict(state_dict=state, ema_state_dict=bomb, meta=dict(x=bomb)), bad)
    for name in ('work/iter_1.pth', 'step/step.pth'):
        (root / name).parent.mkdir()
        (root / name).write_bytes(bad.read_bytes())
    factors = dict(
        tap='backbone.conv2',
        connector=models.own('Translator'),
        teacher_connector=models.own('Paraphraser', checkpoint=str(bad)),
        loss=models.own('FactorTransferLoss'),
    )
    foundation = dict(
        foundation=models.own('FoundationModel', source='efficientnet_lite', path=str(bad)),
        transformers=models.own('FoundationModel', source='transformers', path=str(root / 'whole')),
        parts=models.own('FoundationModel', source='transformers', path=str(root / 'parts')),
    )
    for name, file in dict(whole='pytorch_model.bin', parts='one.bin').items():
        (root / name).mkdir()
        said = dict(model_type='dinov2', hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
        (root / name / 'config.json').write_text(json.dumps(said))
        said = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
        (root / name / 'preprocessor_config.json').write_text(json.dumps(said))
        (root / name / file).write_bytes(bad.read_bytes())
    index = root / 'parts/pytorch_model.bin.index.json'
    index.write_text(json.dumps(dict(weight_map=dict(x='one.bin'))))
    hint = dict(
        student_tap='backbone.conv2',
        teacher_tap='maps',
        connector=models.own('ConvConnector'),
        loss=models.own('HintLoss'),
    )
    configs = dict(
        config={},
        plain={'model': run['model']['student']},
        factors={'model.distill': dict(ft=factors)},
    )
    for name, one in foundation.items():
        teacher = dict(config=one, checkpoint=None)
        configs[name] = {'model.teacher': teacher, 'model.distill': dict(hint=hint)}
    found = dict(good=good, bad=bad, work=root / 'work', step=root / 'step')
    for name, changes in configs.items():
        found[name] = written(changed(run, changes), root / f'{name}.py')
    (root / 'step/config.py').write_text(found['config'].read_text())
    return found


@pytest.mark.parametrize('name', [*TYPED][::EVERY])
def test_no_code_runs(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    if 'of transformers' in name:
        pytest.importorskip('transformers', reason='it is an option of the user')
    if name == 'a foundation model':
        pytest.importorskip('efficientnet_lite_pytorch', reason='EfficientNet-Lite is an option')
    if name == 'an export as ONNX':
        pytest.importorskip('onnxruntime', reason='it is an option')
    tool, *typed = (text.format(**files) for text in TYPED[name])
    main = load_tool(tool).main
    ending = fork(lambda: call_tool(main, tool, typed), tmp_path)
    assert not (files['good'].parent / 'canary').exists(), ending.log
    assert 'holds `posix.system`, which is not data' in ending.log, ending.log
    if name == 'the newest of a work dir':  # there is none that is whole
        assert ending.status == 0 and 'starting anew' in ending.log, ending.log
    else:
        assert ending.message.startswith(f'{tool}.py: error: '), ending.log


def test_the_canary_sings(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    torch.save(Touch(tmp_path / 'canary'), tmp_path / 'x.pth')
    torch.load(tmp_path / 'x.pth', weights_only=False)
    assert (tmp_path / 'canary').exists()


# Links --------------------------------------------------------------------------------------------


def precious(folder: Path) -> Callable[[], bool]:
    """Makes a folder with a file of the user; the result says whether it is as it was."""
    folder.mkdir()
    (folder / 'file').write_text('mine')
    return lambda: (
        [one.name for one in folder.iterdir()] == ['file']
        and (folder / 'file').read_text() == 'mine'
    )


def test_links_in_a_work_dir(files: dict[str, Path], tmp_path: Path) -> None:
    """What lies behind a link is neither written nor removed."""
    is_there, work = precious(tmp_path / 'mine'), tmp_path / 'work'
    work.mkdir()
    for link in ('.saving', 'nan_0'):
        (work / link).symlink_to(tmp_path / 'mine')
    for link in ('iter_2.pth.tmp', 'last_checkpoint'):
        (work / link).symlink_to(tmp_path / 'mine/file')
    main = load_tool('train').main
    typed = [files['config'], '--work-dir', work]
    ending = fork(lambda: call_tool(main, 'train', typed), tmp_path / 'logs')
    assert ending.status == 0, ending.log
    assert is_there() and not (work / 'iter_2.pth').is_symlink()
    (work / '.lock').unlink()
    (work / '.lock').symlink_to(tmp_path / 'mine/file')
    ending = fork(lambda: call_tool(main, 'train', typed), tmp_path / 'logs')
    assert '.lock is a link, and nothing is written through it' in ending.message
    assert is_there()


def test_a_work_dir_that_is_a_link(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / 'real').mkdir()
    (tmp_path / 'work').symlink_to(tmp_path / 'real')
    main = load_tool('train').main
    typed = [files['config'], '--work-dir', tmp_path / 'work']
    for more in ([], ['--resume']):
        ending = fork(lambda more=more: call_tool(main, 'train', [*typed, *more]), tmp_path / 'log')
        assert ending.status == 0, ending.log
    assert (tmp_path / 'real/iter_2.pth').is_file()


def test_a_last_checkpoint_that_points_outside(files: dict[str, Path], tmp_path: Path) -> None:
    """It is read as each file is: safely."""
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'last_checkpoint').write_text(str(files['bad']))
    main = load_tool('train').main
    typed = [files['config'], '--work-dir', work, '--resume']
    ending = fork(lambda: call_tool(main, 'train', typed), tmp_path / 'logs')
    assert str(files['bad']) in ending.message and ending.status == 1, ending.log
    assert not (files['good'].parent / 'canary').exists()
