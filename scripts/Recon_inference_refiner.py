#!/usr/bin/env python
"""Refines finished reconstructions: the flags of `braingen refine`, under the name people know.

The configuration is nsd_subj01 unless --config names another.
"""

import sys

from braingen.cli import script

sys.exit(script("refine"))
