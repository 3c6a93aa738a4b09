# LR-ASPP on a MobileNetV3, for which mmsegmentation ships no config of ADE20K.
_base_ = [
    'mmseg::_base_/models/lraspp_m-v3-d8.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_160k.py',
]

model = dict(
    pretrained='open-mmlab://contrib/mobilenet_v3_large',
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(num_classes=150),
)
