"""A stand-in for SLURM on this machine: `sbatch` runs the script at once, `srun` a process for each node.

A job that is requeued runs again when its script ends. What is called is kept in $SLURM_STAND_IN/calls.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["SLURM_STAND_IN"])


def sbatch(words):
    nodes = next(word.partition("=")[2] for word in words if word.startswith("--nodes="))
    script = next(i for i, word in enumerate(words) if not word.startswith("-"))
    environment = {
        **os.environ, "SLURM_JOB_ID": "4711", "SLURM_NNODES": nodes, "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
        "SLURM_SUBMIT_DIR": os.environ.get("SLURM_STAND_IN_SUBMIT_DIR", os.getcwd()),
    }  # fmt: skip
    while True:
        job = subprocess.Popen(["bash", *words[script:]], env=environment)
        (ROOT / "batch.pid").write_text(str(job.pid))
        status = job.wait()
        if not (ROOT / "requeue").exists():
            return status
        (ROOT / "requeue").unlink()


def srun(words):
    nodes = int(next(word.partition("=")[2] for word in words if word.startswith("--nodes=")))
    command = next(i for i, word in enumerate(words) if not word.startswith("-"))
    tasks = [
        subprocess.Popen(words[command:], env={**os.environ, "SLURM_PROCID": str(i)}, start_new_session=True)
        for i in range(nodes)
    ]

    def forward(number, _):
        for task in tasks:
            os.killpg(task.pid, number)

    signal.signal(signal.SIGTERM, forward)
    return max(task.wait() for task in tasks)


def scontrol(words):
    if words[:2] == ["show", "hostnames"]:
        print("\n".join(["localhost"] * 2))
    elif words[0] == "requeue":
        (ROOT / "requeue").touch()
    return 0


ROOT.mkdir(parents=True, exist_ok=True)
name, words = sys.argv[1], sys.argv[2:]
with open(ROOT / "calls", "a") as file:
    file.write(" ".join([name, *words[:3]]) + "\n")
sys.exit({"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[name](words))
