#!/usr/bin/env python
"""Trains the image encoder: the flags of `braingen train image`, under the name people know.

The configuration is nsd_subj01 unless --config names another.
"""

import sys

from braingen.cli import script

sys.exit(script("train", "image"))
