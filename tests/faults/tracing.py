"""Every state in which ``kill -9`` can leave a folder while a program writes to it.

The program runs in a process of its own, which the kernel stops before and after each system call
that changes a file below the folder: so nothing is missed, neither of Python nor of a library in C.
A killed process leaves the files as they are at such a stop, or in the middle of a write.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import pickle
import platform
import shutil
import signal
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.attacks.harness import Ending, fork

#: Numbers of the system calls that change files, by the machine.
_CALLS = {
    'x86_64': dict(
        write=1, open=2, close=3, pwrite64=18, writev=20, sendfile=40, fsync=74, fdatasync=75,
        truncate=76, ftruncate=77, rename=82, mkdir=83, rmdir=84, creat=85, unlink=87, symlink=88,
        openat=257, mkdirat=258, unlinkat=263, renameat=264, symlinkat=266, fallocate=285,
        pwritev=296, renameat2=316, copy_file_range=326,
    ),
    'aarch64': dict(
        mkdirat=34, unlinkat=35, symlinkat=36, renameat=38, truncate=45, ftruncate=46,
        fallocate=47, openat=56, close=57, write=64, writev=66, pwrite64=68, pwritev=70,
        sendfile=71, fsync=82, fdatasync=83, renameat2=276, copy_file_range=285,
    ),
}  # fmt: skip
_NAMES = {number: name for name, number in _CALLS.get(platform.machine(), {}).items()}

#: Where the paths of a call are, as places of a file descriptor (None: the current folder) and of a
#: text among its arguments.
_PATHS = dict(
    open=[(None, 0)],
    creat=[(None, 0)],
    truncate=[(None, 0)],
    mkdir=[(None, 0)],
    rmdir=[(None, 0)],
    unlink=[(None, 0)],
    symlink=[(None, 1)],
    rename=[(None, 0), (None, 1)],
    openat=[(0, 1)],
    mkdirat=[(0, 1)],
    unlinkat=[(0, 1)],
    symlinkat=[(1, 2)],
    renameat=[(0, 1), (2, 3)],
    renameat2=[(0, 1), (2, 3)],
)
#: Which argument is the file that a call writes to.
_WRITES = dict(write=0, pwrite64=0, writev=0, pwritev=0, sendfile=0, copy_file_range=2)
_OPENS, _SYNCS, _RENAMES = (('open', 'openat'), ('fsync', 'fdatasync'), 'rename')

_TRACEME, _SYSCALL, _SETOPTIONS, _INFO = 0, 24, 0x4200, 0x420E
_OPTIONS = 1 | 2 | 4 | 8 | 0x100000  # mark system calls, follow children and threads, end with us
_ALL_CHILDREN = 0x40000000
_ENTRY, _EXIT = 1, 2
_HERE = -100
_PAGE = mmap.PAGESIZE

needs_tracing = pytest.mark.skipif(
    platform.system() != 'Linux' or not _NAMES, reason='there is no ptrace as this needs it'
)


class Operation(NamedTuple):
    """A change of a file.

    Args:
        name (str): The system call.
        paths (tuple[str, ...]): The files that it is about.
    """

    name: str
    paths: tuple[str, ...]


class State(NamedTuple):
    """A folder as a killed process leaves it.

    Args:
        label (str): Where that was.
        files (dict): By path below the folder: the digest of a file and the time of its last
            change, or None for a folder.
        done (int): How many operations were done.
    """

    label: str
    files: dict[str, tuple[str, int] | None]
    done: int


class Trace(NamedTuple):
    """A run of a program.

    Args:
        states (list[State]): Each state in which it can have left the folder, once.
        operations (list[Operation]): What it did in the folder.
        contents (dict[str, bytes]): Contents of files by their digests.
        ending (Ending): How it ended.
    """

    states: list[State]
    operations: list[Operation]
    contents: dict[str, bytes]
    ending: Ending

    def restore(self, state: State, folder: Path) -> None:
        """Makes a folder what it was in a state."""
        shutil.rmtree(folder, ignore_errors=True)
        for name, file in state.files.items():
            path = folder / name
            if file is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.contents[file[0]])
            os.utime(path, ns=(file[1], file[1]))


def trace(call: Callable[[], Any], folder: Path, logs: Path, ignored: Sequence[str] = ()) -> Trace:
    """Runs a program once, and notes all states of a folder on the way.

    Args:
        call (Callable): The program; it runs in a forked process.
        folder (Path): What is watched; it need not exist.
        logs (Path): Folder for what is printed.
        ignored (Sequence[str]): Endings of files whose content makes no other state. Defaults to
            none.
    """
    notes = logs / 'trace.pkl'
    ending = fork(lambda: _follow(call, _Watch(folder.absolute(), ignored), notes), logs)
    watch = pickle.loads(notes.read_bytes()) if notes.exists() else None
    assert watch is not None, ending.log
    return Trace(watch.states, watch.operations, watch.contents, ending)


def not_flushed(operations: Sequence[Operation]) -> list[str]:
    """What a loss of power may take although it was renamed to its final name.

    Args:
        operations (Sequence[Operation]): Of a program that has ended.

    Returns:
        list[str]: Files whose content was not on the disk when they were renamed, and those whose
        new name was not afterwards.
    """
    written, renamed, lost = set(), {}, []
    for name, paths in operations:
        if name in _WRITES:
            written.add(paths[0])
        elif name in _SYNCS:
            written.discard(paths[0])
            renamed = {new: folder for new, folder in renamed.items() if folder != paths[0]}
        elif name.startswith(_RENAMES):
            old, new = paths
            inside = [one for one in written if one == old or one.startswith(f'{old}/')]
            lost += [f'content of {one}' for one in inside]
            written -= set(inside)
            renamed[new] = str(Path(new).parent)
    return lost + [f'name of {new}' for new in renamed]


class _Watch:
    """The states of a folder so far."""

    def __init__(self, folder: Path, ignored: Sequence[str]) -> None:
        self.folder, self.ignored = folder, tuple(ignored)
        self.states: list[State] = []
        self.operations: list[Operation] = []
        self.contents: dict[str, bytes] = {}
        self._digests: dict[Path, tuple[tuple, str]] = {}
        self._seen: set[tuple] = set()

    def has(self, path: str) -> bool:
        return f'{path}/'.startswith(f'{self.folder}/')

    def note(self, label: str, **changed: bytes) -> None:
        """Notes the state of now, with the content of some files replaced."""
        files = self._files()
        for name, content in changed.items():
            files[name] = self._kept(content), files[name][1]
        same = {name: file and file[0] for name, file in files.items() if self._counts(name)}
        key = tuple(sorted(same.items(), key=lambda one: one[0]))
        if key not in self._seen:
            self._seen.add(key)
            self.states.append(State(label, files, len(self.operations)))

    def _files(self) -> dict[str, tuple[str, int] | None]:
        files: dict[str, tuple[str, int] | None] = {}
        for path in (self.folder, *self.folder.rglob('*')):
            name = str(path.relative_to(self.folder))
            if path.is_dir():
                files[name] = None
            elif path.exists():
                about = path.stat()
                key = about.st_ino, about.st_size, about.st_mtime_ns
                known = self._digests.get(path)
                if known is None or known[0] != key:
                    known = self._digests[path] = key, self._kept(path.read_bytes())
                files[name] = known[1], about.st_mtime_ns
        return files

    def _counts(self, name: str) -> bool:
        return not (self.ignored and name.endswith(self.ignored))

    def _kept(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.contents[digest] = content
        return digest


# The process that is stopped ----------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


def _ptrace(request: int, pid: int, address: Any = None, data: Any = None) -> int:
    result = _libc.ptrace(
        ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), ctypes.c_void_p(data)
    )
    if result < 0 and request != _SYSCALL:  # what is dead does not go on
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _follow(call: Callable[[], Any], watch: _Watch, notes: Path) -> None:
    """Starts the program and stops it at its system calls, until it ends; then ends as it did."""
    watch.note('at the start')
    first = os.fork()
    if first == 0:
        _ptrace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        call()
        return
    os.waitpid(first, 0)
    _ptrace(_SETOPTIONS, first, None, _OPTIONS)
    known, inside = {first}, {}
    _ptrace(_SYSCALL, first)
    while True:
        pid, status = os.waitpid(-1, _ALL_CHILDREN)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if pid == first:
                break
            continue
        stop, send = os.WSTOPSIG(status), 0
        if stop == signal.SIGTRAP | 0x80:
            _at_call(pid, inside, watch)
        elif pid not in known:
            known.add(pid)
        elif not status >> 16:
            send = stop
        _ptrace(_SYSCALL, pid, None, send)
    watch.note('at the end')
    notes.write_bytes(pickle.dumps(watch))
    raise SystemExit(os.waitstatus_to_exitcode(status))


def _at_call(pid: int, inside: dict[int, tuple], watch: _Watch) -> None:
    info = (ctypes.c_uint64 * 11)()
    _ptrace(_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
    if info[0] & 0xFF == _ENTRY:
        name = _NAMES.get(info[3])
        operation = name and _operation(pid, name, info[4:10])
        if operation and any(map(watch.has, operation.paths)):
            watch.note(f'before {operation.name} {operation.paths[-1]}')
            inside[pid] = operation, _content(pid, operation, info[4:10])
    elif info[0] & 0xFF == _EXIT and pid in inside:
        operation, before = inside.pop(pid)
        count = ctypes.c_int64(info[3]).value
        if count < 0:
            return
        watch.operations.append(operation)
        content, place = before or (b'', 0)
        middle = (place + count // 2) // _PAGE * _PAGE  # a signal waits for the end of a page
        if before is not None and place < middle < place + count:
            after = Path(operation.paths[0]).read_bytes()
            half = after[:middle] + content[middle:]
            name = os.path.relpath(operation.paths[0], watch.folder)
            watch.note(f'within {operation.name} {operation.paths[0]}', **{name: half})
        watch.note(f'after {operation.name} {operation.paths[-1]}')


def _operation(pid: int, name: str, arguments: Sequence[int]) -> Operation | None:
    """What a call is about; None if it changes nothing."""
    if name in _OPENS and not arguments[_OPENS.index(name) + 1] & (
        os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    ):
        return None
    try:
        if name in _PATHS:
            paths = [_path(pid, arguments, *places) for places in _PATHS[name]]
        else:
            paths = [str(_open_file(pid, arguments[_WRITES.get(name, 0)]))]
    except OSError:
        return None
    return Operation(name, tuple(paths))


def _open_file(pid: int, number: int) -> Path:
    return Path(f'/proc/{pid}/fd/{_signed(number)}').readlink()


def _path(pid: int, arguments: Sequence[int], folder: int | None, text: int) -> str:
    here = folder is None or _signed(arguments[folder]) == _HERE
    start = Path(f'/proc/{pid}/cwd').readlink() if here else _open_file(pid, arguments[folder])
    with Path(f'/proc/{pid}/mem').open('rb', buffering=0) as memory:
        memory.seek(arguments[text])
        name = memory.read(4096).partition(b'\0')[0]
    return os.path.normpath(start / os.fsdecode(name))


def _content(pid: int, operation: Operation, arguments: Sequence[int]) -> tuple[bytes, int] | None:
    """What a file holds before a call writes to it, and where that will be."""
    if operation.name not in _WRITES:
        return None
    content = Path(operation.paths[0]).read_bytes()
    if operation.name in ('pwrite64', 'pwritev'):
        return content, arguments[3]
    number = _signed(arguments[_WRITES[operation.name]])
    about = dict(
        line.split(':', 1) for line in Path(f'/proc/{pid}/fdinfo/{number}').read_text().splitlines()
    )
    appends = int(about['flags'], 8) & os.O_APPEND
    return content, len(content) if appends else int(about['pos'])


def _signed(number: int) -> int:
    return struct.unpack('i', struct.pack('I', number & 0xFFFFFFFF))[0]
