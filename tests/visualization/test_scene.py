"""Running models on images: fed as in training, and left unchanged."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmkd_plugin.taps import Tap, as_list
from mmkd_plugin.visualization import Boxes, Meta, Scene, Viewer, evenly
from mmkd_plugin.visualization.scene import labels_of
from tests import stock_models
from tests.runs import assert_same, needs_ops
from tests.visualization.scenes import item, scene_of

TAPS = [Tap.parse('backbone[1]'), Tap.parse('backbone.layer3@pre_relu')]


@pytest.fixture(scope='module')
def segmentor() -> torch.nn.Module:
    torch.manual_seed(0)
    return stock_models.build(stock_models.pspnet())


def test_a_scene_knows_what_padding_covers():
    torch.manual_seed(0)
    model = stock_models.build(stock_models.retinanet())  # pads to multiples of 32
    scene = scene_of(model, 40, 50)
    assert scene.name == 'frankfurt' and scene.size == (100, 80)
    assert scene.inputs.shape[2:] == (64, 64) and scene.covers == (128, 128)
    assert isinstance(scene.truth, Boxes) and len(scene.truth) == 1


def test_the_image_is_what_the_pipeline_made(segmentor):
    data = item(segmentor, 40, 50)
    scene = Scene.of(copy.deepcopy(data), segmentor.data_preprocessor)
    assert np.array_equal(scene.image, data['inputs'].numpy()[::-1].transpose(1, 2, 0))
    assert scene.image.dtype == np.uint8 and scene.truth.shape == (80, 100)
    grey = dict(data, inputs=data['inputs'][:1])
    preprocessor = stock_models.build(
        stock_models.pspnet(mean=[0.0], std=[1.0], bgr_to_rgb=False)
    ).data_preprocessor
    assert Scene.of(grey, preprocessor).image.shape == (40, 50, 3)


def test_a_truth_that_was_resized_gets_the_size_of_the_image(segmentor):
    data = item(segmentor, 4, 6)
    small = torch.arange(24).view(1, 4, 6)
    data['data_samples'].gt_sem_seg = PixelData(data=small)
    truth = Scene.of(data, segmentor.data_preprocessor).truth
    assert np.array_equal(truth, small[0].numpy().repeat(2, 0).repeat(2, 1))


def test_no_truth(segmentor):
    assert scene_of(segmentor, 8, 8, truth=False).truth is None


def test_ignored_boxes_are_kept_apart():
    torch.manual_seed(0)
    model = stock_models.build(stock_models.retinanet())
    data = item(model, 40, 50)
    crowd = InstanceData(bboxes=torch.tensor([[1.0, 2, 3, 4]]), labels=torch.tensor([0]))
    data['data_samples'].ignored_instances = crowd
    assert Scene.of(data, model.data_preprocessor).truth.ignored.tolist() == [[1, 2, 3, 4]]


def test_boxes_without_an_end_are_left_out():
    boxes = torch.tensor([[1.0, 2, 3, 4], [0, 0, torch.inf, 4], [torch.nan, 0, 1, 1]])
    found = InstanceData(bboxes=boxes, labels=torch.arange(3), scores=torch.rand(3))
    drawn = labels_of(BaseDataElement(pred_instances=found), 'pred')
    assert (drawn.corners.tolist(), drawn.labels.tolist()) == ([[1, 2, 3, 4]], [0])
    assert len(drawn.scores) == 1


def test_maps_and_predictions_are_those_of_the_model(segmentor):
    model = copy.deepcopy(segmentor)
    scene = scene_of(model, 40, 56)
    viewer = Viewer('student', model, model.data_preprocessor)
    read, labels = viewer.read(scene, TAPS), viewer.predict(scene)
    model.eval()
    with torch.no_grad():
        stages = model.backbone(scene.inputs)
        logits = model.inference(scene.inputs, [scene.samples[0].metainfo])
    assert torch.equal(read[TAPS[0]], stages[1])
    assert torch.equal(read[TAPS[1]].relu(), stages[2])
    assert read[TAPS[1]].min() < 0  # not overwritten by the ReLU
    big = torch.nn.functional.interpolate(logits, (80, 112), mode='bilinear')
    assert labels.shape == (80, 112) and (labels == big[0].argmax(0).numpy()).mean() > 0.999


def test_another_model_is_fed_as_it_was_trained(segmentor):
    other = stock_models.build(
        stock_models.pspnet(mean=[10.0] * 3, std=[2.0] * 3, bgr_to_rgb=False)
    )
    data = item(segmentor, 40, 56)
    scene = Scene.of(copy.deepcopy(data), segmentor.data_preprocessor)
    own = Scene.of(data, other.data_preprocessor)
    ours = Viewer('teacher', other, segmentor.data_preprocessor).read(scene, TAPS)
    theirs = Viewer('teacher', other, other.data_preprocessor).read(own, TAPS)
    assert torch.allclose(ours[TAPS[0]], theirs[TAPS[0]], atol=1e-3)


@pytest.mark.parametrize('kind', ['pspnet', pytest.param('retinanet', marks=needs_ops)])
def test_a_model_in_training_stays_as_it_is(kind: str) -> None:
    torch.manual_seed(0)
    model = stock_models.build(getattr(stock_models, kind)()).train()
    model.backbone.layer1.eval()  # frozen, say
    modes = {name: module.training for name, module in model.named_modules()}
    inputs, samples = stock_models.batch(model)
    model.parse_losses(model.loss(inputs, samples))[0].backward()
    before = copy.deepcopy(dict(model.named_buffers()))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    state = torch.get_rng_state()

    scene = scene_of(model)
    viewer = Viewer('student', model, model.data_preprocessor)
    viewer.read(scene, [Tap.parse('backbone')])
    viewer.predict(scene)
    viewer.predict(scene)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert_same(dict(model.named_buffers()), before)
    assert_same({n: p.grad for n, p in model.named_parameters() if p.grad is not None}, gradients)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in model.parameters())
    assert not any('pred' in key for key in scene.samples[0].all_keys())


def test_a_tap_that_is_not_there(segmentor):
    scene = scene_of(segmentor, 40, 56)
    viewer = Viewer('baseline', segmentor, segmentor.data_preprocessor)
    with pytest.raises(ValueError, match=r"model 'baseline' has no module 'bakbone'.*backbone"):
        viewer.read(scene, [Tap.parse('bakbone')])
    with pytest.raises(ValueError, match=r"model 'baseline': 'decode_head\.loss_decode' does"):
        viewer.read(scene, [Tap.parse('decode_head.loss_decode')])
    assert viewer.read(scene, []) == {}


def test_a_head_that_only_training_needs_is_read_too():
    torch.manual_seed(0)
    config = stock_models.pspnet()
    config['auxiliary_head'] = dict(stock_models.fcn()['decode_head'], in_channels=32, in_index=2)
    model = stock_models.build(config)
    scene = scene_of(model, 40, 56)
    tap = Tap.parse('auxiliary_head.conv_seg')
    assert as_list(Viewer('a', model, model.data_preprocessor).read(scene, [tap])[tap])[0].ndim == 4


def test_meta(segmentor):
    meta = Meta.of(dict(classes=('a', 'b'), palette=[[255, 0, 0], [0, 0, 51]]), segmentor)
    assert (meta.name(1), meta.color(1), meta.ignore_index) == ('b', (0, 0, 0.2), 255)
    assert meta.name(7) == 'class 7' and meta.color(2) == (1, 0, 0)
    unknown = Meta.of(None, segmentor)
    assert unknown.name(0) == 'class 0' and len(unknown.palette) == 20
    config = stock_models.pspnet()
    config['decode_head']['ignore_index'] = 7
    assert Meta.of({}, stock_models.build(config)).ignore_index == 7


def test_evenly():
    assert evenly(3, 101) == [0, 50, 100]
    assert evenly(5, 2) == [0, 1] and evenly(1, 9) == [0]
