_base_ = '../_base_/pairs/retinanet_r101_retinanet_r50_fpn_1x_coco.py'

model = dict(
    distill=dict(
        local_similarity=dict(
            tap='neck',
            loss=dict(
                type='mmkd_plugin.LocalSimilarityLoss', similarity='distance', loss_weight=1e-7
            ),
        ),
    ),
)
