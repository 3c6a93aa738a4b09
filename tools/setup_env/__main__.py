"""Makes the virtual environment of ``make demo`` and ``make test``, step by step.

Run it as ``python tools/setup_env``; it needs the standard library only. Every step asks the
environment itself what it has and installs what is missing, so running the same command again goes
on where the last one stopped. mmcv's compiled ops are built once per machine: the wheel is kept in
a cache folder of the user's, and a build that was stopped goes on with the files that it had
compiled.
"""

import os
import sys
from pathlib import Path

if sys.version_info < (3, 10) or os.name != 'posix':
    sys.exit('This script needs Python 3.10 or newer (PYTHON=...) on Linux or macOS.')
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from setup_env.steps import main

sys.exit(main())
