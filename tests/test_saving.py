"""Files are whole or not there, wherever writing them ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mmkd_plugin.saving import WriteError, replacing, whole_folder, write_text
from mmkd_plugin.visualization.figure import save
from mmkd_plugin.visualization.page import Page
from tests.running.killing import Killed, Steps, full_disk, watched


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


# A disk that is full ------------------------------------------------------------------------------


def save_plot(file: Path) -> None:
    figure = Figure()
    figure.figimage(np.random.rand(300, 300))
    with replacing(file) as (beside,):
        figure.savefig(beside, format='png')


WRITERS = {
    'a.txt': lambda file: write_text(file, 'x' * 50_000),
    'a.png': lambda file: save(np.random.randint(0, 255, (200, 200, 3), np.uint8), file),
    'a.jpg': lambda file: save(np.random.randint(0, 255, (200, 200, 3), np.uint8), file),
    'plot.png': save_plot,
    'index.html': lambda file: Page(file.parent).write('x' * 50_000, {}),
}


@pytest.mark.parametrize(('name', 'write'), WRITERS.items(), ids=WRITERS)
def test_a_full_disk_loses_nothing_and_is_said_in_one_line(name, write, tmp_path):
    (tmp_path / name).write_text('good')
    with full_disk(), pytest.raises(WriteError) as info:
        write(tmp_path / name)
    assert str(info.value) == f'{tmp_path / name} could not be written: File too large'
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, 'good')]
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1024


def files_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / 'new' / 'out'
    with pytest.raises(RuntimeError), whole_folder(out, '.me') as partial:
        (partial / 'a').write_text('half')
        raise RuntimeError
    assert not out.exists()
    with whole_folder(out, '.me') as partial:  # what was left is deleted
        (partial / 'b').write_text('whole')
    assert files_in(out) == {'b': 'whole'}
    assert [path.name for path in out.parent.iterdir()] == ['out']


def test_a_folder_that_a_kill_left_before_its_last_rename_is_written_anew(tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / 'out'
    monkeypatch.setattr(Path, 'replace', killed)
    with pytest.raises(KeyboardInterrupt), whole_folder(out, '.me') as partial:
        (partial / 'a').write_text('killed')
    monkeypatch.undo()
    with whole_folder(out, '.me') as partial:
        (partial / 'b').write_text('whole')
    assert [path.name for path in out.iterdir()] == ['b'] and list(tmp_path.iterdir()) == [out]


def test_a_folder_that_was_filled_meanwhile_stays(tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(OSError), whole_folder(out, '.me'):
        out.mkdir()
        (out / 'mine.txt').write_text('mine')
    assert files_in(out) == {'mine.txt': 'mine'}
    with whole_folder(out, '.me') as partial:  # still known as one's own
        (out / 'mine.txt').unlink()
        (partial / 'a').write_text('a')
    assert files_in(out) == {'a': 'a'}


def test_a_partial_folder_of_somebody_else_stays(tmp_path):
    mine = tmp_path / 'out.partial' / 'mine.txt'
    mine.parent.mkdir()
    mine.write_text('mine')
    with pytest.raises(FileExistsError, match='not from this'), whole_folder(tmp_path / 'out', 'x'):
        pass
    assert mine.read_text() == 'mine'


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    pytest.importorskip('fcntl')
    with (
        whole_folder(tmp_path / 'out', '.me') as partial,
        pytest.raises(FileExistsError, match=f'Another run is writing to {partial}'),
        whole_folder(tmp_path / 'out', '.me'),
    ):
        pass
