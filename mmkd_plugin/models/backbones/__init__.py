"""Backbones: a ResNet of B-cos layers."""

from mmkd_plugin.models.backbones.bcos_resnet import BcosResNet

__all__ = ['BcosResNet']
