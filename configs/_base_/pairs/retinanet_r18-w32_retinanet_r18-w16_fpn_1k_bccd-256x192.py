_base_ = '../../bccd/retinanet_r18-w16_fpn_1k_bccd-256x192.py'

model = dict(
    _delete_=True,
    type='mmkd_plugin.Distiller',
    student={{_base_.model}},
    teacher=dict(  # train it first: tools/train.py with this config
        config='mmkd::bccd/retinanet_r18-w32_fpn_3k_bccd-256x192.py',
        checkpoint='work_dirs/retinanet_r18-w32_fpn_3k_bccd-256x192/iter_3000.pth',
    ),
)
