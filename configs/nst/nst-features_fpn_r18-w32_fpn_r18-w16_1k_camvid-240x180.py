_base_ = '../_base_/pairs/fpn_r18-w32_fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    distill=dict(
        nst=dict(
            tap='decode_head.conv_seg@input',
            loss=dict(
                type='mmkd_plugin.NeuronSelectivityLoss', kernel='polynomial', loss_weight='auto'
            ),
        ),
    ),
)
