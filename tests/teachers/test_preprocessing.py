"""The teacher's input equals what its own preprocessor makes of the raw image."""

import pytest
import torch
from mmengine.structures import BaseDataElement

from mmkd_plugin.teachers.preprocessing import InputConverter, Normalization, Padding
from tests.stock_models import MEAN, STD, build

STUDENT = dict(type='ImgDataPreprocessor', mean=MEAN, std=STD, bgr_to_rgb=True, pad_value=0)
TEACHERS = {
    'the same': STUDENT,
    'other mean and std': dict(STUDENT, mean=[127.5] * 3, std=[127.5] * 3),
    'caffe: BGR, std 1': dict(
        STUDENT, mean=[102.9801, 115.9465, 122.7717], std=[1.0] * 3, bgr_to_rgb=False
    ),
    'raw pixels': dict(type='ImgDataPreprocessor', pad_value=114),
    'one grey mean': dict(type='ImgDataPreprocessor', mean=[128], std=[64], bgr_to_rgb=True),
    'other padding': dict(STUDENT, pad_value=1.5),
}


@pytest.mark.parametrize('name', TEACHERS)
@pytest.mark.parametrize('divisor', [1, 32])
def test_as_if_the_teacher_had_seen_the_raw_images(name, divisor):
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 40, 50)).byte(), torch.randint(0, 256, (3, 33, 61)).byte()]
    student = build(dict(STUDENT, pad_size_divisor=divisor))
    teacher = build(dict(TEACHERS[name], pad_size_divisor=divisor))
    samples = [BaseDataElement(metainfo=dict(img_shape=tuple(i.shape[1:]))) for i in images]
    given = student(dict(inputs=[image.clone() for image in images]))['inputs']
    expected = teacher(dict(inputs=images))['inputs']
    before = given.clone()
    converted = InputConverter.between(student, teacher)(given, samples)
    torch.testing.assert_close(converted, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(given, before), "the student's own input must stay as it is"


def test_nothing_is_computed_where_both_do_the_same():
    model = build(STUDENT)
    x = torch.rand(1, 3, 4, 4)
    assert InputConverter.between(model, build(STUDENT))(x) is x


def test_half_precision_keeps_its_type():
    converter = InputConverter.between(build(STUDENT), build(TEACHERS['caffe: BGR, std 1']))
    x = torch.randn(1, 3, 4, 4)
    half = converter(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), converter(x.bfloat16().float()), rtol=1e-2, atol=1e-2)


def test_a_padded_batch_leaves_the_data_samples_as_they_are():
    sample = BaseDataElement(metainfo=dict(img_shape=(5, 6)))
    images, (copied,) = Padding(4, 0.0)(torch.rand(1, 3, 5, 6), [sample])
    assert images.shape[2:] == copied.batch_input_shape == (8, 8)
    assert sample.metainfo == dict(img_shape=(5, 6))


def test_without_data_samples_nothing_counts_as_padding():
    converter = InputConverter.between(build(STUDENT), build(TEACHERS['other padding']))
    x = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(converter(x), x)


def test_segmentors_and_detectors_are_read():
    seg = dict(type='SegDataPreProcessor', mean=MEAN, std=STD, pad_val=3, size=(8, 8))
    det = dict(type='DetDataPreprocessor', mean=MEAN, std=STD, pad_value=3, rgb_to_bgr=True)
    assert Normalization.of(build(dict(seg, _scope_='mmseg'))) == Normalization(
        tuple(torch.tensor(MEAN).tolist()), tuple(torch.tensor(STD).tolist()), False, 3.0
    )
    assert Normalization.of(build(dict(det, _scope_='mmdet'))).flip
