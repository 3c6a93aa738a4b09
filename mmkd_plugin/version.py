"""The version, and the Python that it needs. `setup.py` reads this file, on any Python 3."""

import sys

__version__ = '0.1.0'

OLDEST_PYTHON = (3, 10)


def python_problem(version: tuple = ()) -> str:
    """What the user of a Python that is too old is told; empty for any other.

    Args:
        version (tuple): Its version. Defaults to ``()``: that of this Python.

    Examples:
        >>> python_problem((3, 8, 20)).partition(':')[0]
        'mmkd_plugin needs Python 3.10 or newer, and this is 3.8'
        >>> python_problem((3, 11, 7))
        ''
    """
    version = version or sys.version_info
    if tuple(version[:2]) >= OLDEST_PYTHON:
        return ''
    return 'mmkd_plugin needs Python {}.{} or newer, and this is {}.{}: {}'.format(
        *OLDEST_PYTHON,
        *version[:2],
        'make an environment with a newer one, such as python3.11; the packages of OpenMMLab run '
        'there too',
    )
