"""Verifying: every record of a cache is read."""

from __future__ import annotations

from mmengine.config import Config

from mmkd_plugin.cache.images import common_root
from mmkd_plugin.cache.store import CacheError, TeacherCache
from mmkd_plugin.cache_writing.sources import drawn_parts, places_of, training_images
from mmkd_plugin.cli import UsageError, progress_bar


def verify(path: str, cfg: Config) -> None:
    """Reads every record and compares the images with the training set."""
    cache = TeacherCache(path)
    if 'views' in cache.meta:
        images = dict.fromkeys(name for part in drawn_parts(cfg) for name in part.names())
    else:
        images = training_images(cfg, common_root([*places_of(cfg)]))
    count, damaged = 0, []
    with progress_bar() as progress:
        for image, tap in progress.track(list(cache.keys()), description='verifying'):
            count += 1
            try:
                cache.read(image, tap)
            except CacheError as error:
                damaged.append(str(error))
    if damaged:
        more = f' And {len(damaged) - 1} more are damaged.' if len(damaged) > 1 else ''
        raise UsageError(damaged[0] + more)
    missing = cache.missing(images)
    if missing:
        raise UsageError(
            f'{path} lacks {len(missing)} of {len(images)} training images, such as {missing[0]}; '
            'run the same command without --verify'
        )
    print(f'{path}: {count} records of {len(images)} images are whole')
