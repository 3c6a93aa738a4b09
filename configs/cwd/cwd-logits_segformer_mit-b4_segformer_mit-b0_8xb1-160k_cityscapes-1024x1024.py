_base_ = '../_base_/pairs/segformer_mit-b4_segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'

model = dict(
    distill=dict(
        cwd=dict(
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight='auto'),
        ),
    ),
)
