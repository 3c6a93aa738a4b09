_base_ = 'cosine-hint-features_dinov3-vitb16_pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'

# First: python tools/fit_connector.py measures the mean and the deviation of each channel.
model = dict(
    distill=dict(
        cosine_hint=dict(teacher_connector=dict(type='mmkd_plugin.ChannelNormalizer')),
    ),
)
