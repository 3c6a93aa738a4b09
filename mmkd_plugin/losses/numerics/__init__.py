"""Internal: what makes the losses fast and exact. A reader of a paper need not enter.

A file named after a loss holds its fast form, which runs in place of the formula in
``mmkd_plugin/losses/``. The other files hold what the losses share.
"""
