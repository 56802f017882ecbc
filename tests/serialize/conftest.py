"""For the tests of messages."""

import pathlib
import sys

_FOLDER = str(pathlib.Path(__file__).parent)
if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)
