"""Commands of CIRKD: shell scripts with all that is chosen in their arguments."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkd_plugin.cli import UsageError, read_config
from mmkd_plugin.migrating.distillation import Distillation, Term, add_to
from mmkd_plugin.migrating.losses import Loss, NotPossible
from mmkd_plugin.migrating.names import weights_of
from mmkd_plugin.stack import shipped_config
from mmkd_plugin.words import did_you_mean

#: Their programs for training, with the weights of the terms that are on without being named.
PROGRAMS: dict[str, dict[str, float]] = {
    'train_cirkd.py': {
        'lambda-kd': 1.0,
        'lambda-minibatch-pixel': 1.0,
        'lambda-memory-pixel': 0.1,
        'lambda-memory-region': 0.1,
    },
    'train_kd.py': {},
}

#: Their models, by folder and word in the names of mmsegmentation.
MODELS = {
    'deeplabv3': ('deeplabv3', 'deeplabv3'),
    'deeplab_mobile': ('mobilenet_v2', 'deeplabv3'),
    'psp': ('pspnet', 'pspnet'),
    'psp_mobile': ('mobilenet_v2', 'pspnet'),
    'segformer': ('segformer', 'segformer'),
    'upernet': ('upernet', 'upernet'),
}
BACKBONES = {
    'mit_b0': 'mit-b0',
    'mit_b4': 'mit-b4',
    'mobilenetv2': 'mobilenet-v2-d8',
    'resnet18': 'r18',
    'resnet101': 'r101',
}
DATASETS = dict(
    ade20k='ade20k', citys='cityscapes', coco_stuff_164k='coco-stuff164k', voc='voc12aug'
)
CLASSES = dict(ade20k=150, citys=19, coco_stuff_164k=171, voc=21)

#: Arguments that have no counterpart, and what they switch on.
MISSING = {
    'lambda-adv': 'the adversarial part',
    'lambda-csd': 'the category-wise similarity of DSD',
    'lambda-d': 'the discriminator',
    'lambda-psd': 'the pixel-wise similarity of DSD',
}

#: Numbers inside the memories that are fixed here.
FIXED = {
    'contrast-kd-temperature': 1.0,
    'pixel-contrast-size': 4096,
    'region-contrast-size': 1024,
}

KNOWN = (
    *PROGRAMS['train_cirkd.py'],
    *MISSING,
    *FIXED,
    *(f'lambda-{name}' for name in ('at', 'cwd-fea', 'cwd-logit', 'fitnet', 'ifv', 'skd')),
    *(f'{side}-{what}' for side in ('student', 'teacher') for what in ('backbone', 'model')),
    *('batch-size', 'contrast-temperature', 'crop-size', 'dataset', 'kd-temperature', 'lr'),
    *('max-iterations', 'momentum', 'optimizer-type', 'pixel-memory-size', 'region-memory-size'),
    'weight-decay',
)

#: Paths, devices and logs, which are not a matter of the config.
IGNORED = (
    *('aux', 'data', 'fp16', 'gpu-id', 'ignore-label', 'local_rank', 'log-dir', 'log-iter'),
    *('no-cuda', 'resume', 'save-dir', 'save-epoch', 'save-per-iters', 'skip-val', 'start_epoch'),
    *('student-pretrained', 'student-pretrained-base', 'teacher-pretrained'),
    *('teacher-pretrained-base', 'val-epoch', 'val-per-iters', 'workers', 'j'),
)


def read_command(
    script: str, student: str | None = None, teacher: str | None = None
) -> tuple[Distillation, Config]:
    """Reads a shell script with one command for training.

    Args:
        script (str): Its text.
        student (str, optional): The config of the student; None finds one for the model, the
            backbone and the data set that the command names.
        teacher (str, optional): The same of the teacher.

    Returns:
        tuple[Distillation, Config]: What it does, and the config of the run.

    Raises:
        UsageError: If it has no such command or several, or names no model of mmsegmentation.
        NotPossible: If nothing of it has a counterpart here.
    """
    given, gpus = _command(script)
    dataset = given.get('dataset', 'citys')
    if dataset not in DATASETS and not (student and teacher):
        raise UsageError(
            f'--dataset {dataset}: mmsegmentation has no such config; name two with --student and '
            '--teacher'
        )
    student = student or _config('student', 'resnet18', given, dataset)
    teacher = teacher or _config('teacher', 'resnet101', given, dataset)
    found = Distillation(
        student, teacher, weights_of(teacher) if '::' in teacher else None, _terms(given, student)
    )
    found.notes.append(
        'CIRKD has model code of its own: these are the models of mmsegmentation with its '
        'published teacher. The crops are those of the config below'
    )
    found.notes += [
        f'--{key} {value}: {MISSING[key]} has no counterpart here, and is left out'
        for key, value in given.items()
        if key in MISSING and float(value)
    ]
    run = read_config(student)
    _change(run, given, gpus)
    return found, run


def _command(script: str) -> tuple[dict[str, str], int]:
    """The arguments of the only command for training, and the number of processes."""
    lines = [line for line in script.replace('\\\n', ' ').splitlines() if '.py' in line]
    commands = [
        words
        for words in (shlex.split(line, comments=True) for line in lines)
        if any(Path(word).name.startswith('train_') for word in words)
    ]
    if len(commands) != 1:
        raise UsageError(
            f'expected one command with {" or ".join(PROGRAMS)}, found {len(commands)}: keep one '
            'of them in the file'
        )
    (words,) = commands
    at = next(i for i, word in enumerate(words) if Path(word).name.startswith('train_'))
    program = Path(words[at]).name.replace('_segformer', '')
    if program not in PROGRAMS:
        raise NotPossible(
            f'{words[at]} has no counterpart here; those of {" and ".join(PROGRAMS)} have'
        )
    before = _arguments(words[:at])
    given = {key: str(value) for key, value in PROGRAMS[program].items()} | _arguments(words[at:])
    for key in given:
        if key not in KNOWN and key not in IGNORED:
            raise UsageError(
                f'{program} has no argument --{key}{did_you_mean(key, [*KNOWN, *IGNORED], "--{}")}'
            )
    return given, int(before.get('nproc_per_node', 1))


def _arguments(words: list[str]) -> dict[str, str]:
    """The values behind ``--key``; a path in brackets may have spaces."""
    found: dict[str, str] = {}
    key = None
    for word in words:
        if word.startswith('-') and not word[1:2].isdigit():
            key, _, value = word.lstrip('-').partition('=')
            found[key] = value
        elif key is not None:
            found[key] = f'{found[key]} {word}'.strip()
    return found


def _config(side: str, usual: str, given: Mapping[str, str], dataset: str) -> str:
    """The config of mmsegmentation for a model, a backbone and a data set."""
    model = given.get(f'{side}-model', 'deeplabv3')
    backbone = given.get(f'{side}-backbone', usual)
    folder, word = MODELS.get(model, (model, model))
    wanted = {word, DATASETS[dataset], BACKBONES.get(backbone.lower(), backbone.lower())}
    steps = f'{int(given.get("max-iterations", 40000)) // 1000}k'
    crop = '512x1024' if dataset == 'citys' else '512x512'
    crop = given.get('crop-size', crop).replace(' ', 'x')
    root = shipped_config(f'mmseg::{folder}/any.py').parent
    names = [one.name for one in root.glob('*.py') if wanted <= _words(one.stem)]
    if not names:
        raise UsageError(
            f'mmsegmentation has no config of {model} with {backbone} for {dataset}; name one with '
            f'--{side}'
        )
    best = min(names, key=lambda x: (crop not in x, 'amp' in x, steps not in x, len(x), x))
    return f'mmseg::{folder}/{best}'


def _words(name: str) -> set[str]:
    """The parts of a name; ``r18-d8`` is ``r18`` too, and ``cityscapes-512x1024`` the data set."""
    parts = name.split('_')
    data = next((one for one in DATASETS.values() for part in parts if part.startswith(one)), '')
    return {*parts, *(part.removesuffix('-d8') for part in parts), data}


def _terms(given: Mapping[str, str], student: str) -> dict[str, Term]:
    found: dict[str, Term] = {}

    def number(key: str, usual: float = 0.0) -> float:
        return float(given.get(key, usual))

    def add(weight: float, where: str, name: str, kind: str, **arguments: Any) -> None:
        if weight:
            connector = arguments.pop('connector', None)
            loss = Loss(name, kind, weight, arguments, connector=connector)
            add_to(found, loss, where, where)

    scores, features = 'class_scores', 'class_scores@input'
    tau = number('contrast-temperature', 0.1)
    unbiased = dict(type='mmkd_plugin.ConvConnector', bias=False)
    add(number('lambda-kd'), scores, 'pi', 'PixelWiseLoss', tau=number('kd-temperature', 1))
    add(number('lambda-skd'), features, 'pa', 'PairWiseLoss', pool=2)
    add(number('lambda-ifv'), features, 'ifvd', 'IntraClassVariationLoss')
    add(number('lambda-at'), features, 'at', 'AttentionLoss')
    add(number('lambda-fitnet'), features, 'hint', 'HintLoss', connector=unbiased)
    add(number('lambda-cwd-fea'), features, 'cwd', 'ChannelWiseLoss', tau=4)
    add(number('lambda-cwd-logit'), scores, 'cwd', 'ChannelWiseLoss', tau=4)
    add(number('lambda-minibatch-pixel'), features, 'cross_image', 'CrossImageLoss', tau=tau)
    if number('lambda-memory-pixel') or number('lambda-memory-region'):
        add_to(found, _memory(given, number, student), features, features)
    if not found:
        raise NotPossible('nothing of this command has a counterpart here')
    return found


def _memory(given: Mapping[str, str], number: Any, student: str) -> Loss:
    """The loss against memories, whose two parts have one weight here."""
    pixels, regions = number('lambda-memory-pixel'), number('lambda-memory-region')
    if pixels != regions:
        raise NotPossible(
            f'--lambda-memory-pixel {pixels:g} and --lambda-memory-region {regions:g} differ; they '
            'have one weight here'
        )
    for key, usual in FIXED.items():
        if number(key, usual) != usual:
            raise NotPossible(f'--{key} {given[key]}: it is always {usual:g} here')
    dataset = given.get('dataset', 'citys')
    arguments = dict(
        classes=CLASSES.get(dataset) or read_config(student).model.decode_head.num_classes,
        pixels=int(number('pixel-memory-size', 20000)),
        regions=int(number('region-memory-size', 2000)),
        tau=number('contrast-temperature', 0.1),
    )
    note = "draw='first' fills the memory of pixels as theirs does, mostly from other classes"
    return Loss('memory', 'MemoryContrastLoss', pixels, arguments, (note,))


def _change(run: Config, given: Mapping[str, str], gpus: int) -> None:
    """Carries the settings over to the config of the run, in place."""
    steps = int(given.get('max-iterations', 40000))
    run.train_cfg.max_iters = steps
    optimizer = run.optim_wrapper.optimizer
    named = dict(lr=('lr', 0.02), momentum=('momentum', 0.9), weight_decay=('weight-decay', 1e-4))
    if optimizer.type == 'SGD':
        for ours, (theirs, usual) in named.items():
            optimizer[ours] = float(given.get(theirs, usual))
    elif 'lr' in given:
        optimizer.lr = float(given['lr'])
    run.train_dataloader.batch_size = max(int(given.get('batch-size', 16)) // gpus, 1)
    for scheduler in run.param_scheduler:
        if scheduler.type == 'PolyLR':
            scheduler.end = steps
            if optimizer.type == 'SGD':
                scheduler.update(power=0.9, eta_min=0.0)
