#!/usr/bin/env python
"""Trains the text encoder: the flags of `braingen train text`, under the name people know.

The configuration is nsd_subj01 unless --config names another.
"""

import sys

from braingen.cli import script

sys.exit(script("train", "text"))
