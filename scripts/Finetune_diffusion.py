#!/usr/bin/env python
"""Teaches the diffusion model to listen: the flags of `braingen finetune`, under the name people know."""

import sys

from braingen.cli import main

sys.exit(main(["finetune", *sys.argv[1:]]))
