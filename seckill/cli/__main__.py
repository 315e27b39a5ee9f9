"""``python -m seckill.cli`` is the same as ``seckill``."""

from __future__ import annotations

import sys

from seckill.cli import main

if __name__ == "__main__":
    sys.exit(main())
