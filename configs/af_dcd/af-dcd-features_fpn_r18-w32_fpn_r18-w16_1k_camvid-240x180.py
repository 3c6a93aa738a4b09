_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

# The authors do not pool maps of CamVid, which costs four times as much on a CPU.
model = dict(
    distill=dict(
        af_dcd=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(
                type='mmkd_plugin.DenseContrastLoss',
                fd=8e-6,
                ctr=1e-2,
                pool=2,
                loss_weight=dict(auto=12.5),
            ),
        ),
        pixel_wise=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.PixelWiseLoss', tau=1, loss_weight=dict(auto=12.5)),
        ),
    ),
)
