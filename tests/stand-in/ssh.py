"""A stand-in for ssh: a host is a folder below the one that SSH_STAND_IN names, a command a process of this machine.

A host whose folder holds a file `down` refuses connections. Processes carry STAND_IN_WORKER and are found by it.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["SSH_STAND_IN"])


def main():
    words = sys.argv[1:]
    while words and words[0] == "-o":
        words = words[2:]
    host, command = words[0], " ".join(words[1:])
    place = ROOT / host.rpartition("@")[2]
    if not place.is_dir():
        print(f"ssh: Could not resolve hostname {host}: Name or service not known", file=sys.stderr)
        return 255
    if (place / "down").exists():
        print(f"ssh: connect to host {host} port 22: Connection refused", file=sys.stderr)
        return 255
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith(("EASYLM_", "TPU_", "PYTEST"))},
        "HOME": str(place), "PATH": f"{Path(__file__).parent / 'worker'}:{os.environ['PATH']}",
        "STAND_IN_WORKER": f"{ROOT}:{place.name}/",
    }  # fmt: skip
    environment.pop("PYTHONPATH", None)
    return subprocess.run(["bash", "-c", command], cwd=place, env=environment).returncode


sys.exit(main())
