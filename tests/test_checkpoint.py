"""Checkpoints are read without running code, and never loaded in part without a word."""

from __future__ import annotations

import codecs
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from mmkd_plugin.checkpoint import (
    CheckpointError,
    check_student_weights,
    distillation_state,
    load_weights,
    read_checkpoint,
    state_dict_of,
)
from tests.runs import Touch


class Model(nn.Module):
    """A backbone of some depth, a head for some classes and perhaps an auxiliary one."""

    def __init__(self, depth: int = 2, classes: int = 3, auxiliary: bool = True) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) for _ in range(depth)]
        self.backbone = nn.Sequential(*layers)
        self.decode_head = nn.Conv2d(4, classes, 1)
        if auxiliary:
            self.auxiliary_head = nn.Conv2d(4, classes, 1)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def save(content: object, name: str = 'file.pth', **kwargs: object) -> Path:
        torch.save(content, tmp_path / name, **kwargs)
        return tmp_path / name

    return save


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize('key', ['state_dict', 'model', None])
@pytest.mark.parametrize('zipped', [True, False])
def test_weights_are_found(key, zipped, save):
    model = Model()
    content = model.state_dict() if key is None else {key: model.state_dict(), 'meta': {}}
    path = save(content, _use_new_zipfile_serialization=zipped)
    other = Model()
    other.load_state_dict(state_dict_of(read_checkpoint(path)))
    assert equal(model, other)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    model, other = Model(), Model()
    safetensors.save_file(model.state_dict(), str(tmp_path / 'model.safetensors'))
    load_weights(other, tmp_path / 'model.safetensors')
    assert equal(model, other)


def test_schemes_go_through_mmengine(save):
    path = save(dict(state_dict=Model().state_dict()))
    seen = []

    def load(name, map_location):
        seen.append((name, map_location))
        return torch.load(path, map_location=map_location)

    CheckpointLoader.register_scheme('here://', loader=load, force=True)
    assert 'state_dict' in read_checkpoint('here://model')
    assert seen == [('here://model', 'cpu')]


def test_a_training_checkpoint_is_read(save):
    hub = dict(log_scalars=OrderedDict(loss=HistoryBuffer([1.0, 3.0], [1, 1])))
    path = save(dict(state_dict=Model().state_dict(), message_hub=hub))
    assert read_checkpoint(path)['message_hub']['log_scalars']['loss'].mean() == 2


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_file_is_refused_and_not_run(zipped, tmp_path, save):
    flag = tmp_path / 'flag'
    content = dict(state_dict=Model().state_dict(), bad=Touch(flag))
    path = save(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r'(?s)file\.pth.*posix\.system.*refused.*torch\.save'
    ):
        read_checkpoint(path)
    assert not flag.exists()


@pytest.mark.parametrize('protocol', [2, 4])
def test_a_plain_pickle_is_refused_and_not_run(protocol, tmp_path):
    flag, path = tmp_path / 'flag', tmp_path / 'file.pth'
    path.write_bytes(pickle.dumps(Touch(flag), protocol=protocol))
    with pytest.raises(CheckpointError, match=r'refused|cannot be loaded safely'):
        read_checkpoint(path)
    assert not flag.exists()


def test_a_whole_model_is_refused(save):
    with pytest.raises(CheckpointError, match=r'refused'):
        read_checkpoint(save(dict(state_dict=Model())))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kept', [0.05, 0.4, 0.98])
def test_a_truncated_file(zipped, kept, save):
    path = save(dict(state_dict=Model().state_dict()), _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    size = int(len(content) * kept)
    path.write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=f'truncated or corrupt: its {size} bytes'):
        read_checkpoint(path)


def test_a_changed_byte_of_a_weight_is_noticed(save):
    weights = Model().state_dict()
    path = save(dict(state_dict=weights))
    data = weights['decode_head.weight'].numpy().tobytes()
    changed = bytearray(data)
    changed[5] ^= 16
    path.write_bytes(path.read_bytes().replace(data, bytes(changed)))
    with pytest.raises(CheckpointError, match=r'damaged: the checksum of .*/data/\d+ in it'):
        read_checkpoint(path)


def test_a_compressed_file_is_not_read(save):
    path = save(dict(state_dict=Model().state_dict()))
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match='is compressed, as no file of'):
        read_checkpoint(path)


class Call:
    """Pickled as a call of a function that torch's loader allows."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize(
    'big',
    [
        Call(codecs.encode, b'1', 'hex'),
        Call(bytearray, 1 << 60),
        Call(np.ndarray, (1 << 33,)),
    ],
    ids=['encode', 'bytearray', 'ndarray'],
)
def test_calls_that_take_any_amount_of_memory_are_refused(big, save):
    with pytest.raises(CheckpointError, match='refused'):
        read_checkpoint(save(dict(state_dict=Model().state_dict(), big=big)))


def test_a_view_larger_than_its_file_is_refused(save):
    weights = dict(Model().state_dict(), x=torch.zeros(1).expand(1 << 20, 1 << 13))
    with pytest.raises(CheckpointError, match=r'x in it is .1048576, 8192., of which the file'):
        read_checkpoint(save(dict(state_dict=weights)))


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x * float('nan'), 'NaN or infinite'),
        (lambda x: x + float('inf'), 'NaN or infinite'),
        (lambda x: x.bool(), r'not floating-point .*backbone\.0\.0\.weight \(bool\)'),
        (lambda x: x.int(), r'backbone\.0\.0\.weight \(int32\)'),
        (lambda x: x.cfloat(), r'backbone\.0\.0\.weight \(complex64\)'),
    ],
    ids=['nan', 'inf', 'bool', 'int', 'complex'],
)
def test_weights_that_are_not_finite_numbers(change, message, strict, save):
    weights = {k: change(v) for k, v in Model().state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(Model(), save(weights), strict=strict)


def test_weights_of_another_precision_are_taken(save):
    model = Model()
    load_weights(model, save({k: v.half() for k, v in Model().state_dict().items()}))
    assert model.decode_head.weight.dtype == torch.float32


def test_a_truncated_safetensors_file(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'model.safetensors'
    safetensors.save_file(Model().state_dict(), str(path))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match='truncated or corrupt'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>Not found</html>', 'web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'git lfs pull'),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(content, message, tmp_path):
    path = tmp_path / 'file.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_a_missing_file_names_its_neighbours(tmp_path, save):
    save({}, 'pspnet_r101.pth')
    save({}, 'other.pth')
    with pytest.raises(FileNotFoundError, match=r'pspnet_r011\.pth.*there is pspnet_r101\.pth'):
        read_checkpoint(tmp_path / 'pspnet_r011.pth')
    with pytest.raises(FileNotFoundError, match=r'there is other\.pth, pspnet_r101\.pth'):
        read_checkpoint(tmp_path / 'x')
    with pytest.raises(FileNotFoundError, match=f'only {tmp_path} does'):
        read_checkpoint(tmp_path / 'no' / 'such' / 'file.pth')
    with pytest.raises(FileNotFoundError, match=r'Expected a path .*, or a URL$'):
        read_checkpoint(tmp_path / 'x')
    with pytest.raises(FileNotFoundError, match=r"^no checkpoint at 'a\\u202e'; nothing of the "):
        read_checkpoint('a\u202e')
    with pytest.raises(CheckpointError, match=r'is a folder.*other\.pth'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    'content, message',
    [
        (dict(meta={}, optimizer={}), "found the keys 'meta', 'optimizer'"),
        ({}, 'none at all'),
        (dict(state_dict={}), "found the keys 'state_dict'"),
        ([1, 2], 'holds a list'),
    ],
)
def test_a_file_without_weights(content, message, save):
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(save(content))


def test_an_unknown_model_of_the_zoo():
    with pytest.raises(CheckpointError, match=r'open-mmlab://nonesuch.*no such model'):
        read_checkpoint('open-mmlab://nonesuch')


def test_the_prefix_of_wrappers_goes_and_metadata_stays():
    model = Model()
    wrapped = nn.Module()
    wrapped.module = model
    weights = state_dict_of(dict(state_dict=wrapped.state_dict()))
    assert list(weights) == list(model.state_dict())
    assert weights._metadata == model.state_dict()._metadata
    assert distillation_state(weights) is None
    weights._metadata['']['mmkd'] = dict(version=1, state={})
    assert distillation_state(state_dict_of(weights)) == dict(version=1, state={})


# --- loading ----------------------------------------------------------------------------------


def test_all_of_a_model(save, log):
    model, other = Model(), Model()
    load_weights(other, save(dict(state_dict=model.state_dict())))
    assert equal(model, other)
    (message,) = log.messages
    assert 'all 16 tensors' in message and not log.warnings


def test_a_missing_batch_counter_does_not_count(save):
    model, other = Model(), Model()
    weights = {k: v for k, v in model.state_dict().items() if 'num_batches' not in k}
    load_weights(other, save(dict(state_dict=weights)))
    assert equal(model, other)


def test_components_that_the_model_lacks_are_only_logged(save, log):
    load_weights(Model(auxiliary=False), save(dict(state_dict=Model().state_dict())))
    (message,) = log.messages
    assert 'auxiliary_head.*' in message and not log.warnings


@pytest.mark.parametrize(
    'source, facts',
    [
        (
            Model(classes=5),
            [
                '12 of 16 tensors (75 %)',
                'decode_head.weight: ([5, 4, 1, 1]) in the file, ([3, 4, 1, 1]) in the model',
            ],
        ),
        (Model(depth=1), ['10 of 16 tensors (62.5 %)', 'missing in the file: backbone.1.0.weight']),
        (Model(depth=3), ['16 of 16 tensors (100 %)', 'another architecture: backbone.2.0.weight']),
        (Model(auxiliary=False), ['14 of 16', 'auxiliary_head.weight, auxiliary_head.bias']),
    ],
    ids=['classes', 'shallower', 'deeper', 'a component less'],
)
def test_what_does_not_fit_is_an_error_or_with_strict_off_a_warning(source, facts, save, log):
    path = save(dict(state_dict=source.state_dict()))
    with pytest.raises(ValueError) as error:
        load_weights(Model(), path, name='coach')
    for fact in (*facts, f'{path} does not fit the coach', '`strict=False` accepts it'):
        assert fact in str(error.value)
    assert not log.messages

    load_weights(Model(), path, strict=False, name='coach')
    (warning,) = log.warnings
    assert log.messages == [warning]
    for fact in facts:
        assert fact in warning


def test_long_lists_are_cut(save):
    with pytest.raises(ValueError, match=r'backbone\.11\.1\.bias and \d+ more') as error:
        load_weights(Model(depth=30), save(dict(state_dict=Model(depth=10).state_dict())))
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize('strict', [True, False])
def test_nothing_in_common_is_always_an_error(strict, save):
    weights = {f'other.{k}': v.new_ones(7) for k, v in Model().state_dict().items()}
    with pytest.raises(ValueError, match=r'(?s)nothing in common with the teacher.*other\.\*'):
        load_weights(Model(), save(dict(state_dict=weights)), strict=strict)


@pytest.mark.parametrize(
    'prefix',
    ['architecture.', 'architecture.model.', 'distiller.teacher.', 'model.', 'ema_', '_orig_mod.'],
)
def test_a_model_is_found_behind_any_prefix(prefix, save, log):
    teacher, other = Model(), Model(depth=3)
    weights = {f'other.{k}': v for k, v in other.state_dict().items()}
    weights |= {prefix + k: v for k, v in teacher.state_dict().items()}
    model = Model()
    load_weights(model, save(dict(state_dict=weights)))
    assert equal(model, teacher)
    place = '' if prefix == '_orig_mod.' else f', behind the prefix `{prefix}`'
    assert f'all 16 tensors{place}.' in log.messages[0]


def test_of_two_models_that_fit_one_has_to_be_chosen(save, tmp_path):
    teacher, student = Model(), Model()
    weights = {f'teacher.{k}': v for k, v in teacher.state_dict().items()}
    weights |= {f'student.{k}': v for k, v in student.state_dict().items()}
    path = save(dict(state_dict=weights))
    with pytest.raises(CheckpointError, match='holds 2 models that fit the teacher') as error:
        load_weights(Model(), path)
    line = str(error.value).partition('saving it alone: ')[2]
    subprocess.run(line.replace('python', sys.executable, 1), shell=True, cwd=tmp_path, check=True)
    model = Model()
    load_weights(model, tmp_path / 'weights.pth')
    assert equal(model, teacher)


def test_the_nearest_part_of_another_model_is_named(save):
    weights = {f'net.{k}': v for k, v in Model(depth=3).state_dict().items()}
    with pytest.raises(CheckpointError, match=r'of its tensors fit behind the prefix `net\.`'):
        load_weights(Model(), save(dict(state_dict=weights)))


def test_a_backbone_alone_is_recognised(save):
    backbone = Model().backbone.state_dict()
    with pytest.raises(ValueError, match='keys are those of a backbone alone'):
        load_weights(Model(), save(dict(state_dict=backbone)))
    backbone = {f'backbone.{k}': v for k, v in backbone.items()}
    with pytest.raises(ValueError, match='holds a backbone alone'):
        load_weights(Model(), save(dict(state_dict=backbone)))


class Renamed(nn.Module):
    """Version 2 of a module whose weight had another name before."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get('version', 1) < 2:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}kernel')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize('wrapped', [False, True])
def test_checkpoints_of_older_versions_are_converted(wrapped, save):
    model, start = nn.Sequential(Renamed()), 'module.' if wrapped else ''
    old = OrderedDict({f'{start}0.kernel': torch.ones(3)})
    old._metadata = OrderedDict({f'{start}0': dict(version=1)})
    load_weights(model, save(dict(state_dict=old)))
    assert model[0].weight.tolist() == [1, 1, 1]
    new = OrderedDict({f'{start}0.weight': torch.full((3,), 2.0)})
    new._metadata = OrderedDict({f'{start}0': dict(version=2)})
    load_weights(model, save(dict(state_dict=new)))
    assert model[0].weight.tolist() == [2, 2, 2]


def test_a_resnet101_is_no_resnet50(save):
    resnet = pytest.importorskip('mmseg.models.backbones').ResNetV1c

    def build(depth: int) -> nn.Module:
        model = nn.Module()
        model.backbone = resnet(depth=depth, base_channels=8, stem_channels=8)
        return model

    deep = save(dict(state_dict=build(101).state_dict()))
    message = r'\(100 %\)(?s:.*)another architecture: backbone\.layer3\.6\.conv1\.weight'
    with pytest.raises(ValueError, match=message):
        load_weights(build(50), deep)
    load_weights(build(101), deep)
    load_weights(build(50), deep, strict=False)


# --- a student's start ------------------------------------------------------------------------


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize('distilled', [False, True])
@pytest.mark.parametrize('other', [Model(), Model(classes=5), Model(auxiliary=False)])
def test_weights_that_a_student_may_start_from(other, distilled):
    check_student_weights(shapes(Model()), other.state_dict(), distilled)


def test_a_backbone_is_a_start_but_no_distilled_student():
    few = {k: v for k, v in Model().state_dict().items() if k.startswith('backbone.0')}
    check_student_weights(shapes(Model()), few, distilled=False)
    with pytest.raises(ValueError, match='distilled checkpoint of another student: 6 of the'):
        check_student_weights(shapes(Model()), few, distilled=True)


def test_the_distilled_checkpoint_of_a_deeper_student():
    with pytest.raises(ValueError, match='distilled checkpoint of another student: 16 of the'):
        check_student_weights(shapes(Model()), Model(depth=9).state_dict(), distilled=True)


@pytest.mark.parametrize('distilled', [False, True])
def test_nothing_of_the_student(distilled):
    weights = {f'architecture.{k}': v for k, v in Model().state_dict().items()}
    with pytest.raises(ValueError, match='0 of the student') as error:
        check_student_weights(shapes(Model()), weights, distilled)
    assert distilled or 'prefix `architecture.`' in str(error.value)


def test_messages_reach_the_logger(save, capsys):
    MMLogger.get_instance('test_checkpoint')
    load_weights(Model(), save(dict(state_dict=Model().state_dict())))
    assert 'Loaded the teacher' in ''.join(capsys.readouterr())
