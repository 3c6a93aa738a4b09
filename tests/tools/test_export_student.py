"""``tools/export_student.py``: stock mmseg and mmdet load what it writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope

from mmkd_plugin.checkpoint import distillation_state, read_checkpoint, state_dict_of
from mmkd_plugin.cli import UsageError, read_config
from tests.running.killing import Killed, Steps, full_disk, watched
from tests.runs import needs_ops
from tests.tools.tool_runs import load_tool, run_tool


@pytest.fixture
def export(call_tool):
    return partial(call_tool, 'export_student')


def assert_all_fits(said: list[str]) -> None:
    """Looks for missing and unexpected keys in what was logged and printed."""
    text = '\n'.join(said)
    assert not re.search('unexpected|missing|size mismatch', text), text


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def load_plain(file: Path) -> dict:
    """Loads without any of OpenMMLab's classes."""
    return torch.load(file, weights_only=True)


def test_a_segmentor_for_stock_tools(export, trained, segmentation, data, tmp_path, log, capsys):
    out = tmp_path / 'new' / 'student.pth'
    printed = export(segmentation / 'distilled.py', trained / 'iter_4.pth', out)
    assert str(out) in printed and 'student.py' in printed
    text = out.with_suffix('.py').read_text()
    assert 'mmkd' not in text and 'teacher' not in text

    from mmseg.apis import MMSegInferencer, inference_model, init_model

    model = init_model(str(out.with_suffix('.py')), str(out), device='cpu')
    assert model.dataset_meta['classes'] == ['ground', 'box', 'disc']
    assert_all_fits([*log.messages, *capsys.readouterr()])
    assert same(model.state_dict(), load_plain(out)['state_dict'])
    predicted = inference_model(model, str(data / 'images/0.png')).pred_sem_seg.data
    assert predicted.shape == (1, 64, 64)

    for config in (str(out.with_suffix('.py')), None):  # the weights hold their config too
        inferencer = MMSegInferencer(config, str(out), device='cpu')
        found = inferencer(str(data / 'images/0.png'), return_datasamples=True)
        assert torch.equal(found.pred_sem_seg.data, predicted)


def test_half_the_size(export, trained, segmentation, tmp_path, log, capsys):
    from mmseg.apis import init_model

    out, whole = tmp_path / 'half.pth', state_dict_of(read_checkpoint(trained / 'iter_4.pth'))
    export(segmentation / 'distilled.py', trained / 'iter_4.pth', out, '--half')
    assert {v.dtype for v in load_plain(out)['state_dict'].values()} == {torch.float16, torch.int64}
    loaded = init_model(str(out.with_suffix('.py')), str(out), device='cpu').state_dict()
    assert_all_fits([*log.messages, *capsys.readouterr()])
    assert loaded.keys() == whole.keys()
    for key, value in loaded.items():
        assert value.dtype == whole[key].dtype
        torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=1e-7)


def test_half_of_what_float16_cannot_hold_is_refused():
    with pytest.raises(UsageError, match=r'--half: head\.weight has values beyond the 65504'):
        load_tool('export_student').half({'head.weight': torch.tensor([1.0, 1e5])})


@pytest.mark.parametrize('name', ['iter_2.pth', 'iter_4.pth', 'best'])
def test_stock_mmseg_loads_every_checkpoint_of_a_run(name, trained, segmentation, log, capsys):
    from mmseg.apis import init_model

    file = next(trained.glob('best_*.pth')) if name == 'best' else trained / name
    model = init_model(str(segmentation / 'student.py'), str(file), device='cpu')
    assert_all_fits([*log.messages, *capsys.readouterr()])
    assert same(model.state_dict(), state_dict_of(read_checkpoint(file)))


MIXED = """
_base_ = [{student!r}]
model = dict(data_preprocessor=dict(
    type='mmkd_plugin.SegDataPreProcessor',
    batch_augments=[dict(type='mmkd_plugin.CutMix', prob=1.0)]))
"""
STOCK_ALONE = """
import sys
sys.modules['mmkd_plugin'] = None
from mmseg.apis import inference_model, init_model
for config, weights in zip(sys.argv[2::2], sys.argv[3::2]):
    model = init_model(config, weights, device='cpu')
    print('found', inference_model(model, sys.argv[1]).pred_sem_seg.data.sum().item())
"""


def test_batch_augmentations_stay_behind(export, trained, segmentation, data, tmp_path):
    student = segmentation / 'student.py'
    (tmp_path / 'mixed.py').write_text(MIXED.format(student=str(student)))
    text = (segmentation / 'distilled.py').read_text().replace('student.py', 'mixed.py')
    (tmp_path / 'taught.py').write_text(text)
    run_tool('train', 'taught.py', '--work-dir', 'run', cwd=tmp_path)
    weights = tmp_path / 'run' / 'iter_4.pth'
    assert 'mIoU' in run_tool('test', 'taught.py', weights, cwd=tmp_path)
    assert not same(
        state_dict_of(read_checkpoint(weights)),
        state_dict_of(read_checkpoint(trained / 'iter_4.pth')),
    )
    out, plain = tmp_path / 'student.pth', tmp_path / 'plain.pth'
    export(tmp_path / 'taught.py', weights, out)
    export(segmentation / 'distilled.py', weights, plain)
    text = out.with_suffix('.py').read_text()
    assert text == plain.with_suffix('.py').read_text() and 'mmkd' not in text
    assert load_plain(out)['meta']['cfg'] == load_plain(plain)['meta']['cfg']

    config = out.with_suffix('.py')
    pairs = [config, out, config, weights]  # the training checkpoint, too
    image = data / 'images/0.png'
    done = subprocess.run(
        [sys.executable, '-c', STOCK_ALONE, *map(str, [image, *pairs])],
        # with torch 2.6 mmengine alone does not load what it saves itself in training
        env={**os.environ, 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith('found')]
    assert len(found) == 2 and found[0] == found[1]
    assert 'missing' not in done.stdout + done.stderr


@needs_ops
def test_a_detector_for_stock_tools(
    export, trained_detector, detection, data, tmp_path, log, capsys
):
    out = tmp_path / 'student.pth'
    export(detection / 'distilled.py', trained_detector / 'epoch_1.pth', out)

    from mmdet.apis import DetInferencer, inference_detector, init_detector

    model = init_detector(str(out.with_suffix('.py')), str(out), device='cpu')
    assert model.dataset_meta['classes'] == ('box', 'disc')
    assert_all_fits([*log.messages, *capsys.readouterr()])
    assert same(model.state_dict(), load_plain(out)['state_dict'])
    boxes = inference_detector(model, str(data / 'images/0.png')).pred_instances.bboxes
    assert len(boxes) > 0

    config = str(out.with_suffix('.py'))
    inferencer = DetInferencer(config, str(out), device='cpu', show_progress=False)
    found = inferencer(str(data / 'images/0.png'))['predictions'][0]
    np.testing.assert_allclose(found['bboxes'], boxes.numpy(), atol=1e-3)


def test_averaged_and_live_weights(export, trained, segmentation, tmp_path):
    config, checkpoint = segmentation / 'distilled.py', trained / 'iter_4.pth'
    export(config, checkpoint, tmp_path / 'averaged.pth')
    export(config, checkpoint, tmp_path / 'live.pth', '--live')
    averaged = load_plain(tmp_path / 'averaged.pth')['state_dict']
    live = load_plain(tmp_path / 'live.pth')['state_dict']
    saved = read_checkpoint(checkpoint)
    assert same(averaged, state_dict_of(saved))
    assert same(live, {k[7:]: v for k, v in saved['ema_state_dict'].items() if k != 'steps'})
    assert not same(averaged, live)
    for weights in (averaged, live):
        assert distillation_state(weights) is None

    # Momentum 0.1 from the same start: the average lags behind the optimizer's weights.
    before = read_checkpoint(trained / 'iter_2.pth')
    key = 'decode_head.conv_seg.bias'
    assert (live[key] - before['ema_state_dict'][f'module.{key}']).abs().max() > 0
    assert (averaged[key] - before['state_dict'][key]).norm() < (
        live[key] - before['state_dict'][key]
    ).norm()


def test_safetensors(export, trained, segmentation, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    out = tmp_path / 'student.safetensors'
    export(segmentation / 'student.py', trained / 'iter_4.pth', out)
    weights = safetensors.load_file(str(out))
    assert same(weights, state_dict_of(read_checkpoint(trained / 'iter_4.pth')))
    cfg = Config.fromfile(out.with_suffix('.py'))
    init_default_scope(cfg.default_scope)
    MODELS.build(cfg.model).load_state_dict(weights)


def test_plain_weights_and_a_plain_config(export, segmentation, tmp_path):
    out = tmp_path / 'teacher.pth'
    export(segmentation / 'teacher.py', segmentation / 'teacher.pth', out)
    assert same(
        load_plain(out)['state_dict'], load_plain(segmentation / 'teacher.pth')['state_dict']
    )
    with pytest.raises(KeyError):  # there was none
        load_plain(out)['meta']['dataset_meta']


def test_what_the_student_lacks_is_left_out(export, segmentation, tmp_path):
    cfg = read_config(str(segmentation / 'teacher.py'))
    cfg.model.auxiliary_head = None
    cfg.dump(tmp_path / 'plain.py')
    export(tmp_path / 'plain.py', segmentation / 'teacher.pth', tmp_path / 'out.pth')
    weights = load_plain(tmp_path / 'out.pth')['state_dict']
    assert weights and not [key for key in weights if key.startswith('auxiliary')]


def test_wrong_arguments(fails, segmentation, trained, tmp_path):
    config, checkpoint = segmentation / 'distilled.py', trained / 'iter_4.pth'

    call = partial(fails, 'export_student')
    assert 'there is distilled.py' in call(segmentation / 'distiled.py', checkpoint, 'out.pth')
    assert 'there is iter_4.pth' in call(config, trained / 'iter_8.pth', tmp_path / 'out.pth')
    assert 'does not fit the student' in call(
        config, segmentation / 'teacher.pth', tmp_path / 'out.pth'
    )
    assert 'must end with .pth or .safetensors' in call(config, checkpoint, tmp_path / 'out.onnx')
    (tmp_path / 'file').touch()
    assert 'is a file; a folder is needed' in call(
        config, checkpoint, tmp_path / 'file' / 'out.pth'
    )
    assert 'one set of weights only' in call(
        segmentation / 'teacher.py', segmentation / 'teacher.pth', tmp_path / 'out.pth', '--live'
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']  # and no half-written file
    for name in ('out.pth', 'out.py'):
        (tmp_path / name).write_text('mine')
        assert f'{name} exists already' in call(config, checkpoint, tmp_path / 'out.pth')
        assert (tmp_path / name).read_text() == 'mine'
        (tmp_path / name).unlink()


@pytest.fixture(autouse=True)
def default_scope_kept():
    """Configs set the process-wide default scope."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        init_default_scope(before.scope_name)


def test_an_export_that_was_cut_short_is_in_nobodys_way(
    call_tool, fails, trained, segmentation, tmp_path
):
    config, checkpoint, out = (
        segmentation / 'distilled.py',
        trained / 'iter_4.pth',
        tmp_path / 'a.pth',
    )
    steps = Steps(tmp_path)
    with watched(steps, ('a.',)):
        call_tool('export_student', config, checkpoint, out)
    whole = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(whole) == {'a.pth', 'a.py'}
    last = len(steps.names)  # each part of an archive is a write: its middle is enough
    for at in (1, last // 2, last - 3, last - 2, last - 1, last):
        for file in tmp_path.iterdir():
            file.unlink()
        with pytest.raises(Killed), watched(Steps(tmp_path, at), ('a.',)):
            call_tool('export_student', config, checkpoint, out)
        if out.exists():
            assert (tmp_path / 'a.py').read_bytes() == whole['a.py']
        else:
            call_tool('export_student', config, checkpoint, out)
            assert sorted(file.name for file in tmp_path.iterdir()) == ['a.pth', 'a.py']


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_an_export_to_a_full_disk(suffix, fails, trained, segmentation, tmp_path):
    out = tmp_path / f'a{suffix}'
    arguments = segmentation / 'distilled.py', trained / 'iter_4.pth', out
    with full_disk(20_000):
        message = fails('export_student', *arguments)
    assert message.count(str(out)) == 1 and 'File too large; nothing is left of it' in message
    assert not list(tmp_path.iterdir())


OWN_HEAD = """
from mmseg.models import FCNHead
from mmseg.registry import MODELS


@MODELS.register_module()
class OwnHead(FCNHead):
    pass
"""
OWN_DATA = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS


@DATASETS.register_module()
class OwnData(BaseSegDataset):
    pass


@HOOKS.register_module()
class OwnHook(Hook):
    pass
"""
OWN_LOSS = """
from mmkd_plugin import ChannelWiseLoss
from mmkd_plugin.registry import MODELS


@MODELS.register_module()
class OwnLoss(ChannelWiseLoss):
    pass
"""
OWN = """
_base_ = [{student!r}]
custom_imports = dict(imports=['own_parts.losses', 'own_parts.data', 'own_parts.heads'])
"""
IN_ANOTHER_FOLDER = """
import sys
sys.modules['mmkd_plugin'] = None
from mmseg.apis import MMSegInferencer, inference_model, init_model
config, weights, image = sys.argv[1:]
model = init_model(config, weights, device='cpu')
print('found', inference_model(model, image).pred_sem_seg.data.sum().item())
print('and', MMSegInferencer(config, weights, device='cpu')(image)['predictions'].sum())
"""


@pytest.fixture
def own(segmentation: Path, tmp_path: Path) -> Path:
    """A folder with modules of the user, and a config that imports all of them."""
    (tmp_path / 'own_parts').mkdir()
    for name, text in (('heads', OWN_HEAD), ('data', OWN_DATA), ('losses', OWN_LOSS)):
        (tmp_path / f'own_parts/{name}.py').write_text(text)
    (tmp_path / 'own.py').write_text(OWN.format(student=str(segmentation / 'student.py')))
    return tmp_path


def used_elsewhere(folder: Path, image: Path, path: str = '') -> subprocess.CompletedProcess:
    (folder / 'elsewhere').mkdir()
    command = [
        sys.executable,
        '-c',
        IN_ANOTHER_FOLDER,
        folder / 'out.py',
        folder / 'out.pth',
        image,
    ]
    return subprocess.run(
        list(map(str, command)),
        cwd=folder / 'elsewhere',
        env={**os.environ, 'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )


def test_imports_of_the_training_stay_behind(own, trained, data):
    """Also a hook; and the pipeline of the test data is where `inference_model` looks for it."""
    text = (own / 'own.py').read_text()
    text += "custom_hooks = [dict(type='OwnHook'), dict(type='EMAHook')]\n"
    (own / 'own.py').write_text(f'{text}test_pipeline = None\n')
    said = run_tool('export_student', 'own.py', trained / 'iter_4.pth', 'out.pth', cwd=own)
    assert 'modules of your own' not in said
    written = Config.fromfile(own / 'out.py')
    assert 'custom_imports' not in written and 'custom_hooks' not in written
    assert written.test_pipeline[0].type == 'LoadImageFromFile'
    done = used_elsewhere(own, data / 'images/0.png')
    assert done.returncode == 0 and 'and' in done.stdout, done.stderr[-2000:]
    assert 'own_parts' not in done.stderr


def test_imports_that_the_student_needs_stay(own, trained, data):
    text = (own / 'own.py').read_text() + "model = dict(decode_head=dict(type='OwnHead'))\n"
    (own / 'own.py').write_text(text)
    said = run_tool('export_student', 'own.py', trained / 'iter_4.pth', 'out.pth', cwd=own)
    assert 'This config needs modules of your own wherever it is used: own_parts.heads.' in said
    written = Config.fromfile(own / 'out.py', import_custom_modules=False)
    assert written.custom_imports == dict(imports=['own_parts.heads'], allow_failed_imports=False)
    done = used_elsewhere(own, data / 'images/0.png', str(own))
    assert done.returncode == 0 and 'and' in done.stdout, done.stderr[-2000:]


def test_imports_that_the_data_needs_may_fail(own, trained, data):
    text = (own / 'own.py').read_text() + "test_dataloader = dict(dataset=dict(type='OwnData'))\n"
    (own / 'own.py').write_text(text)
    said = run_tool('export_student', 'own.py', trained / 'iter_4.pth', 'out.pth', cwd=own)
    assert 'modules of your own' not in said
    written = Config.fromfile(own / 'out.py', import_custom_modules=False)
    assert written.custom_imports == dict(imports=['own_parts.data'], allow_failed_imports=True)
    done = used_elsewhere(own, data / 'images/0.png')
    assert done.returncode == 0 and 'and' in done.stdout, done.stderr[-2000:]


def test_an_import_that_changes_a_class_is_needed(own, trained):
    """It registers nothing, and the student can be built without it."""
    (own / 'own_parts/losses.py').write_text(
        'from mmseg.models import FCNHead\n\nFCNHead.cls_seg = FCNHead._transform_inputs\n'
    )
    said = run_tool('export_student', 'own.py', trained / 'iter_4.pth', 'out.pth', cwd=own)
    assert 'wherever it is used: own_parts.losses.' in said
