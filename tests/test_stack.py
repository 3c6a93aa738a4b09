"""Both stacks behave alike: ``pkg::`` bases, and safe loading of training checkpoints."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import CheckpointLoader

from mmkd_plugin import stack
from mmkd_plugin.cli import UsageError, read_config
from tests.runs import Touch


@pytest.fixture(params=['allow-list', 'no allow-list'])
def any_torch(request, monkeypatch) -> None:
    """Both ways of loading safely, whatever torch there is."""
    if request.param == 'no allow-list':
        monkeypatch.setattr(stack, 'CAN_ALLOW_LIST', False)
    elif not stack.CAN_ALLOW_LIST:
        pytest.skip('this torch has no allow-list')


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_bases_of_the_installed_libraries_are_found(scope, tmp_path):
    pytest.importorskip(scope)
    stack.prepare()
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = ['{scope}::_base_/default_runtime.py']")
    assert Config.fromfile(config).default_scope == scope


RECIPE = 'cwd/cwd-logits_fpn_r18-w32_fpn_r18-w16_1k_digit-scenes-128x128.py'


def test_a_base_can_be_a_recipe_of_this_package(tmp_path):
    for _ in range(2):
        stack.prepare()
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = ['mmkd::{RECIPE}']\n"
        'model = dict(distill=dict(cwd=dict(loss=dict(tau=2))))\n'
        'again = {{_base_.train_dataloader}}\n'
    )
    found, recipe = Config.fromfile(config), Config.fromfile(f'mmkd::{RECIPE}')
    assert found.model.distill.cwd.loss.pop('tau') == 2
    assert recipe.model.distill.cwd.loss.pop('tau') == 4
    assert found.again.dataset == recipe.train_dataloader.dataset
    found.pop('again')
    assert found.to_dict() == recipe.to_dict()  # no part gets a scope of its own


def test_several_threads_read_configs(tmp_path):
    stack.prepare()
    config = tmp_path / 'config.py'
    config.write_text("_base_ = ['mmseg::_base_/default_runtime.py']")
    with ThreadPoolExecutor(4) as pool:
        read = [*pool.map(lambda _: Config.fromfile(config), range(12))]
    assert all(cfg.default_scope == 'mmseg' for cfg in read)


def test_a_process_that_is_forked_while_a_thread_reads_a_config_reads_one_too(tmp_path):
    stack.prepare()
    config, slow, begun, end = (
        tmp_path / name for name in ('config.py', 'slow.py', 'begun', 'end')
    )
    config.write_text("_base_ = ['mmseg::_base_/default_runtime.py']")
    slow.write_text(  # without `import`, which makes it another kind of config
        f'open({str(begun)!r}, "w").close()\n'
        f'while not __import__("os").path.exists({str(end)!r}):\n'
        '    __import__("time").sleep(0.01)\n'
    )
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(Config.fromfile, slow)
        while not begun.exists():
            assert not read.done(), read.exception()
            time.sleep(0.01)
        threading.Timer(0.2, end.touch).start()
        child = os.fork()
        if not child:
            signal.alarm(60)  # ends a process that waits for ever
            os._exit(0 if Config.fromfile(config).default_scope == 'mmseg' else 1)
        assert os.waitpid(child, 0)[1] == 0
        read.result()


def test_a_recipe_that_does_not_exist_is_named(tmp_path):
    stack.prepare()
    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmkd::cwd/none.py'")
    with pytest.raises(FileNotFoundError, match=r'configs/cwd/none\.py'):
        Config.fromfile(config)
    with pytest.raises(UsageError, match=re.escape(Path(RECIPE).name)):
        read_config(f'mmkd::{RECIPE.replace("logits", "logitz")}')


def test_a_name_that_is_right_stays(monkeypatch):
    monkeypatch.setitem(MODULE2PACKAGE, 'pytest', 'pytest')
    monkeypatch.setitem(MODULE2PACKAGE, 'numpy', 'no-such-distribution')
    monkeypatch.setitem(MODULE2PACKAGE, 'no_such_module', 'no-such-distribution')
    for _ in range(2):
        stack.prepare()
        assert MODULE2PACKAGE['pytest'] == 'pytest'
        assert MODULE2PACKAGE['numpy'] == 'numpy'
        assert MODULE2PACKAGE['no_such_module'] == 'no-such-distribution'


def test_prepare_imports_no_model_library():
    code = (
        'import sys; from mmkd_plugin.stack import prepare; prepare(); '
        'print([m for m in ("mmseg", "mmdet", "mmcv") if m in sys.modules])'
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith('[]')


def message_hub() -> MessageHub:
    hub = MessageHub.get_instance(f'test_stack_{np.random.default_rng().integers(1 << 62)}')
    hub.update_scalar('loss', torch.tensor(2.0))
    hub.update_scalar('loss', 4.0)
    for name, value in dict(
        iter=3,
        array=np.arange(3, dtype=np.int32),
        text=np.array(['a', 'bc']),
        flag=np.bool_(True),
        half=np.float16(0.5),
        double=np.float64(0.5),
        byte=np.uint8(7),
    ).items():
        hub.update_info(name, value)
    return hub


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.mark.usefixtures('any_torch')
@pytest.mark.parametrize('zipped', [True, False])
def test_a_training_checkpoint_loads_safely(zipped, tmp_path):
    file = tmp_path / 'training.pth'
    saved = dict(
        state_dict=torch.nn.BatchNorm2d(3).state_dict(),
        message_hub=message_hub().state_dict(),
        args=argparse.Namespace(lr=1),
        rest=[slice(2), {1}, b'abc', bytearray(b'x'), 2j, torch.Size([1]), torch.float16],
        param_schedulers=[torch.optim.lr_scheduler.MultiStepLR(optimizer(), [3, 3]).state_dict()],
    )
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    loaded = stack.safe_load(file)
    hub = MessageHub.get_instance('test_stack_loaded')
    hub.load_state_dict(loaded['message_hub'])
    assert isinstance(hub.get_scalar('loss'), HistoryBuffer)
    assert hub.get_scalar('loss').mean() == 3
    assert hub.get_scalar('loss').statistics('max') == 4
    assert hub.get_info('array').tolist() == [0, 1, 2]
    assert loaded['args'].lr == 1
    assert loaded['rest'] == saved['rest']
    assert loaded['param_schedulers'] == saved['param_schedulers']
    assert loaded['state_dict'].keys() == saved['state_dict'].keys()
    assert torch.equal(loaded['state_dict']['running_var'], torch.ones(3))
    assert loaded['state_dict']._metadata == saved['state_dict']._metadata


@pytest.mark.skipif(not stack.CAN_ALLOW_LIST, reason='this torch has no allow-list')
def test_prepare_is_enough_for_other_loaders(tmp_path):
    torch.save(message_hub().state_dict(), tmp_path / 'hub.pth')
    stack.prepare()
    assert torch.load(tmp_path / 'hub.pth', weights_only=True)['runtime_info']['iter'] == 3


@pytest.mark.usefixtures('any_torch')
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
def test_code_in_a_file_is_not_run(zipped, protocol, tmp_path):
    flag, file = tmp_path / 'flag', tmp_path / 'bad.pth'
    content = dict(state_dict={}, bad=Touch(flag))
    torch.save(content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(pickle.UnpicklingError):
        stack.safe_load(file)
    assert not flag.exists()


@pytest.mark.usefixtures('any_torch')
@pytest.mark.parametrize(
    'damaged',
    [
        pytest.param(b'\x80\x02.', id='nothing on the stack'),
        pytest.param(b'\x80\x02h\x05.', id='an entry that is not in the memo'),
        pytest.param(b'\x80\x02K\x01Q.', id='a number for a tensor'),
        pytest.param(b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.', id='no arguments'),
    ],
)
def test_a_damaged_pickle_is_a_pickle_error(damaged, tmp_path):
    torch.save({}, tmp_path / 'whole.pth')
    file = tmp_path / 'file.pth'
    with zipfile.ZipFile(tmp_path / 'whole.pth') as whole, zipfile.ZipFile(file, 'w') as other:
        for name in whole.namelist():
            other.writestr(name, damaged if name.endswith('data.pkl') else whole.read(name))
    with pytest.raises(pickle.UnpicklingError):
        stack.safe_load(file)


@pytest.mark.usefixtures('any_torch')
@pytest.mark.parametrize('package', ['numpy.core', 'numpy._core'])
def test_files_of_numpy_1_and_2_load(package, tmp_path):
    torch.save(dict(array=np.arange(4.0), number=np.float32(2)), tmp_path / 'own.pth')
    file = tmp_path / 'file.pth'
    with zipfile.ZipFile(tmp_path / 'own.pth') as own, zipfile.ZipFile(file, 'w') as other:
        for name in own.namelist():
            renamed = re.sub(rb'numpy\._?core', package.encode(), own.read(name))
            other.writestr(name, renamed)
    loaded = stack.safe_load(file)
    assert loaded['array'].tolist() == [0, 1, 2, 3]
    assert loaded['number'] == 2


class Attribute:
    """Pickles as ``getattr(owner, name)``."""

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.usefixtures('any_torch')
@pytest.mark.parametrize(
    'owner, name', [(np.ndarray, 'tofile'), (HistoryBuffer, '__init__'), (slice, '__reduce__')]
)
def test_attributes_other_than_a_buffers_methods_are_refused(owner, name, tmp_path):
    torch.save(dict(stolen=Attribute(owner, name)), tmp_path / 'bad.pth')
    with pytest.raises(pickle.UnpicklingError, match='getattr'):
        stack.safe_load(tmp_path / 'bad.pth')


@pytest.mark.usefixtures('any_torch')
def test_nothing_in_the_process_loads_unsafely(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    flag, file = tmp_path / 'flag', tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, bad=Touch(flag)), file)
    with stack.safe_loading():
        for load in (
            lambda: CheckpointLoader.load_checkpoint(str(file)),
            lambda: torch.load(file),
            lambda: torch.load(file, weights_only=False),
        ):
            with pytest.raises(pickle.UnpicklingError):
                load()
    assert not flag.exists()
    assert os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] == '1'
    assert 'TORCH_FORCE_WEIGHTS_ONLY_LOAD' not in os.environ


@pytest.mark.usefixtures('any_torch')
def test_mmengine_loads_training_checkpoints_while_loading_is_safe(tmp_path):
    torch.save(dict(message_hub=message_hub().state_dict()), tmp_path / 'training.pth')
    with stack.safe_loading():
        loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'training.pth'))
    assert loaded['message_hub']['runtime_info']['iter'] == 3
