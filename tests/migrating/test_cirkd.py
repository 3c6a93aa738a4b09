"""Commands with the arguments of CIRKD."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmkd_plugin.cli import UsageError
from mmkd_plugin.migrating import NotPossible, read_file
from tests.migrating.made import TOOL, model_file, step
from tests.stock_models import fcn

START = 'CUDA_VISIBLE_DEVICES=0,1 \\\n  python -m torch.distributed.launch --nproc_per_node=4 \\\n'
MEMORY = '  train_cirkd.py --data [your path]/cityscapes/ --pixel-memory-size 64 --batch-size 8'
EACH = (
    '  train_kd.py --lambda-kd 1. --lambda-skd 10 --lambda-ifv 20 --lambda-at 1e4 '
    '--lambda-fitnet 5 --lambda-cwd-fea 50 --lambda-cwd-logit 3 --lambda-adv 0.001'
)


def script(folder: Path, text: str) -> Path:
    (folder / 'train.sh').write_text(text)
    return folder / 'train.sh'


@pytest.mark.usefixtures('counters')
@pytest.mark.parametrize(
    ('arguments', 'terms'),
    [
        (MEMORY, ['pi', 'cross_image', 'memory']),
        (EACH, ['pi', 'pa', 'ifvd', 'at', 'hint', 'cwd']),
    ],
    ids=['train_cirkd', 'train_kd'],
)
def test_a_command_takes_a_step(arguments: str, terms: list[str], tmp_path: Path) -> None:
    model = model_file(tmp_path, 'model', fcn())
    command = script(tmp_path, START + arguments)
    logs = step(TOOL.converted(str(command), model, model), tmp_path)
    found = [key.split('.')[1] for key in logs if key.startswith('distill.')]
    assert found == terms
    assert read_file(command, model, model)[1].train_dataloader.batch_size == (
        2 if arguments == MEMORY else 4
    )


def test_models_are_found_by_their_names(tmp_path: Path) -> None:
    text = TOOL.converted(
        str(
            script(
                tmp_path,
                'python train_kd.py --student-model psp_mobile '
                '--student-backbone mobilenetv2 --teacher-model psp --lambda-cwd-logit 3 '
                '--lambda-psd 1000',
            )
        )
    )
    assert "_base_ = ['mmseg::mobilenet_v2/mobilenet-v2-d8_pspnet_4xb2-80k_cityscapes" in text
    assert "config='mmseg::pspnet/pspnet_r101-d8_4xb2-40k_cityscapes-512x1024.py'" in text
    assert 'pspnet_r101-d8_512x1024_40k_cityscapes_' in text, 'the published weights'
    assert '# - --lambda-psd 1000: the pixel-wise similarity of DSD has no counterpart' in text
    assert 'train_cfg = dict(max_iters=40000)' in text and 'end=40000' in text
    transformer = read_file(
        script(
            tmp_path,
            'python train_cirkd_segformer.py '
            '--student-model segformer --student-backbone MiT_B0 --teacher-model segformer '
            '--teacher-backbone MiT_B4 --crop-size 1024 1024 --lr 0.0002 --max-iterations 160000',
        )
    )
    assert transformer[0].student.startswith('mmseg::segformer/segformer_mit-b0_8xb1-160k_city')
    assert transformer[1].optim_wrapper.optimizer.lr == 0.0002


@pytest.mark.parametrize(
    ('text', 'error', 'told'),
    [
        (
            'python eval.py',
            UsageError,
            'expected one command with train_cirkd.py or train_kd.py, f',
        ),
        ('python train_kd.py\npython train_kd.py', UsageError, 'found 2: keep one'),
        ('python train_cirkdv2.py', NotPossible, 'train_cirkdv2.py has no counterpart'),
        ('python train_kd.py --lamda-at 1', UsageError, 'no argument --lamda-at.*--lambda-at'),
        ('python train_kd.py --dataset camvid', UsageError, '--dataset camvid'),
        (
            'python train_kd.py --dataset ade20k',
            UsageError,
            'no config of deeplabv3 with resnet18 for ade20k; name one with --student',
        ),
        ('python train_kd.py --lambda-psd 1', NotPossible, 'nothing of this command has'),
        ('python train_cirkd.py --lambda-memory-pixel 1', NotPossible, 'have one weight here'),
        ('python train_cirkd.py --pixel-contrast-size 9', NotPossible, 'it is always 4096 here'),
    ],
)
def test_what_cannot_be_done_is_one_line(text: str, error: type, told: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=told) as found:
        read_file(script(tmp_path, text))
    assert '\n' not in str(found.value)
