"""The teacher: frozen, outside the module tree, fed correctly, run up to its last tap."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from mmkd_plugin.checkpoint import CheckpointError
from mmkd_plugin.registry import MODELS
from mmkd_plugin.taps import Tap
from mmkd_plugin.teachers.base import Batch
from mmkd_plugin.teachers.model import without_pretraining
from mmkd_plugin.teachers.online import OnlineTeacher
from mmkd_plugin.teachers.preprocessing import Normalization
from tests import stock_models
from tests.runs import needs_ops
from tests.teaching import prepare

CPU = torch.device('cpu')


def prepared(config, *taps, student=None):
    torch.manual_seed(0)
    teacher = OnlineTeacher(config, None)
    taps = [Tap.parse(tap) for tap in taps]
    preprocessor = stock_models.build(student or config).data_preprocessor
    prepare(teacher, preprocessor, taps)
    return teacher, taps


class Ran:
    """Names of the modules of a model that run while it is open."""

    def __init__(self, model):
        self.model, self.names = model, []

    def __enter__(self):
        self.handles = [
            module.register_forward_hook(lambda *_, name=name: self.names.append(name))
            for name, module in self.model.named_modules()
        ]
        return self.names

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize('name', ['pspnet', 'fcn', 'segformer'])
def test_segmentors_give_what_they_give_alone(name):
    teacher, (tap,) = prepared(getattr(stock_models, name)(), 'decode_head.conv_seg')
    x = torch.randn(2, 3, 64, 64)
    expected = teacher.model(x, mode='tensor')
    logits = teacher.read(x, None, [tap])[tap]
    assert torch.equal(logits, expected) and not logits.requires_grad


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'gfl', 'faster_rcnn'])
def test_detectors_give_their_features_and_dense_scores(name):
    head = 'rpn_head' if name == 'faster_rcnn' else 'bbox_head'
    teacher, (neck, scores) = prepared(getattr(stock_models, name)(), 'neck', f'{head}[0]')
    x = torch.randn(2, 3, 64, 64)
    features = teacher.model.extract_feat(x)
    got = teacher.read(x, None, [neck, scores])
    for ours, alone in zip(got[neck], features, strict=True):
        assert torch.equal(ours, alone)
    for ours, alone in zip(got[scores], getattr(teacher.model, head)(features)[0], strict=True):
        assert torch.equal(ours, alone)


def test_it_sees_the_raw_image_as_it_would_alone():
    student = stock_models.pspnet()
    other = stock_models.pspnet(
        mean=[103.5, 116.3, 123.7], std=[1.0] * 3, bgr_to_rgb=False, pad_val=7
    )
    teacher, (tap,) = prepared(other, 'decode_head.conv_seg', student=student)
    image = torch.randint(0, 256, (3, 50, 64)).byte()
    _, samples = stock_models.batch(teacher.model, 1)

    def data():
        return dict(inputs=[image.clone()], data_samples=[samples[0].clone()])

    alone = teacher.model.data_preprocessor(data(), training=True)
    expected = teacher.model(alone['inputs'], mode='tensor')
    given = stock_models.build(student).data_preprocessor(data(), training=True)
    logits = teacher.read(given['inputs'], given['data_samples'], [tap])[tap]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_nothing_runs_after_the_last_tap():
    teacher, (third, logits) = prepared(
        stock_models.pspnet(), 'backbone.layer3', 'decode_head.conv_seg'
    )
    x = torch.randn(1, 3, 64, 64)
    with Ran(teacher.model) as ran:
        teacher.read(x, None, [third])
    assert 'backbone.layer3' in ran and not any(name.startswith('backbone.layer4') for name in ran)
    assert not any(name.startswith('decode_head') for name in ran)
    with Ran(teacher.model) as ran:
        teacher.read(x, None, [third, logits])
    assert ran[-1] == 'decode_head.conv_seg'


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn'])
def test_a_neck_needs_no_head_no_loss_and_no_nms(name, monkeypatch):
    teacher, (tap,) = prepared(getattr(stock_models, name)(), 'neck')
    for head in ('base_dense_head', 'rpn_head'):
        monkeypatch.setattr(
            f'mmdet.models.dense_heads.{head}.batched_nms',
            lambda *_: pytest.fail('the teacher ran NMS'),
        )
    with Ran(teacher.model) as ran:
        teacher.read(torch.randn(1, 3, 64, 64), None, [tap])
    assert ran[-1] == 'neck' and not any('head' in name for name in ran)


def test_auxiliary_and_cascaded_heads():
    config = stock_models.pspnet()
    aux = dict(config['decode_head'], type='FCNHead', in_channels=32, in_index=2, num_convs=1)
    aux.pop('pool_scales')
    config['auxiliary_head'] = [aux, dict(aux, in_channels=16, in_index=1)]
    teacher, taps = prepared(config, 'auxiliary_head.1.conv_seg', 'decode_head.conv_seg')
    got = teacher.read(torch.randn(1, 3, 64, 64), None, taps)
    assert [tuple(got[tap].shape) for tap in taps] == [(1, 5, 8, 8), (1, 5, 8, 8)]


def test_a_cascade_of_heads_runs_in_turn():
    config = stock_models.fcn()
    first = config['decode_head']
    second = dict(first, type='OCRHead', ocr_channels=8)
    second.pop('num_convs')
    config.update(type='CascadeEncoderDecoder', num_stages=2, decode_head=[first, second])
    teacher, (tap,) = prepared(config, 'decode_head.1.conv_seg')
    assert teacher.read(torch.randn(1, 3, 64, 64), None, [tap])[tap].shape == (1, 5, 2, 2)


def test_what_needs_proposals_is_refused():
    with pytest.raises(ValueError, match=r"'roi_head.bbox_head.fc_cls' needs proposals of its own"):
        prepared(stock_models.faster_rcnn(), 'roi_head.bbox_head.fc_cls')


def test_a_module_that_does_not_run_by_itself_is_refused():
    config = stock_models.pspnet()
    with pytest.raises(ValueError) as error:
        prepared(config, 'backbone.conv1')
    assert "teacher 'teacher' has no module 'backbone.conv1'" in str(error.value)
    assert "'backbone' contains: stem, maxpool, layer1" in str(error.value)


def test_frozen_in_eval_mode_and_shared_by_copies():
    teacher, _ = prepared(stock_models.pspnet(), 'backbone')
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not isinstance(teacher, nn.Module) and copy.deepcopy(teacher) is teacher


def test_pretraining_is_not_asked_for():
    config = stock_models.pspnet()
    config['pretrained'] = 'open-mmlab://resnet18_v1c'
    config['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    clean = without_pretraining(config)
    assert clean['pretrained'] is None and clean['backbone']['init_cfg'] is None
    assert config['pretrained'] and config['backbone']['init_cfg']
    OnlineTeacher(config, None)


def test_weights_come_from_a_checkpoint_and_the_config_from_a_file(tmp_path):
    config = stock_models.pspnet()
    trained = stock_models.build(config)
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'teacher.pth')
    scope = config.pop('_scope_')
    preprocessor = config.pop('data_preprocessor')
    file = tmp_path / 'teacher.py'
    Config(dict(model=config, data_preprocessor=preprocessor, default_scope=scope)).dump(file)
    teacher = OnlineTeacher(str(file), str(tmp_path / 'teacher.pth'))
    for key, value in trained.state_dict().items():
        assert torch.equal(teacher.model.state_dict()[key], value)
    assert Normalization.of(teacher.model.data_preprocessor).flip


@pytest.mark.parametrize(
    ('path', 'scope'),
    [
        ('mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'mmseg'),
        ('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', 'mmdet'),
    ],
)
def test_a_config_of_an_installed_library(path, scope):
    teacher = OnlineTeacher(path, None)
    assert type(teacher.model).__module__.startswith(scope)


def test_missing_config_names_the_closest(tmp_path):
    (tmp_path / 'pspnet_r101.py').write_text('model = dict()')
    with pytest.raises(
        FileNotFoundError, match=r"teacher 'teacher': no config at .*pspnet_r101.py"
    ):
        OnlineTeacher(str(tmp_path / 'pspnet_r110.py'), None)


def test_missing_config_of_a_library():
    with pytest.raises(FileNotFoundError, match=r"teacher 't': no config at mmseg::pspnet/no"):
        OnlineTeacher('mmseg::pspnet/no.py', None, name='t')


def test_a_library_that_is_missing_is_not_installed():
    with pytest.raises(FileNotFoundError, match=r'yolov5_s\.py: no library `mmyolo` is'):
        OnlineTeacher('mmyolo::yolov5/yolov5_s.py', None)


def test_the_library_of_a_teacher_is_missing(tmp_path):
    (tmp_path / 'yolo.py').write_text("default_scope = 'mmyolo'\nmodel = dict(type='YOLO')\n")
    with pytest.raises(
        ValueError, match=r"^teacher 't': default_scope='mmyolo': no library `mmyolo` is"
    ):
        OnlineTeacher(str(tmp_path / 'yolo.py'), None, name='t')


def test_config_without_a_model(tmp_path):
    (tmp_path / 'data.py').write_text('crop_size = 3')
    with pytest.raises(ValueError, match='has no `model`'):
        OnlineTeacher(str(tmp_path / 'data.py'), None)


def test_missing_checkpoint(tmp_path):
    (tmp_path / 'pspnet.pth').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match=r'pspnet\.pth'):
        OnlineTeacher(stock_models.pspnet(), str(tmp_path / 'psp.pth'))


def test_checkpoint_of_another_architecture(tmp_path):
    torch.save(stock_models.build(stock_models.fcn()).state_dict(), tmp_path / 'fcn.pth')
    with pytest.raises((ValueError, CheckpointError), match='strict=False'):
        OnlineTeacher(stock_models.pspnet(), str(tmp_path / 'fcn.pth'))
    OnlineTeacher(stock_models.pspnet(), str(tmp_path / 'fcn.pth'), strict=False)


# Heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['ocrnet', 'pointrend'])
def test_a_cascade_runs_up_to_the_last_head_that_is_tapped(name):
    teacher, (tap,) = prepared(getattr(stock_models, name)(), 'decode_head.0.conv_seg')
    x = torch.randn(2, 3, 64, 64)
    with Ran(teacher.model) as ran:
        read = teacher.read(x, None, [tap])[tap]
    assert not any(one.startswith('decode_head.1') for one in ran)
    assert torch.equal(read, teacher.model.decode_head[0](teacher.model.extract_feat(x)))


def test_a_later_head_of_a_cascade_reads_the_earlier_one():
    teacher, taps = prepared(
        stock_models.ocrnet(), 'decode_head.0.conv_seg', 'decode_head.1.conv_seg'
    )
    x, (first, second) = torch.randn(2, 3, 64, 64), taps
    read = teacher.read(x, None, taps)
    coarse, fine = teacher.model.decode_head
    features = teacher.model.extract_feat(x)
    assert torch.equal(read[first], coarse(features))
    assert torch.equal(read[second], fine(features, coarse(features)))


def test_a_head_that_takes_more_than_features_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"'decode_head.1' \(PointHead\) could not be tried"):
        prepared(stock_models.pointrend(), 'decode_head.0.conv_seg', 'decode_head.1.fc_seg')


def test_a_model_that_gives_maps_and_cannot_predict():
    config = stock_models.fcn()
    config['decode_head']['align_corners'] = 0
    teacher, _ = prepared(config, 'decode_head.conv_seg')
    told = (
        r"^teacher 'teacher' cannot predict: TypeError: .*; "
        r"`teacher 'teacher'\.config\.decode_head\.align_corners` is 0, expected True or False$"
    )
    with pytest.raises(ValueError, match=told):
        teacher.predict(Batch(torch.zeros(1, 3, 64, 64), None))


@pytest.mark.parametrize('before', [False, True])
def test_a_prediction_that_fails_in_a_config_where_nothing_looks_wrong(before, monkeypatch):
    teacher, _ = prepared(stock_models.fcn(), 'decode_head.conv_seg')
    batch = Batch(torch.zeros(1, 3, 64, 64), None)
    if before:
        assert teacher.predict(batch).shape == (1, 5, 64, 64)

    def fail(*_):
        raise TypeError('not today')

    monkeypatch.setattr(teacher.model, 'encode_decode', fail)
    told = 'cannot predict: TypeError: not today; expected a model that predicts by itself: test it'
    with pytest.raises(TypeError if before else ValueError, match='not today' if before else told):
        teacher.predict(batch)


@pytest.mark.parametrize('name', ['ocrnet', 'pointrend'])
def test_a_cascade_learns_from_one_of_its_kind(name):
    config = getattr(stock_models, name)()
    term = dict(  # a student runs the first head again, for the second
        student_tap='decode_head.0.conv_seg[0]',
        teacher_tap='decode_head.0.conv_seg',
        loss=stock_models.cwd(),
    )
    model = stock_models.distiller(config, config, dict(cwd=term))
    inputs, samples = stock_models.batch(model)
    losses = model(inputs, samples, mode='loss')
    assert losses['distill.cwd.loss'] > 0 and losses['distill.cwd.loss'].requires_grad


@needs_ops
def test_of_a_model_with_a_teacher_of_its_own_the_student_teaches():
    config = stock_models.ld(teacher_ckpt='https://nowhere.invalid/teacher.pth')  # is not fetched
    teacher, (tap,) = prepared(config, 'bbox_head.gfl_reg', student=stock_models.gfl())
    assert type(teacher.model).__name__ == 'SingleStageDetector'
    assert not hasattr(teacher.model, 'teacher_model')
    assert len(teacher.read(torch.randn(2, 3, 64, 64), None, [tap])[tap]) == 5


# Padding ------------------------------------------------------------------------------------------


class Skip(BaseModel):
    """It adds an upsampled map to a finer one, so it takes only multiples of two strides."""

    def __init__(self, pad_size_divisor: int = 8) -> None:
        super().__init__(
            dict(type='ImgDataPreprocessor', pad_size_divisor=pad_size_divisor, pad_value=7)
        )
        self.fine, self.coarse = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 2, 2)
        self.end = nn.Identity()

    def forward(self, inputs, data_samples=None, mode='tensor'):
        fine = self.fine(inputs)
        coarse = self.coarse(fine)
        return self.end([fine + coarse.repeat_interleave(2, 2).repeat_interleave(2, 3), coarse])


def test_a_teacher_that_needs_it_gets_its_own_padding_and_its_maps_are_cut_back():
    MODELS.register_module(module=Skip, force=True)
    student = dict(_scope_='mmengine', type='ImgDataPreprocessor', pad_value=7)
    teacher, tap = OnlineTeacher(dict(type='mmkd_plugin.Skip'), None), Tap.parse('end')
    prepare(teacher, stock_models.build(student), [tap])
    x = torch.randn(2, 3, 30, 35)
    fine, coarse = teacher.read(x, None, [tap])[tap]
    assert fine.shape == (2, 4, 8, 9) and coarse.shape == (2, 4, 4, 5)
    padded = nn.functional.pad(x, (0, 5, 0, 2), value=7)
    expected = teacher.model(padded)
    assert torch.equal(fine, expected[0][:, :, :8, :9])
    assert torch.equal(coarse, expected[1])


def test_a_teacher_that_takes_any_size_is_left_alone():
    teacher, (tap,) = prepared(
        stock_models.retinanet(), 'neck', student=stock_models.retinanet()
    )  # it pads to 32 when it runs alone
    x = torch.randn(2, 3, 72, 90)
    for ours, alone in zip(teacher.read(x, None, [tap])[tap], teacher.model.extract_feat(x)):
        assert torch.equal(ours, alone)
