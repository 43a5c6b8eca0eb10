"""The process that makes a bundle of a folder of ONNX graphs for the cache: a job on stdin, an answer on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tintype.engine.build.child import answer_parent
from tintype.errors import TintypeError


def work(text: str) -> dict[str, Any]:
    """{"source", "bundle", "name"} -> {"remarks"}, or {"refused": {"message", "fix"}} for what can't be taken."""
    from tintype.export import export_bundle
    from tintype.export.progress import Silent

    job, remarks = json.loads(text), list[str]()
    try:
        export_bundle(Path(job["source"]), Path(job["bundle"]), name=job["name"], progress=Silent(remarks.append))
    except TintypeError as error:
        return {"refused": {"message": error.message, "fix": error.fix}}
    return {"remarks": remarks}


if __name__ == "__main__":
    sys.exit(answer_parent(work))
