"""`job.json`: how a folder of vectors was made, beside the blocks that a run on a cluster wrote."""

import json
from pathlib import Path
from typing import Any

JOB_FILE = "job.json"


def read_job(folder: Path) -> dict[str, Any]:
    """What `job.json` says, empty if there is none or it cannot be read; `blocks` is how many there will be."""
    try:
        job = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return job if isinstance(job, dict) else {}
