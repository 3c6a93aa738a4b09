"""Writing caches: the teacher of a config runs once on each image, and its maps are stored."""

from mmkd_plugin.cache_writing.settings import Settings
from mmkd_plugin.cache_writing.verifying import verify
from mmkd_plugin.cache_writing.writing import Writing, write_cache

__all__ = ['Settings', 'Writing', 'verify', 'write_cache']
