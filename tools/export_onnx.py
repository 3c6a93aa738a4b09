"""Write the student of a checkpoint as ONNX, for any size of image, and compare it with PyTorch.

The input is `images`, float32 (N, 3, H, W), as `cv2.imread` gives pixels: BGR, 0 to 255. A
segmentor gives `scores` (N, classes, H, W). A detector with one stage takes one image and gives
`boxes` (n, 4), `scores` (n) and `labels` (n), before the suppression of doubles (NMS).
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import re
import sys
import textwrap
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))  # from a clone that is not installed

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmkd_plugin.checkpoint import load_state, read_checkpoint, state_dict_of
from mmkd_plugin.cli import (
    UsageError,
    check_file,
    plain_errors,
    read_config,
    stages,
    use_scope,
    use_student,
)
from mmkd_plugin.exporting import add_test_pipeline
from mmkd_plugin.foreign import errors_named
from mmkd_plugin.saving import replacing
from mmkd_plugin.stack import safe_loading
from mmkd_plugin.teachers.classes import classes_of_checkpoint
from mmkd_plugin.teachers.preprocessing import InputConverter, Normalization, Padding
from mmkd_plugin.words import first_line

#: Pixels as they are read.
RAW = Normalization(mean=(0.0,), std=(1.0,), flip=False, pad_value=0.0)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="the config of the training, or the student's own")
    parser.add_argument('checkpoint', help='a checkpoint of that training, or of the student')
    parser.add_argument('out', type=Path, help='the file to write: .onnx')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        default=(256, 320),
        metavar=('H', 'W'),
        help='images to try it with (256 320)',
    )
    parser.add_argument(
        '--fixed', action='store_true', help='one image of that size alone, where others fail'
    )
    return parser.parse_args()


def main() -> None:
    with safe_loading(), plain_errors():
        args = parse_args()
        check_out(args.out)
        need('onnx', 'onnxruntime')
        with stages(3 if args.fixed else 4) as begin, replacing(args.out) as (beside,):
            begin('building the student')
            cfg = read_config(args.config)
            exported = wrapped(student_of(cfg, args.checkpoint))
            exported.size_of_images = size_of_images(cfg, exported.divisor)
            size, other = sizes(tuple(args.size), exported.divisor)
            classes = classes_of_checkpoint(read_checkpoint(args.checkpoint))
            begin('writing the file')
            export(exported, beside, size, args.fixed)
            describe(beside, exported.divisor, classes)
            gaps = []
            for one in [size] if args.fixed else [size, other]:
                begin(f'comparing {one[0]}x{one[1]}')
                gaps.append(gap(exported, beside, one))
        which = 'one size' if args.fixed else 'any size'
        print(f'{args.out}: images of {which}; at most {max(gaps):.0e} of the values from PyTorch')


def check_out(out: Path) -> None:
    if out.suffix != '.onnx':
        raise UsageError(f'{out} must end with .onnx')
    if out.exists():
        raise UsageError(f'{out} exists already; it is not overwritten')
    check_file(out, 'out')
    out.parent.mkdir(parents=True, exist_ok=True)


def need(*packages: str) -> None:
    """Refuse to start without packages that only this tool needs."""
    for name in packages:
        try:
            __import__(name)
        except ImportError as error:
            raise UsageError(f'{name} is missing: pip install {" ".join(packages)}') from error


def student_of(cfg: Config, checkpoint: str) -> nn.Module:
    """Build the student and load its weights, those that validation uses."""
    use_student(cfg)
    use_scope(cfg)
    with errors_named('model', cfg.model):
        model = MODELS.build(cfg.model)
    weights = state_dict_of(read_checkpoint(checkpoint), checkpoint)
    load_state(model, weights, checkpoint, name='student', lenient=None)
    return model.eval()


class Exported(nn.Module):
    """A model from pixels to results, in the form that is traced.

    Attributes:
        divisor (int): Sides of images have to be a multiple of it.
        results (tuple[str, ...]): Names of the results.
        size_of_images (str): The height and width to advise.
    """

    results: tuple[str, ...]
    size_of_images = 'H W'

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.divisor = Padding.of(model.data_preprocessor)
        self._normalise = InputConverter(RAW, Normalization.of(model.data_preprocessor))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the results for images (N, 3, H, W)."""
        return self.predict(self._normalise(images))

    def predict(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the results for normalised images."""
        raise NotImplementedError


class Segmentor(Exported):
    """Class scores in the size of the image, before the softmax."""

    results = ('scores',)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for parent in [*model.modules()]:
            for name, child in parent.named_children():
                if type(child).__name__ == 'Upsample' and getattr(child, 'scale_factor', None):
                    # that of mmsegmentation rounds the size to a number, which a trace keeps
                    setattr(parent, name, plain_upsample(child))

    def predict(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return (self.model.encode_decode(inputs, [dict(img_shape=inputs.shape[2:])]),)


def plain_upsample(module: nn.Module) -> nn.Upsample:
    """Make torch's own module of one that upsamples by a factor."""
    keys = ('scale_factor', 'mode', 'align_corners')
    return nn.Upsample(**{key: getattr(module, key) for key in keys})


class Detector(Exported):
    """The boxes of one image that the head decodes, before the suppression of doubles."""

    results = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        # All boxes above `score_thr`: how many there are at most cannot depend on the trial.
        self.cfg = ConfigDict(model.test_cfg, min_bbox_size=-1, nms_pre=10**9)

    def predict(self, inputs: Tensor) -> tuple[Tensor, ...]:
        head = self.model.bbox_head
        # Without a shape the coders clip no box: how they do it needs the size as a number.
        meta = dict(img_shape=None, scale_factor=(1.0, 1.0))
        (found,) = head.predict_by_feat(
            *head(self.model.extract_feat(inputs)),
            batch_img_metas=[meta],
            cfg=self.cfg,
            rescale=False,
            with_nms=False,
        )
        return found.bboxes, found.scores, found.labels


def wrapped(model: nn.Module) -> Exported:
    """Find the form for a model."""
    if hasattr(model, 'encode_decode'):
        return Segmentor(model).eval()
    decode = getattr(getattr(model, 'bbox_head', None), 'predict_by_feat', None)
    if decode is None or 'with_nms' not in inspect.signature(decode).parameters:
        raise UsageError(
            f'{type(model).__name__} is no segmentor, and no detector with one stage and NMS: '
            'write its student with tools/export_student.py and export that with MMDeploy'
        )
    return Detector(model).eval()


def sizes(size: tuple[int, int], divisor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Check the size to try, and choose another one."""
    if min(size) < 1 or any(side % divisor for side in size):
        wanted = 'at least 1' if divisor == 1 else f'multiples of {divisor}'
        raise UsageError(f'--size {size[0]} {size[1]}: both must be {wanted}')
    step = math.lcm(32, divisor)
    return size, (size[0] + 2 * step, size[1] + step)


def made_up(size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, *size, generator=generator) * 255


def export(model: Exported, file: Path, size: tuple[int, int], fixed: bool) -> None:
    """Trace the model and write the file."""
    axes: dict[str, dict[int, str]] = {}
    if not fixed:
        axes = {'images': {2: 'height', 3: 'width'}}
    if isinstance(model, Detector):
        axes |= {name: {0: 'boxes'} for name in model.results}
    elif not fixed:
        axes['images'][0] = 'images'
        axes['scores'] = {0: 'images', 2: 'height', 3: 'width'}
    options: dict[str, Any] = dict(input_names=['images'], output_names=[*model.results])
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        options['dynamo'] = False  # the other one is many times slower
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter('ignore')
            torch.onnx.export(
                model, (made_up(size),), str(file), opset_version=17, dynamic_axes=axes, **options
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise UsageError(f'{reason(error)}{"" if fixed else advice(model)}') from error


#: The severity from which onnxruntime writes: fatal errors alone.
SILENT = 4

#: How much of the largest value the results may differ.
LIMIT = 1e-3


def advice(model: Exported) -> str:
    """What to do about a model whose export needs to know the size."""
    return f'. Its size may have to be known: add --size {model.size_of_images} --fixed'


def size_of_images(cfg: Config, divisor: int) -> str:
    """The height and width to which the test pipeline brings images, as they are typed."""
    add_test_pipeline(cfg)
    for step in cfg.get('test_pipeline') or []:
        scale = step.get('scale')
        if isinstance(scale, (list, tuple)) and all(isinstance(side, int) for side in scale):
            width, height = (-(-side // divisor) * divisor for side in scale)
            return f'{height} {width}'
    return 'H W'


def reason(error: Exception) -> str:
    """Why something failed, in one line of whole words."""
    node = re.search(r"running (\w+) node\. Name:'([^']+)'", str(error))
    if node:
        return f'its {node[1]} at {node[2]} fails'
    return textwrap.shorten(first_line(error), 180, placeholder='...').rstrip('.')


def describe(file: Path, divisor: int, classes: Any) -> None:
    """Note in the file what whoever runs it has to know."""
    import onnx

    model = onnx.load(file)
    notes = dict(divisor=str(divisor), **({'classes': json.dumps(classes)} if classes else {}))
    onnx.helper.set_model_props(model, notes)
    onnx.save(model, file)


def gap(model: Exported, file: Path, size: tuple[int, int]) -> float:
    """Run the file on an image: its largest difference from PyTorch, as a part of the values."""
    import onnxruntime

    images = made_up(size)
    onnxruntime.set_default_logger_severity(SILENT)  # it writes each error, which is raised too
    try:
        session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
        found = session.run(None, {'images': images.numpy()})
    except Exception as error:  # onnxruntime has a class of its own for each kind
        raise UsageError(
            f'the file does not run on {size[0]}x{size[1]}: {reason(error)}{advice(model)}'
        ) from error
    with torch.no_grad():
        expected = [one.numpy() for one in model(images)]
    if isinstance(model, Detector):
        found, expected = (best_first(*one) for one in (found, expected))
        count = min(len(found[0]), len(expected[0]))
        if abs(len(found[0]) - len(expected[0])) <= max(1, count // 100):
            found, expected = ([x[:count] for x in one] for one in (found, expected))
    if [one.shape for one in found] != [one.shape for one in expected]:
        raise UsageError(f'the results for {size[0]}x{size[1]} have another shape{advice(model)}')
    gaps = (
        float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-6))
        for one, other in zip(found, expected, strict=True)
        if other.size
    )
    value = max(gaps, default=0.0)
    if value > LIMIT:
        raise UsageError(
            f'the results for {size[0]}x{size[1]} differ from those of PyTorch by {value:.0e} of '
            f'the largest value{advice(model)}'
        )
    return value


def best_first(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Sort scores, and each side of the boxes: scores that are nearly equal may change places."""
    return [np.sort(scores)[::-1], np.sort(boxes, axis=0)[::-1]]


if __name__ == '__main__':
    main()
