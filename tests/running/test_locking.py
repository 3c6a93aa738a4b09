"""Two processes do not train in one work dir."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from mmkd_plugin import saving
from mmkd_plugin.running import locking
from mmkd_plugin.running.locking import InUseError, alone_in


def hold(folder: Path, pipe: Connection) -> None:
    """Keeps a work dir until it is told to let go, with a child that outlives it."""
    with alone_in(folder):
        child = os.fork()
        if child == 0:
            signal.pause()
        pipe.send(child)
        pipe.recv()


@pytest.fixture
def holder(tmp_path):
    """A process that trains in a folder, the child that it started, and a way to end it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context('fork').Process(target=hold, args=(tmp_path, theirs))
    process.start()
    child = ours.recv()
    yield process, ours
    os.kill(child, signal.SIGKILL)
    process.kill()
    process.join()


def test_the_second_is_told_who_is_first(holder, tmp_path):
    process, _ = holder
    told = rf'{tmp_path}: process {process.pid} on .* trains in it'
    with pytest.raises(InUseError, match=told), alone_in(tmp_path):
        pass


@pytest.mark.parametrize('end', ['kill -9', 'of itself'])
def test_it_is_free_as_soon_as_the_process_has_ended(end, holder, tmp_path):
    process, pipe = holder
    process.kill() if end == 'kill -9' else pipe.send('end')
    process.join()
    with alone_in(tmp_path):
        assert (tmp_path / locking.LOCK).read_text().startswith(f'process {os.getpid()} on ')


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(saving.fcntl, 'lockf', none)
    with alone_in(tmp_path), alone_in(tmp_path):
        assert (tmp_path / locking.LOCK).read_text() == ''


def test_a_system_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, 'fcntl', None)
    with alone_in(tmp_path):
        assert not (tmp_path / locking.LOCK).exists()
