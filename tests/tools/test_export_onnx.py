"""``tools/export_onnx.py``: onnxruntime computes what PyTorch does, for images of any size."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmkd_plugin.cli import read_config
from tests.runs import needs_ops, save_weights
from tests.stock_models import faster_rcnn, gfl, pspnet
from tests.tools.tool_runs import load_tool

onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')


def run(file: Path, images: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(str(file)).run(None, {'images': images})


def plain(folder: Path, model: dict) -> tuple[Path, str]:
    """A config of a model alone, and random weights."""
    body = {key: value for key, value in model.items() if key != '_scope_'}
    text = f'default_scope = {model["_scope_"]!r}\nmodel = {body!r}\n'
    (folder / 'model.py').write_text(text)
    return folder / 'model.py', save_weights(model, folder / 'model.pth')


def test_a_segmentor(call_tool, trained, segmentation, data, tmp_path) -> None:
    out = tmp_path / 'student.onnx'
    size = ('--size', 64, 96)
    printed = call_tool(
        'export_onnx', segmentation / 'distilled.py', trained / 'iter_4.pth', out, *size
    )
    assert 'images of any size' in printed
    notes = {one.key: one.value for one in onnx.load(out).metadata_props}
    assert json.loads(notes['classes']) == ['ground', 'box', 'disc']

    from mmseg.apis import inference_model, init_model

    weights = tmp_path / 'student.pth'
    call_tool('export_student', segmentation / 'distilled.py', trained / 'iter_4.pth', weights)
    model = init_model(str(weights.with_suffix('.py')), str(weights), device='cpu')
    image = cv2.imread(str(data / 'images/0.png'))
    expected = inference_model(model, image).seg_logits.data.numpy()
    batch = np.stack([image, image[:, ::-1]]).transpose(0, 3, 1, 2).astype(np.float32)
    (scores,) = run(out, batch)
    assert scores.shape == (2, 3, 64, 64)
    np.testing.assert_allclose(scores[0], expected, atol=1e-4)


@needs_ops
def test_a_detector(call_tool, tmp_path) -> None:
    config, weights = plain(tmp_path, gfl())
    out = tmp_path / 'student.onnx'
    call_tool('export_onnx', config, weights, out, '--size', 64, 96)
    with torch.no_grad():
        tool = load_tool('export_onnx')
        model = tool.student_of(read_config(str(config)), weights)
        inputs = tool.made_up((128, 64))
        boxes, scores, labels = run(out, inputs.numpy())
        expected = tool.wrapped(model)(inputs)
        assert len(boxes) == len(scores) == len(labels) > 0
        for one, other in zip((boxes, scores, labels), expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), atol=1e-3)

        # What the stock detector predicts are the boxes that are left by its NMS.
        from mmdet.structures import DetDataSample

        meta = dict(img_shape=(128, 64), ori_shape=(128, 64), scale_factor=(1.0, 1.0))
        model.test_cfg.max_per_img = 10**6
        data = dict(inputs=[*inputs], data_samples=[DetDataSample(metainfo=meta)])
        (stock,) = model.test_step(data)
    kept = stock.pred_instances
    assert len(kept) > 0
    for box, score in zip(kept.bboxes.numpy()[:20], kept.scores.numpy()):
        clipped = boxes.clip(0, [64, 128, 64, 128])
        near = np.abs(clipped - box).max(1) < 1e-2
        assert (np.abs(scores[near] - score) < 1e-4).any()


def test_a_model_that_has_to_know_the_size(call_tool, fails, tmp_path) -> None:
    config, weights = plain(tmp_path, pspnet())
    out = tmp_path / 'student.onnx'
    size = ('--size', 64, 64)
    refused = fails('export_onnx', config, weights, out, *size)
    assert refused.endswith('. Its size may have to be known: add --size H W --fixed')
    with Path(config).open('a') as file:
        file.write("test_pipeline = [dict(type='Resize', scale=(128, 96), keep_ratio=True)]\n")
    assert 'add --size 96 128 --fixed' in fails('export_onnx', config, weights, out, *size)
    assert not out.exists()
    assert 'one size' in call_tool('export_onnx', config, weights, out, *size, '--fixed')
    assert run(out, np.zeros((1, 3, 64, 64), np.float32))[0].shape == (1, 5, 64, 64)
    assert 'it is not overwritten' in fails('export_onnx', config, weights, out)
    assert 'must end with .onnx' in fails('export_onnx', config, weights, tmp_path / 'student.pt')


@needs_ops
def test_other_detectors_are_refused(fails, tmp_path) -> None:
    config, weights = plain(tmp_path, faster_rcnn())
    refused = fails('export_onnx', config, weights, tmp_path / 'student.onnx')
    assert 'FasterRCNN is no segmentor, and no detector with one stage' in refused
