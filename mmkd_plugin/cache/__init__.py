"""Cache: maps of a teacher on disk.

They are those of whole images, warped as a pipeline warps the images, or those of views that a
pipeline drew and draws again.

The package does not know the teachers. Public: :class:`~mmkd_plugin.cache.store.TeacherCache` and
:func:`~mmkd_plugin.cache.wiring.wire`.
"""
