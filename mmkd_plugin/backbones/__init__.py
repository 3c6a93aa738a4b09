"""Backbones: the B-cos ResNet."""

from mmkd_plugin.backbones.bcos_resnet import BcosResNet

__all__ = ['BcosResNet']
