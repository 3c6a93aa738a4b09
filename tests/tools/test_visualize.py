"""``tools/visualize.py``: a page for either task, plain errors, and nothing overwritten."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmkd_plugin.visualization import PANELS
from tests.runs import needs_ops
from tests.tools.tool_runs import TOOLS, start_tool


@pytest.fixture
def visualize(call_tool):
    """Draws on the CPU."""
    return lambda *args: call_tool('visualize', *args, '--device', 'cpu')


def pictures(folder: Path) -> dict[str, Image.Image]:
    """The pictures of a page by file name; the page links to all of them."""
    page = (folder / 'index.html').read_text()
    found = {file.stem: Image.open(file) for file in (folder / 'images').iterdir()}
    assert sorted(re.findall(r'href="images/(.*?)\.png"', page)) == sorted(found)
    return found


@pytest.fixture(scope='module')
def whole(segmentation, trained, tmp_path_factory) -> Path:
    """A page with all panels of teacher, student and baseline, made by the tool as users run it."""
    out = tmp_path_factory.mktemp('page') / 'new' / 'page'
    printed = start_tool(
        'visualize', 'distilled.py', trained / 'iter_4.pth', '--against', trained / 'iter_2.pth',
        '--out', out, '--count', 2, cwd=segmentation,
    )  # fmt: skip
    assert f'2 images: {out / "index.html"}' in printed
    return out


def test_a_segmentor(whole: Path) -> None:
    found = pictures(whole)
    assert sorted(found) == sorted(
        f'{image}-{panel}'
        for image in ('001-0', '002-5')
        for panel in (
            'predictions',
            'attention-backbone',
            'channels-decode_head.conv_seg',
            'explanations-backbone-1',
        )
    )
    page = (whole / 'index.html').read_text()
    for text in ('teacher', 'student', 'baseline', 'decode_head.conv_seg', 'mIoU', 'iter_4.pth'):
        assert text in page
    for image in found.values():
        assert np.asarray(image).std() > 10


def test_nothing_is_overwritten(whole, segmentation, trained, fails, tmp_path):
    before = {file: file.read_bytes() for file in whole.rglob('*') if file.is_file()}
    said = fails('visualize', segmentation / 'distilled.py', trained / 'iter_4.pth', '--out', whole)
    assert said.endswith('exists already; nothing is overwritten, give a new --out')
    assert {file: file.read_bytes() for file in before} == before
    (tmp_path / 'file').write_text('mine')
    for out in (tmp_path / 'file', tmp_path / 'file' / 'x'):
        assert 'is a file; a folder is needed' in fails('visualize', 'a.py', 'a.pth', '--out', out)


@needs_ops
def test_a_detector(detection, trained_detector, visualize, tmp_path, monkeypatch):
    monkeypatch.chdir(detection)
    checkpoint = trained_detector / 'epoch_1.pth'
    visualize(
        'distilled.py', checkpoint, '--out', tmp_path / 'a', '--count', 1, '--score-thr', 0,
        '--panels', 'predictions', 'channels', '--channels', 2, '--taps', 'neck[0]',
    )  # fmt: skip
    assert set(pictures(tmp_path / 'a')) == {'001-0-predictions', '001-0-channels-neck-0'}
    page = (tmp_path / 'a' / 'index.html').read_text()
    assert re.search(r'<td>\d of 2</td>', page) and 'objects found' in page


def test_files_without_ground_truth(segmentation, trained, data, visualize, tmp_path):
    images = tmp_path / 'images'
    images.mkdir()
    rng = np.random.default_rng(0)
    for name, shape in (('wide.jpg', (37, 211, 3)), ('grey.png', (90, 50))):
        cv2.imwrite(str(images / name), rng.integers(0, 256, shape, dtype=np.uint8))
    (images / 'notes.txt').write_text('no image')
    config = segmentation / 'distilled.py'
    visualize(
        config, trained / 'iter_4.pth', '--out', tmp_path / 'out', '--panels', 'predictions',
        '--images', images, data / 'images' / '3.png',
    )  # fmt: skip
    assert set(pictures(tmp_path / 'out')) == {
        f'00{n}-{name}-predictions' for n, name in ((1, 'grey'), (2, 'wide'), (3, '3'))
    }
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert 'pixels as the teacher' in page and 'mIoU</th>' not in page


def test_another_teacher_and_one_that_is_a_cache(segmentation, trained, visualize, tmp_path):
    text = (segmentation / 'distilled.py').read_text()
    start, end = text.index('    teacher='), text.index('    distill=')
    config = segmentation / 'cached.py'
    config.write_text(
        f"{text[:start]}    teacher=dict(type='mmkd_plugin.CachedTeacher', path='cache'),\n"
        f'{text[end:]}'
    )
    arguments = (config, trained / 'iter_4.pth', '--count', 1, '--panels', 'channels', '--out')
    said = visualize(*arguments, tmp_path / 'a')
    assert re.sub(r'\s+', ' ', said).startswith(
        "Teacher 'teacher' is a CachedTeacher and has no model that could be drawn; --teacher "
        'CONFIG CHECKPOINT gives one.'
    )
    assert 'Rows: student.' in (tmp_path / 'a' / 'index.html').read_text()
    teacher = (segmentation / 'teacher.py', segmentation / 'teacher.pth')
    visualize(*arguments, tmp_path / 'b', '--teacher', *teacher)
    assert 'Rows: teacher, student.' in (tmp_path / 'b' / 'index.html').read_text()
    visualize(
        segmentation / 'student.py', *arguments[1:-2], 'predictions', '--out', tmp_path / 'c',
        '--teacher', *teacher,
    )  # fmt: skip
    assert 'Rows: teacher, student.' in (tmp_path / 'c' / 'index.html').read_text()


def test_taps_that_have_two_names(segmentation, trained, visualize, tmp_path):
    visualize(
        segmentation / 'distilled.py', trained / 'iter_4.pth', '--out', tmp_path / 'a',
        '--count', 1, '--panels', 'attention', '--taps', 'backbone[1]=backbone[2]', 'backbone',
    )  # fmt: skip
    assert len(pictures(tmp_path / 'a')) == 1
    page = (tmp_path / 'a' / 'index.html').read_text()
    columns = ', '.join(['backbone[2] / backbone[1]', *(f'backbone[{n}]' for n in range(4))])
    assert f'Columns: {columns}.' in page


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--panels', 'predictons'), "there is no panel 'predictons'; did you mean 'predictions'"),
        (('--count', '0'), '--count must be at least 1, not 0'),
        (('--images', 'nowhere.png'), 'no image at nowhere.png'),
        (('--taps', 'neck['), "'neck[' is not a tap"),
        (('--taps', 'bakbone'), "model 'teacher' has no module 'bakbone'"),
        (('--taps', 'backbone=backbon'), "model 'teacher' has no module 'backbon'"),
        (('--against', 'other.pth'), 'other.pth'),
        (('--teacher', 'x.py', 'x.pth'), 'no config at x.py'),
    ],
)
def test_errors(arguments, message, segmentation, trained, fails, tmp_path):
    said = fails(
        'visualize', segmentation / 'distilled.py', trained / 'iter_4.pth', '--out', tmp_path / 'a',
        *arguments,
    )  # fmt: skip
    assert message in said and '\n' not in said
    assert not (tmp_path / 'a' / 'index.html').exists()


def test_no_teacher_no_images_no_student(segmentation, trained, fails, tmp_path):
    student, checkpoint = segmentation / 'student.py', trained / 'iter_4.pth'
    said = fails('visualize', student, checkpoint, '--out', tmp_path)
    assert said.endswith('give a distilled config, or --teacher CONFIG CHECKPOINT')
    config = segmentation / 'distilled.py'
    empty = tmp_path / 'empty'
    empty.mkdir()
    said = fails('visualize', config, checkpoint, '--out', tmp_path / 'a', '--images', empty)
    assert said.startswith(f'visualize.py: error: no image in {empty}')
    said = fails('visualize', config, segmentation / 'teacher.pth', '--out', tmp_path / 'a')
    assert 'does not fit the student' in said and 'strict' not in said
    options = ('--cfg-options', 'val_dataloader=None', 'test_dataloader=None')
    said = fails('visualize', config, checkpoint, '--out', tmp_path / 'a', *options)
    assert said.endswith('the config has no `val_dataloader`; say with --images what to draw')
    options = ('--cfg-options', f'val_dataloader.dataset.data_root={tmp_path / "gone"}')
    said = fails('visualize', config, checkpoint, '--out', tmp_path / 'a', *options)
    assert 'the validation set' in said


def test_help_and_page_name_all_panels_and_options(call_tool, capsys):
    with pytest.raises(SystemExit):
        call_tool('visualize', '--help')
    said = capsys.readouterr().out
    assert all(panel in said for panel in PANELS)
    page = (TOOLS.parent / 'docs' / 'visualize.md').read_text(encoding='utf-8')
    assert set(re.findall(r'^\| `(--[\w-]+)', page, re.M)) == set(
        re.findall(r'^  (--[\w-]+)', said, re.M)
    )
    for panel in PANELS:
        assert f'| `{panel}` |' in page
