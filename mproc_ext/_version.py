"""The version: the only place where it is written down.

setup.py reads it for the metadata and hands it to the C core as MPX_VERSION.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
