"""Odd and damaged checkpoints: read whole, or one message says what is wrong; no code runs."""

from __future__ import annotations

import io
import pickle
import re
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mmkd_plugin.cache.records import digest, libraries, unpack
from mmkd_plugin.cache.store import CacheError
from mmkd_plugin.checkpoint import CheckpointError, load_weights, read_checkpoint
from mmkd_plugin.stack import safe_loading
from tests.attacks.harness import fork


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(one=nn.Linear(4, 4), two=nn.BatchNorm1d(4)))


def state(**changes: Any) -> dict:
    return dict(model().state_dict(), **changes)


W = 'one.weight'
NAN, INF = float('nan'), float('inf')

#: What is saved, and whether it is a whole checkpoint all the same.
CONTENTS: dict[str, tuple[Callable[[], Any], bool]] = {
    'a state dict': (lambda: state(), True),
    'under state_dict': (lambda: dict(state_dict=state()), True),
    'under model': (lambda: dict(model=state()), True),
    'with module in front': (lambda: {f'module.{k}': v for k, v in state().items()}, True),
    'with meta of other kinds': (lambda: dict(state_dict=state(), meta=5, optimizer='x'), True),
    'half precision': (lambda: {k: v.half() if v.dim() else v for k, v in state().items()}, True),
    'a Parameter': (lambda: state(**{W: nn.Parameter(torch.zeros(4, 4))}), True),
    'a transposed view': (lambda: state(**{W: torch.zeros(4, 4).t()}), True),
    'None': (lambda: None, False),
    'a number': (lambda: 5, False),
    'text': (lambda: 'weights', False),
    'a list': (lambda: [torch.zeros(2)], False),
    'a tensor': (lambda: torch.zeros(2), False),
    'an empty dict': (dict, False),
    'state_dict is None': (lambda: dict(state_dict=None), False),
    'state_dict is a number': (lambda: dict(state_dict=5), False),
    'state_dict is empty': (lambda: dict(state_dict={}), False),
    'state_dict in itself': (lambda: dict(state_dict=dict(state_dict=state())), False),
    'keys are numbers': (lambda: {1: torch.zeros(2)}, False),
    'keys are tuples': (lambda: {('a', 'b'): torch.zeros(2)}, False),
    'keys are None': (lambda: {None: torch.zeros(2)}, False),
    'keys are bytes': (lambda: dict(state_dict={b'x': torch.zeros(2)}), False),
    'one key is a number': (lambda: {**state(), 5: torch.zeros(2)}, False),
    'a prefix': (lambda: {f'x.{k}': v for k, v in state().items()}, True),
    'other names': (lambda: {f'{k}.x': v for k, v in state().items()}, False),
    'other case': (lambda: {k.upper(): v for k, v in state().items()}, False),
    'a weight less': (lambda: {k: v for k, v in state().items() if k != W}, False),
    'a weight more': (lambda: state(**{'one.more': torch.zeros(2)}), False),
    'a weight of another shape': (lambda: state(**{W: torch.zeros(5, 4)}), False),
    'a weight flat': (lambda: state(**{W: torch.zeros(16)}), False),
    'a weight of no size': (lambda: state(**{W: torch.zeros(0)}), False),
    'a weight is a number': (lambda: state(**{W: 5.0}), False),
    'a weight is a list': (lambda: state(**{W: [[0.0]]}), False),
    'a weight is None': (lambda: state(**{W: None}), False),
    'a weight is NaN': (lambda: state(**{W: torch.full((4, 4), NAN)}), False),
    'a weight is infinite': (lambda: state(**{W: torch.full((4, 4), INF)}), False),
    'one value is NaN': (lambda: state(**{W: torch.tensor([[0.0] * 4] * 3 + [[NAN] * 4])}), False),
    'a statistic is NaN': (lambda: state(**{'two.running_var': torch.full((4,), NAN)}), False),
    'a weight of ints': (lambda: state(**{W: torch.zeros(4, 4, dtype=torch.long)}), False),
    'a weight of bools': (lambda: state(**{W: torch.zeros(4, 4, dtype=torch.bool)}), False),
    'a complex weight': (lambda: state(**{W: torch.zeros(4, 4, dtype=torch.cfloat)}), False),
    'a sparse weight': (lambda: state(**{W: torch.zeros(4, 4).to_sparse()}), False),
    'a meta weight': (lambda: state(**{W: torch.zeros(4, 4, device='meta')}), False),
    'a huge view': (lambda: state(more=torch.zeros(1).expand(1 << 20, 1 << 13)), False),
    'all is empty': (lambda: {k: torch.zeros(0) for k in state()}, False),
    'a whole model': (model, False),
    'a numpy array': (lambda: state(**{W: np.zeros((4, 4), np.float32)}), False),
}
METADATA = [5, 'x', [], {'': 5}, {'': {'mmkd': 5}}, {'': {'mmkd': {}}}, {'one': None}, {5: {}}]
METADATA += [{'': {'mmkd': dict(version=99)}}, {'': {'mmkd': dict(version=1, state=5)}}]


def outcome(file: Path) -> str:
    """How loading a file ends: ``whole``, ``refused`` with a reason, or an error as it is."""
    try:
        with safe_loading():
            load_weights(model(), file)
    except (CheckpointError, FileNotFoundError) as error:
        return 'refused' if str(file) in str(error) or 'it' in str(error) else f'no name: {error}'
    except Exception as error:
        return f'raw {type(error).__name__}: {error}'
    return 'whole'


@pytest.mark.parametrize('name', CONTENTS)
@pytest.mark.parametrize('zipped', [True, False])
def test_contents(name: str, zipped: bool, tmp_path: Path) -> None:
    content, whole = CONTENTS[name]
    file = tmp_path / 'x.pth'
    torch.save(content(), file, _use_new_zipfile_serialization=zipped)
    assert outcome(file) == ('whole' if whole else 'refused')


@pytest.mark.parametrize('metadata', METADATA, ids=repr)
def test_metadata(metadata: Any, tmp_path: Path) -> None:
    file, weights = tmp_path / 'x.pth', OrderedDict(state())
    weights._metadata = metadata
    torch.save(weights, file)
    assert outcome(file) in ('whole', 'refused')


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def bombs() -> dict[str, Callable[[Path], Any]]:
    import codecs
    import os
    import subprocess

    return {
        'eval': lambda f: Call(eval, f'open({str(f)!r}, "w")'),
        'exec': lambda f: Call(exec, f'open({str(f)!r}, "w")'),
        'os.system': lambda f: Call(os.system, f'touch {f}'),
        'subprocess': lambda f: Call(subprocess.call, ['touch', str(f)]),
        'open': lambda f: Call(open, str(f), 'w'),
        'getattr': lambda f: Call(getattr, Call(__import__, 'os'), 'system'),
        'import': lambda f: Call(__import__, 'os'),
        'torch.load': lambda f: Call(torch.load, str(f)),
        'encode': lambda f: Call(codecs.encode, Call(codecs.encode, 'a' * 999, 'hex'), 'hex'),
        'bytearray': lambda f: Call(bytearray, 1 << 60),
        'bytearray of a GB': lambda f: Call(bytearray, 1 << 31),
        'ndarray': lambda f: Call(np.ndarray, (1 << 33,)),
        'zeros': lambda f: Call(torch.zeros, 1 << 40),
        'a list of lists': lambda f: Call(list, range(1 << 40)),
        'range': lambda f: Call(range, 5),
    }


@pytest.mark.parametrize('name', bombs())
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('place', ['alone', 'meta', 'weight'])
def test_code_and_bombs(name: str, zipped: bool, place: str, tmp_path: Path) -> None:
    file, canary = tmp_path / 'x.pth', tmp_path / 'canary'
    bomb = bombs()[name](canary)
    content = {
        'alone': bomb, 'meta': dict(state_dict=state(), meta=bomb), 'weight': state(**{W: bomb}),
    }[place]  # fmt: skip
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert outcome(file) == 'refused'
    assert not canary.exists()


def tar(file: Path) -> None:
    with tarfile.open(file, 'w') as out:
        out.addfile(tarfile.TarInfo('x'), io.BytesIO())


FILES: dict[str, Callable[[Path], Any]] = {
    'empty': lambda f: f.write_bytes(b''),
    'zeros': lambda f: f.write_bytes(bytes(5000)),
    'text': lambda f: f.write_text('weights'),
    'html': lambda f: f.write_text('<!DOCTYPE html><html>404</html>'),
    'a pointer of LFS': lambda f: f.write_text('version https://git-lfs.github.com/spec/v1\n'),
    'a pickle of protocol 5': lambda f: f.write_bytes(pickle.dumps({'a': 1}, 5)),
    'a pickle of protocol 0': lambda f: f.write_bytes(pickle.dumps({'a': 1}, 0)),
    'an end': lambda f: f.write_bytes(b'PK\x05\x06' + bytes(18)),
    'a zip of nothing': lambda f: zipfile.ZipFile(f, 'w').close(),
    'a zip of text': lambda f: zipfile.ZipFile(f, 'w').writestr('a.txt', 'a'),
    'a tar': tar,
    'a folder': lambda f: f.mkdir(),
    'a loop': lambda f: f.symlink_to(f),
    'a link to nowhere': lambda f: f.symlink_to('nothing'),
    'a device': lambda f: f.symlink_to('/dev/null'),
    'JSON': lambda f: f.write_text('{"state_dict": {}}'),
    'an image': lambda f: f.write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(99)),
}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('name', FILES)
def test_files_that_are_none(name: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f'x{suffix}'
    FILES[name](file)
    assert outcome(file) == 'refused'


def headers(content: bytes) -> set[int]:
    """Where the parts of a file begin, and a byte behind."""
    starts = {8, 8 + int.from_bytes(content[:8], 'little')}  # of safetensors
    starts |= {found.start() for found in re.finditer(rb'PK(\x01\x02|\x03\x04|\x05\x06)', content)}
    starts |= {found.end() for found in re.finditer(rb'data\.pkl|version|\.data/', content)}
    return {at for start in starts for at in (start, start + 1) if 0 < at < len(content)}


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors', 'old'])
def test_cut_and_changed(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / ('x.pth' if suffix == 'old' else f'x{suffix}')
    if suffix == '.safetensors':
        pytest.importorskip('safetensors.torch').save_file(state(), file)
    else:
        torch.save(state(), file, _use_new_zipfile_serialization=suffix != 'old')
    whole, draw, faults = file.read_bytes(), np.random.default_rng(0), []
    for length in sorted({*np.linspace(0, len(whole) - 1, 25).astype(int), *headers(whole)}):
        file.write_bytes(whole[:length])
        end = outcome(file)
        faults += [f'cut at {length}: {end}'] if end != 'refused' else []
    for place in draw.choice(len(whole), 100, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(draw.integers(8))
        file.write_bytes(changed)
        end = outcome(file)
        faults += [f'byte {place}: {end}'] if end not in ('whole', 'refused') else []
    assert not faults


GB = 2**30
ZEROS = bytes(2**20)


def deflated(file: Path) -> None:
    """A file like those of ``torch.save`` whose pickle is a GB of zeros."""
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        out.writestr('x/version', '3')
        with out.open('x/data.pkl', 'w') as stream:
            for _ in range(GB // len(ZEROS)):
                stream.write(ZEROS)


def frame(said: int) -> bytes:
    """A frame of zstandard with a GB of zeros, which says another size."""
    packer = libraries()[1].ZstdCompressor().compressobj(size=GB)
    parts = [packer.compress(ZEROS) for _ in range(GB // len(ZEROS))]
    body, size = b''.join(parts) + packer.flush(), struct.pack('<I', GB)
    assert body[:12].count(size) == 1
    return body.replace(size, struct.pack('<I', said), 1)


def record(body: bytes) -> bytes:
    """A record of a cache with the right checksum."""
    return digest(b'x', body) + body


def test_a_reader_keeps_its_memory(tmp_path: Path) -> None:
    """All bombs, read in one process that may take no more than half a GB beyond what it has."""
    import resource

    deflated(tmp_path / 'deflated.pth')
    frames = [record(frame(said)) for said in (GB + 1, 1000)]
    assert sum(map(len, frames)) < 2**20 and (tmp_path / 'deflated.pth').stat().st_size < 2**23

    def read_all() -> None:
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GB // 2, used + GB // 2))
        with pytest.raises(MemoryError):
            bytes(GB)  # else the rest would prove nothing
        for name, bomb in bombs().items():
            file = tmp_path / f'{name}.pth'
            torch.save(bomb(tmp_path / 'canary'), file)
            with pytest.raises(CheckpointError), safe_loading():
                read_checkpoint(file)
        with pytest.raises(CheckpointError, match=r'deflated\.pth is compressed'):
            read_checkpoint(tmp_path / 'deflated.pth')
        for one in frames:
            with pytest.raises(CacheError, match=r'it says that it has|it cannot be read'):
                unpack(one, b'x')

    ending = fork(read_all, tmp_path)
    assert ending.status == 0, ending.log
