"""Cache: maps of a teacher on disk, and the way of an image through a pipeline replayed on them.

It knows no teacher. Public: :class:`~mmkd_plugin.cache.store.TeacherCache` and
:func:`~mmkd_plugin.cache.wiring.wire`.
"""
