"""`python -m tintype` is the `tintype` command."""

from __future__ import annotations

from tintype.cli import main

if __name__ == "__main__":
    main()
