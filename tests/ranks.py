"""Starts a test module's own main on several processes, as a user starts training: by torchrun."""

import subprocess
import sys
from pathlib import Path


def start_ranks(module: str, folder: Path, count: int) -> str:
    """Runs `python -m module folder` on `count` processes, which must end well; what they said on stderr."""
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
                           "-m", module, str(folder)], capture_output=True, text=True, timeout=300,
                          cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr
