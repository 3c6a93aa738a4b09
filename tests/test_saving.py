"""Files are whole or not there, wherever writing them ends."""

from __future__ import annotations

import pytest

from mmkd_plugin.saving import replacing, write_text
from tests.running.killing import Killed, Steps, watched


def test_a_file_is_replaced(tmp_path):
    write_text(tmp_path / 'new' / 'a.txt', 'first')
    write_text(tmp_path / 'new' / 'a.txt', 'second ü')
    assert (tmp_path / 'new' / 'a.txt').read_text(encoding='utf-8') == 'second ü'
    assert [file.name for file in (tmp_path / 'new').iterdir()] == ['a.txt']


def test_an_error_leaves_everything_as_it_was(tmp_path):
    write_text(tmp_path / 'a.txt', 'first')
    with pytest.raises(OSError, match='full'), replacing(tmp_path / 'a.txt') as (beside,):
        beside.write_text('half')
        raise OSError('full')
    assert (tmp_path / 'a.txt').read_text() == 'first'
    assert [file.name for file in tmp_path.iterdir()] == ['a.txt']


def test_a_kill_at_any_step_leaves_the_old_file_or_the_new_one(tmp_path):
    def write(folder, at=0):
        steps = Steps(folder, at)
        with watched(steps, ('a.', 'b.')), replacing(folder / 'a.txt', folder / 'b.txt') as besides:
            for beside in besides:
                with beside.open('w') as file:
                    file.write('second')
        return steps.names

    names = write(tmp_path)
    assert len(names) == 12
    for at in range(1, len(names) + 1):
        folder = tmp_path / str(at)
        for name in 'ab':
            write_text(folder / f'{name}.txt', 'first')
        with pytest.raises(Killed):
            write(folder, at)
        a, b = ((folder / f'{name}.txt').read_text() for name in 'ab')
        assert (a, b) in (('first', 'first'), ('first', 'second'), ('second', 'second')), names[at]
        write(folder)  # what lies beside is in nobody's way
        assert len(list(folder.iterdir())) == 2
