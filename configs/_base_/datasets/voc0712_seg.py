# Segmentation labels of both VOC sets for training (422 + 2913 images), VOC 2007 test (210) for
# validation. The pipelines are mmsegmentation's for VOC 2012.
_base_ = 'mmseg::_base_/datasets/pascal_voc12.py'

dataset_type = 'PascalVOCDataset'
data_root = 'data/VOCdevkit/'
folders = dict(img_path='JPEGImages', seg_map_path='SegmentationClass')

train_dataloader = dict(
    _delete_=True,
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type=dataset_type,
                data_root=data_root + 'VOC2007',
                data_prefix=folders,
                ann_file='ImageSets/Segmentation/trainval.txt',
                pipeline={{_base_.train_pipeline}},
            ),
            dict(
                type=dataset_type,
                data_root=data_root + 'VOC2012',
                data_prefix=folders,
                ann_file='ImageSets/Segmentation/trainval.txt',
                pipeline={{_base_.train_pipeline}},
            ),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(data_root=data_root + 'VOC2007', ann_file='ImageSets/Segmentation/test.txt'),
)
test_dataloader = val_dataloader
