# The teacher needs mmpretrain, which has its backbone: pip install mmpretrain
_base_ = '../students/mobilenet-v3-d8_lraspp_4xb4-160k_ade20k-512x512.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(
        config='mmseg::convnext/convnext-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/convnext/upernet_convnext_base_fp16_512x512_160k_ade20k/upernet_convnext_base_fp16_512x512_160k_ade20k_20220227_181227-02a24fc6.pth',
    ),
)
