"""Train language models that reason in several ways and choose the right one.

The version is set here alone: setup.py and the run directory's config.json read it.
"""

__version__ = "0.1.0"
