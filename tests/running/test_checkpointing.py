"""A run that is killed while it saves goes on, wherever that was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmkd_plugin.checkpoint import read_checkpoint
from mmkd_plugin.running.checkpointing import SavingError
from mmkd_plugin.running.hook import SafeCheckpoints
from mmkd_plugin.running.resuming import newest_checkpoint, point_to
from tests.running.killing import Steps, watched
from tests.running.tiny import tiny_run
from tests.runs import assert_same

pytestmark = pytest.mark.usefixtures('own_globals')

HOOKS = {
    'one kept': dict(max_keep_ckpts=1),
    'two kept': dict(max_keep_ckpts=2),
    'all kept': dict(),
    'by epoch': dict(max_keep_ckpts=1, by_epoch=True),
    'best': dict(max_keep_ckpts=1, save_best='score'),
}
WORDS = ('.pth', 'last_checkpoint')


def snapshots(folder: Path, **hook: Any) -> list[tuple[str, Path]]:
    """Trains once; gives the work dir as a kill at each operation on a file leaves it."""
    copies = folder.with_name('copies')
    steps = Steps(folder, copies=copies)
    with watched(steps, WORDS):
        tiny_run(folder, **hook).train()
    return [(name, copies / str(number)) for number, name in enumerate(steps.names, 1)]


@pytest.mark.parametrize('hook', HOOKS.values(), ids=HOOKS)
def test_the_newest_checkpoint_is_whole_at_every_point_of_a_kill(hook, tmp_path):
    expected = None
    for name, folder in snapshots(tmp_path / 'run', **hook):
        kind, _, file = name.rpartition(' ')
        if kind == 'after replace' and file.endswith('.tmp') and file[0] in 'ie':
            expected = file.removesuffix('.tmp')
        found = newest_checkpoint(folder)
        assert (found and Path(found.path).name) == expected, (name, folder)
    assert expected == ('epoch_3.pth' if hook.get('by_epoch') else 'iter_6.pth')


def test_a_run_that_was_killed_anywhere_goes_on(tmp_path):
    killed = snapshots(tmp_path / 'run', max_keep_ckpts=1, save_best='score')
    final = read_checkpoint(tmp_path / 'run' / 'iter_6.pth')['state_dict']
    for name, folder in killed[::9]:  # tests/faults tries all, with real runs
        found = newest_checkpoint(folder)
        load_from = None if found is None else found.path
        tiny_run(folder, load_from=load_from, resume=True, max_keep_ckpts=1).train()
        point_to(newest_checkpoint(folder), folder)
        assert (folder / 'last_checkpoint').read_text() == str(folder / 'iter_6.pth')
        again = read_checkpoint(folder / 'iter_6.pth')
        assert again['meta']['iter'] == 6
        assert_same(dict(again['state_dict']), dict(final), name)
        assert not [*folder.glob('*.tmp'), *folder.glob('.saving')]


def test_numbers_of_checkpoints_are_kept(tmp_path):
    tiny_run(tmp_path, max_keep_ckpts=2, save_best='score').train()
    names = sorted(file.name for file in tmp_path.glob('*.pth*'))
    assert names == ['best_score_iter_6.pth', 'iter_4.pth', 'iter_6.pth']


def test_the_same_hook_of_another_program(tmp_path):
    hooks = [dict(type='mmkd_plugin.SafeCheckpoints')]
    runner = tiny_run(tmp_path, custom_hooks=hooks)
    assert [type(hook) for hook in runner.hooks].count(SafeCheckpoints) == 1
    assert any(type(hook) is CheckpointHook for hook in runner.hooks)


def test_a_full_disk_ends_with_one_line_and_leaves_what_was_saved(tmp_path, monkeypatch):
    real = os.fsync

    def full(number: int) -> None:
        if (tmp_path / 'iter_4.pth.tmp').exists():
            raise OSError(28, 'No space left on device')
        real(number)

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(SavingError, match=r'iter_4\.pth could not be written: No space left'):
        tiny_run(tmp_path, max_keep_ckpts=1).train()
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path).path == str(tmp_path / 'iter_2.pth')
    assert not list(tmp_path.glob('*.tmp'))


def test_runs_without_saving(tmp_path):
    runner: Runner = tiny_run(tmp_path, interval=-1, save_last=False)
    runner.train()
    assert newest_checkpoint(tmp_path) is None
