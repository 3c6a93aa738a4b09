"""Cache: maps of a teacher on disk, warped as a pipeline warped their images.

The package does not know the teachers. Public: :class:`~mmkd_plugin.cache.store.TeacherCache` and
:func:`~mmkd_plugin.cache.wiring.wire`.
"""
