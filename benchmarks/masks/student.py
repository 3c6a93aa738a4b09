# A narrower MaskFormer, from scratch: with and without SharedMasksLoss.
#
#   python tools/train.py benchmarks/masks/teacher.py --work-dir work_dirs/masks/teacher
#   python tools/train.py benchmarks/masks/student.py --work-dir work_dirs/masks/alone
#   python tools/distill.py benchmarks/masks/student.py benchmarks/masks/teacher.py \
#       work_dirs/masks/teacher/iter_300.pth --method shared_masks \
#       --work-dir work_dirs/masks/distilled \
#       --cfg-options model.distill.shared_masks.loss.points=1024
#
# A mask has 32 x 32 positions here, so 1024 points of it are as many.
_base_ = './teacher.py'

model = dict(
    backbone=dict(stem_channels=16, base_channels=16),
    decode_head=dict(in_channels=[16, 32, 64, 128]),
)
load_from = None
