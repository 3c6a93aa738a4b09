"""Backbones: the B-cos ResNet."""

from mmkd_plugin.models.backbones.bcos_resnet import BcosResNet

__all__ = ['BcosResNet']
