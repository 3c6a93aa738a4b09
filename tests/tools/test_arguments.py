"""Arguments of the tools that cannot be used: one line each, before anything is written."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from mmkd_plugin.cli import (
    UsageError,
    add_cfg_options,
    apply_options,
    check_file,
    check_folder,
    check_number,
)
from tests.tools.tool_runs import load_tool


@pytest.mark.parametrize(
    ('tool', 'arguments', 'words'),
    [
        ('train', ['--work-dir', '{file}'], '--work-dir {file}: {file} is a file; a folder is'),
        ('train', ['--work-dir', '{file}/run'], '{file} is a file; a folder is needed'),
        ('train', ['--cfg-options', 'nonsense'], '--cfg-options takes KEY=VALUE, such as'),
        (
            'train',
            ['--cfg-options', "custom_hooks=[dict(type='EMAHook')]"],
            'custom_hooks takes numbers, words and lists of these, no dict: write it into a config',
        ),
        (
            'train',
            ['--cfg-options', "val_evaluator=dict(type='A')"],
            'no dict: set val_evaluator.type=NAME and so on, or write it into a config file',
        ),
        ('train', ['--cfg-options', '=5'], '--cfg-options takes KEY=VALUE, such as model.key=1'),
        ('train', ['--cfg-options', 'model..x=5'], '--cfg-options takes KEY=VALUE'),
        ('train', ['--cfg-options', 'model.type.x=5'], '`model.type.x` cannot be set'),
        ('train', ['--allow-changes'], '--allow-changes is for a run that goes on; add --resume'),
        ('train', ['--launcher', 'pytorch'], '--launcher pytorch, but no such launcher started'),
        (
            'train',
            ['--cfg-options', 'optim_wrapper.type=AmpOptimWrapper'],
            'which needs an accelerator, and there is none: --cfg-options '
            'optim_wrapper.type=OptimWrapper',
        ),
        (
            'train',
            [
                '--cfg-options',
                'optim_wrapper.type=AmpOptimWrapper',
                'optim_wrapper.dtype=bfloat16',
                'optim_wrapper.loss_scale=dynamic',
            ],
            "write type='OptimWrapper' in the config, and leave out dtype and loss_scale",
        ),
        ('test', ['x.pth', '--out', '{file}'], '{file} is a file; a folder is needed'),
        ('test', ['x.pth', '--show-dir', '{file}'], '--show-dir {file}: {file} is a file'),
        ('test', ['x.pth', '--wait-time', '-1'], '--wait-time must be at least 0, not -1'),
        ('cache_teacher', ['--scale', '0,0'], '--scale is WIDTH,HEIGHT in pixels, not 0,0'),
        ('cache_teacher', ['--scale=-5,5'], '--scale is WIDTH,HEIGHT in pixels, not -5,5'),
        ('cache_teacher', ['--scale', '64'], '--scale is WIDTH,HEIGHT in pixels, not 64'),
        ('cache_teacher', ['--workers', '-1'], '--workers must be at least 0, not -1'),
        ('cache_teacher', ['--top-k', '0'], '--top-k must be at least 1, not 0'),
        ('cache_teacher', ['--out', '{file}'], '--out {file}: {file} is a file'),
        ('fit_connector', ['--work-dir', '{file}'], '--work-dir {file}: {file} is a file'),
        ('visualize', ['x.pth', '--out', '{file}'], '{file} is a file'),
        ('report', [], 'there is no folder'),
        ('report', ['--alone', 'nan'], '--alone must be at least 0, not nan'),
        ('report', ['--out', '{file}'], '--out {file}: expected a file that ends with .html'),
    ],
)
def test_one_line_says_what_is_wrong(
    tool: str,
    arguments: list[str],
    words: str,
    fails: Callable[..., str],
    segmentation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / 'notes.txt'
    file.write_text('kept')
    message = fails(
        tool, segmentation / 'distilled.py', *(text.format(file=file) for text in arguments)
    )
    assert words.format(file=file) in message and '\n' not in message
    assert file.read_text() == 'kept' and list(tmp_path.iterdir()) == [file]


#: What is typed, and a part of the line that it gets; ``S`` is the folder of the configs.
TYPED = {
    'train': 'give a config, or --replay DIR',
    'train S/student.py --replay x': 'give a config, or --replay DIR',
    'train --replay nowhere': '--replay nowhere: no step was saved there',
    'train --replay full': '--replay full: no step was saved there',
    'train S/student.py extra': 'unrecognized arguments: extra',
    'train S/teacher.pth': 'teacher.pth is no config: it must end with .py',
    'train mmseg::nowhere.py': 'no config at mmseg::nowhere.py',
    'train nolib::x.py': 'nolib::x.py: no library `nolib` is installed',
    'train math::x.py': 'math::x.py: `math` is a single module and has no configs',
    'train S/student.py --cfg-options default_scope=mmsge': '`mmsge` is installed; did you mean',
    'train S/student.py --launcher x': "argument --launcher: invalid choice: 'x'",
    'train S/student.py --local-rank x': "invalid int value: 'x'",
    'train S/student.py --work-dir ""': '--work-dir is empty; it takes a folder',
    'train S/student.py --paraphraser': 'no term of `distill` has a `teacher_connector`',
    'train S/student.py --auto-scale-lr': '--auto-scale-lr needs `auto_scale_lr=dict(base_',
    'test S/student.py': 'the following arguments are required: checkpoint',
    'test S/student.py nowhere.pth': 'no checkpoint at nowhere.pth',
    'test S/student.py notes.txt': 'notes.txt (4 bytes) is not a checkpoint',
    'test S/student.py S/teacher.pth --tta --cfg-options tta_model=None': '--tta needs `tta_model`',
    'test S/student.py S/teacher.pth --wait-time nan': '--wait-time must be at least 0, not nan',
    'distill S/student.py S/teacher.py': 'the following arguments are required: checkpoint',
    'distill S/student.py S/teacher.py nowhere.pth': 'no checkpoint at nowhere.pth',
    'distill nowhere.py S/teacher.py S/teacher.pth': 'no config at nowhere.py',
    'distill S/student.py nowhere.py S/teacher.pth': 'no config at nowhere.py',
    'distill S/distilled.py S/teacher.py S/teacher.pth': 'distilled.py is distilled already',
    'distill S/student.py S/teacher.py S/teacher.pth --work-dir notes.txt': 'is a file; a folder',
    'cache_teacher S/distilled.py': 'say where: --out PATH',
    'cache_teacher S/student.py --out c': 'student.py distils nothing: its model is no Distiller',
    'cache_teacher S/distilled.py --out c --teacher x': 'there is no --teacher x; those that can',
    'cache_teacher S/distilled.py --out c --dtype x': "argument --dtype: invalid choice: 'x'",
    'cache_teacher S/distilled.py --out c --views 0': '--views must be at least 1, not 0',
    'cache_teacher S/distilled.py --out c --channels 0': '--channels must be at least 1, not 0',
    'cache_teacher S/distilled.py --out c --views 2 --mirrored': '--mirrored is for whole images',
    'cache_teacher S/distilled.py --out c --verify': 'no teacher cache at c; write it with',
    'cache_teacher S/distilled.py --out c --cfg-options model.distill=5': 'distill has no term',
    'export_student S/student.py S/teacher.pth': 'arguments are required: out',
    'export_student S/student.py S/teacher.pth x.txt': 'x.txt must end with .pth or .safetensors',
    'export_student S/student.py nowhere.pth x.pth': 'no checkpoint at nowhere.pth',
    'export_student S/student.py S/teacher.pth notes.txt/x.pth': 'notes.txt is a file; a folder is',
    'export_student S/student.py S/teacher.pth S/teacher.pth': 'exists already; it is not overwr',
    'export_onnx S/student.py S/teacher.pth': 'arguments are required: out',
    'export_onnx S/student.py S/teacher.pth x.pth': 'x.pth must end with .onnx',
    'export_onnx S/student.py S/teacher.pth x.onnx --size 1': '--size: expected 2 arguments',
    'fit_connector nowhere.py': 'no config at nowhere.py',
    'fit_connector S/student.py': 'student.py distils nothing: its model is no Distiller',
    'fit_connector S/distilled.py --images 0': '--images must be at least 1, not 0',
    'fit_connector S/distilled.py --images x': "argument --images: invalid int value: 'x'",
    'from_mmrazor nowhere.py': 'there is no file nowhere.py',
    'from_mmrazor S/student.py': "model.type='EncoderDecoder': expected SingleTeacherDistill",
    'from_mmrazor S/teacher.pth': 'say where the weights go: from_mmrazor.py CHECKPOINT OUT.pth',
    'from_mmrazor S/teacher.pth x.pth': 'has no student: none of its keys begins with',
    'from_mmrazor S/teacher.pth notes.txt': 'notes.txt exists already; nothing is overwritten',
    'from_mmrazor S/teacher.pth notes.txt/x': 'notes.txt is a file; a folder is needed',
    'from_mmrazor S/teacher.pth x.pth --part both': "argument --part: invalid choice: 'both'",
    'visualize S/distilled.py S/teacher.pth': 'the following arguments are required: --out',
    'visualize S/distilled.py nowhere.pth --out v': 'no checkpoint at nowhere.pth',
    'visualize S/distilled.py x.pth --out full': 'full exists already; nothing is overwritten',
    'visualize S/distilled.py x.pth --out v --count 0': '--count must be at least 1, not 0',
    'visualize S/distilled.py x.pth --out v --channels 0': '--channels must be at least 1, not 0',
    'visualize S/distilled.py x.pth --out v --score-thr 2': '--score-thr must be from 0 to 1',
    'visualize S/distilled.py x.pth --out v --panels x': "there is no panel 'x'",
    'visualize S/distilled.py x.pth --out v --device x': '--device x cannot be used',
    'visualize S/distilled.py x.pth --out v --device meta': '--device meta cannot be used',
    'visualize S/distilled.py x.pth --out v --images nowhere.png': 'no image at nowhere.png',
    'visualize S/distilled.py x.pth --out v --images full': 'no image in full',
    'export_onnx S/student.py S/teacher.pth x.onnx --cfg-options a=1': 'unrecognized arguments',
    'visualize S/distilled.py x.pth --out v --teacher x': '--teacher: expected 2 arguments',
    'report': 'the following arguments are required: WORK_DIR',
    'report nowhere': 'there is no folder nowhere; expected a work dir of tools/train.py',
    'report full': 'full is not the work dir of a run',
    'report full --alone x': "argument --alone: invalid float value: 'x'",
    'report full --out x.txt': '--out x.txt: expected a file that ends with .html',
    'reproduce --jobs 0': '--jobs must be at least 1, not 0',
    'reproduce --seeds x': "argument --seeds: invalid int value: 'x'",
    'reproduce --seeds 0': '--seeds must be at least 1, not 0',
    'reproduce --weights auto:0': 'auto:0 is neither a weight above 0',
    'reproduce --weights nan': 'nan is neither a weight above 0',
    'reproduce --weights 1 --no-trials': '--weights has no trials; leave --no-trials out',
    'reproduce --gpus 0 --jobs 1': 'argument --jobs: not allowed with argument --gpus',
    'reproduce --gpus -1': '--gpus must be at least 0, not -1',
    'reproduce --work-dir notes.txt': 'notes.txt is a file; a folder is needed',
    'reproduce --results full': '--results full is a folder; a file is needed',
    'reproduce --results notes.txt --report': 'notes.txt, line 1 is no finished run: ',
    'demo --task x': "argument --task: invalid choice: 'x'",
    'demo --seed -1': '--seed must be from 0 to 4.29497e+09, not -1',
    'demo --work-dir notes.txt': 'notes.txt is a file; a folder is needed',
    'zoo_sweep --per-family 0': '--per-family must be at least 1, not 0',
    'zoo_sweep --jobs 0': '--jobs must be at least 1, not 0',
    'zoo_sweep --seconds nan': '--seconds must be at least 1, not nan',
    'zoo_sweep --megabytes 1': '--megabytes must be at least 100, not 1',
    'zoo_sweep --again x': "argument --again: invalid choice: 'x'",
    'zoo_sweep --results full': '--results full is a folder; a file is needed',
    'zoo_sweep --logs notes.txt': '--logs notes.txt: ',
    'zoo_sweep --results notes.txt --report': 'notes.txt, line 1 is no outcome: ',
    'make_metafiles extra': 'unrecognized arguments: extra',
    'make_digit_scenes --train 0': '--train must be at least 1, not 0',
    'make_digit_scenes --size 1': '--size must be at least 64, not 1',
    'make_digit_scenes --size 99999 --out s': '--size must be at most',
    'make_digit_scenes --seed -1': '--seed must be at least 0, not -1',
    'make_digit_scenes --out notes.txt': 'notes.txt is a file; choose another --out',
    'make_digit_scenes --out full': "full holds something else ('x') and is left alone",
    'dataset_converters/camvid nowhere': 'nowhere is not there; CamVid is a folder',
    'dataset_converters/camvid full': 'full is not CamVid: it has no train',
    'dataset_converters/camvid full --size 0x0': '--size: WIDTHxHEIGHT in pixels, not 0x0',
    'dataset_converters/bccd notes.txt': 'notes.txt is a file; BCCD is a folder',
    'dataset_converters/bccd full': 'full is not BCCD: it has no',
    'dataset_converters/bccd full --size 1': 'argument --size: WIDTHxHEIGHT in pixels, not 1',
}


@pytest.mark.parametrize('typed', TYPED)
def test_each_tool_says_in_one_line_what_is_wrong(
    typed: str,
    segmentation: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'full').mkdir()
    for file in ('notes.txt', 'full/x'):
        (tmp_path / file).write_text('kept')
    tool, *arguments = (text.replace('S/', f'{segmentation}/') for text in shlex.split(typed))
    monkeypatch.setattr(sys, 'argv', [f'{Path(tool).name}.py', *arguments])
    monkeypatch.setenv('LOCAL_RANK', '0')
    with pytest.raises(SystemExit) as caught:
        sys.exit(load_tool(tool).main())
    code = caught.value.code
    lines = code if isinstance(code, str) else capsys.readouterr().err.strip().splitlines()[-1]
    assert code not in (0, None) and TYPED[typed] in lines and '\n' not in lines
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['full', 'notes.txt', 'x']
    assert (tmp_path / 'notes.txt').read_text() == (tmp_path / 'full/x').read_text() == 'kept'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is an accelerator')
@pytest.mark.parametrize('tool', ['train', 'distill'])
def test_processes_of_a_launcher_need_accelerators(
    tool: str, fails: Callable[..., str], segmentation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, '1')
    names = ['distilled.py'] if tool == 'train' else ['student.py', 'teacher.py', 'teacher.pth']
    message = fails(tool, *(segmentation / name for name in names), '--launcher', 'pytorch')
    assert 'gives each process an accelerator, and there is none' in message


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('x = 5\n', 'has no `model`, which this tool needs'),
        ('model = dict(\n', 'cannot be read: '),
    ],
)
def test_files_that_are_not_configs(text: str, words: str, fails, tmp_path: Path) -> None:
    config = tmp_path / 'config.py'
    config.write_text(text)
    assert words in fails('train', config, '--work-dir', tmp_path / 'run')


def test_a_file_of_another_kind_is_not_a_config(fails, tmp_path: Path) -> None:
    picture = tmp_path / 'config.png'
    picture.write_bytes(b'png')
    assert 'it must end with .py, .json, .yaml or .yml' in fails('train', picture)


def test_the_place_for_a_folder_or_a_file(tmp_path: Path) -> None:
    check_folder(tmp_path / 'new' / 'deeper', '--out')
    check_file(tmp_path / 'new' / 'out.pkl', '--out')
    assert not (tmp_path / 'new').exists()
    with pytest.raises(UsageError, match='is a folder; a file is needed'):
        check_file(tmp_path, '--out')
    with pytest.raises(UsageError, match='--out is empty; it takes a folder'):
        check_folder('', '--out')
    (tmp_path / 'link').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(UsageError, match='link is a link that leads nowhere'):
        check_folder(tmp_path / 'link' / 'run', '--work-dir')


@pytest.mark.parametrize('value', [-1, float('nan'), float('inf')])
def test_numbers_beyond_their_limits(value: float) -> None:
    with pytest.raises(UsageError, match='--count must be at least 0, not'):
        check_number(value, '--count', 0)
    check_number(None, '--count', 0)
    check_number(0, '--count', 0)
    with pytest.raises(UsageError, match='--score-thr must be from 0 to 1, not 2'):
        check_number(2, '--score-thr', 0, 1)


def test_settings_reach_lists_and_new_keys() -> None:
    cfg = Config(dict(hooks=[dict(interval=1)], model=dict(width=8)))
    apply_options(cfg, {'hooks.0.interval': 5, 'model.depth': 3})
    assert cfg.hooks[0].interval == 5 and cfg.model == dict(width=8, depth=3)
    with pytest.raises(UsageError, match=r'--cfg-options: `hooks\.4\.interval` cannot be set'):
        apply_options(cfg, {'hooks.4.interval': 5})


@pytest.mark.parametrize(
    ('typed', 'value'),
    [
        ("a=my folder/it's {1}", "my folder/it's {1}"),
        ('a="my folder"', 'my folder'),
        ('a=[my folder, b]', ['myfolder', 'b']),  # as mmengine reads lists
        ('a= 5', 5),
        ('a= True', True),
        ('a=1, 2', [1, 2]),
        ('a=', ''),
    ],
)
def test_names_keep_their_spaces(typed: str, value: Any) -> None:
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    assert parser.parse_args(['--cfg-options', 'b=x y', typed]).cfg_options == dict(
        b='x y', a=value
    )
