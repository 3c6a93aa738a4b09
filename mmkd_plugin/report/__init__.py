"""A report of each run: scores, curves, terms, cost and advice on one HTML page."""

from mmkd_plugin.report.hook import ReportHook
from mmkd_plugin.report.page import FILE, write_report
from mmkd_plugin.report.reading import Run, read_run

__all__ = ['FILE', 'ReportHook', 'Run', 'read_run', 'write_report']
