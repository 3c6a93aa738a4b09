"""``python -m benchmarks``: tables, files, and mistakes in the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.report import Report


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def losses(*arguments: str) -> None:
    main(['losses', '--quick', '--seconds', '0', '--threads', '1', '--no-compile', *arguments])


def test_losses_prints_tables_and_keeps_them(tmp_path: Path, capsys):
    losses('HintLoss', 'ChannelWiseLoss', '--out', str(tmp_path))
    printed = capsys.readouterr().out
    assert 'HintLoss' in printed and 'Targets' in printed and ': 5× as fast as' in printed
    text = (tmp_path / 'losses-cpu.json').read_text()
    report = Report.from_json(text)
    assert report.to_json() == text
    assert {one.group for one in report.rounds} == {'HintLoss', 'ChannelWiseLoss'}
    assert report.rounds[0].time('ours').median > 0
    page = (tmp_path / 'losses-cpu.md').read_text()
    assert '| ChannelWiseLoss |' in page and '(losses-cpu.png)' in page
    with Image.open(tmp_path / 'losses-cpu.png') as plot:
        assert plot.width > 400 and len(plot.convert('RGB').getcolors(2**24)) > 20
    for known in (Path.home().name, str(Path.cwd()), __import__('socket').gethostname()):
        assert known not in text + page


@pytest.mark.parametrize(
    ('command', 'words'),
    [
        ('memory', ['kept: ours', 'inputs and one map', 'PASS']),
        ('scaling', ['positions', 'channels']),
    ],
)
def test_the_other_commands_print_and_keep_theirs(command, words, tmp_path: Path, capsys):
    options = ['--quick', '--seconds', '0', '--threads', '1', '--out', str(tmp_path)]
    main([command, 'HintLoss', *options, *(['--no-compile'] if command == 'memory' else [])])
    printed = capsys.readouterr().out
    for word in ('HintLoss', *words):
        assert word in printed, word
    text = (tmp_path / f'{command}-cpu.json').read_text()
    assert Report.from_json(text).to_json() == text
    assert 'HintLoss' in (tmp_path / f'{command}-cpu.md').read_text()
    with Image.open(tmp_path / f'{command}-cpu.png') as plot:
        assert plot.width > 200


def test_each_loss_once_at_sizes_that_are_alike(tmp_path: Path):
    losses('HintLoss', 'CosineHintLoss', '--middle', '--out', str(tmp_path))
    rounds = Report.load(tmp_path / 'losses-cpu.json').rounds
    assert [one.group for one in rounds] == [
        'HintLoss', 'CosineHintLoss sample', 'CosineHintLoss token'
    ]  # fmt: skip
    assert len({one.case.rpartition(' ')[2] for one in rounds}) == 1


def test_files_that_exist_are_kept(tmp_path: Path):
    (tmp_path / 'losses-cpu.md').write_text('mine')
    with pytest.raises(SystemExit, match=r'has losses-cpu\.md already; .* --overwrite'):
        losses('HintLoss', '--out', str(tmp_path))
    assert (tmp_path / 'losses-cpu.md').read_text() == 'mine'
    losses('HintLoss', '--out', str(tmp_path), '--overwrite')
    assert (tmp_path / 'losses-cpu.md').read_text() != 'mine'


@pytest.mark.parametrize('command', ['losses', 'memory', 'scaling'])
def test_cases_are_added_to_a_file(command, tmp_path: Path):
    options = ['--quick', '--seconds', '0', '--threads', '1', '--out', str(tmp_path), '--add']
    options += ['--no-compile'] if command != 'scaling' else []
    for loss in ('HintLoss', 'SoftTargetLoss', 'HintLoss'):
        main([command, loss, *options])
    report = Report.load(tmp_path / f'{command}-cpu.json')
    found = [(one.group, one.case) for one in (*report.rounds, *report.footprints)]
    found += dict.fromkeys(point['loss'] for point in report.points)
    assert len(found) == len(set(found)) and {'HintLoss', 'SoftTargetLoss'} <= {
        one if isinstance(one, str) else one[0].split()[0] for one in found
    }
    with pytest.raises(
        SystemExit, match=r'--add: the file there has clock wall, and now it is cpu'
    ):
        main([command, 'HintLoss', *options, '--clock', 'cpu'])


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('losses', 'HintLos'), "no loss 'HintLos'; did you mean HintLoss"),
        (('step', 'pspnett'), "no pair 'pspnett'; did you mean pspnet"),
        (('memory', 'retinanett'), "no loss or pair 'retinanett'; did you mean retinanet"),
        (('scaling', 'AttentionLosses'), 'did you mean AttentionLoss'),
    ],
)
def test_mistakes_are_named_before_anything_runs(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main([*arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there():
    with pytest.raises(SystemExit, match='finds no GPU here'):
        main(['losses', '--device', 'cuda'])
