"""The same launch elsewhere: one machine, hosts over SSH, SLURM, GKE; real processes through stand-ins."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from pod_kit import REPOSITORY, SCRIPTS, Said, StandIn, small_project

from easylm_jax.runtime import exit_status
from easylm_jax.runtime.launch import hosts
from easylm_jax.runtime.launch.hosts import Host, read_hosts
from models.errors import UserError

ELSEWHERE = SCRIPTS / "elsewhere"
QUICK = ("--poll", "0.1", "--pause", "0.1", "--leave", "0.1")


@pytest.fixture
def cloud(tmp_path):
    made = StandIn(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ready(cloud, tmp_path):
    """(cloud, file of two hosts that are set up with the small project)"""
    file = cloud.hosts(2)
    cloud.works("elsewhere/ssh.sh", "setup", file, "--code", small_project(tmp_path / "it's a project"))
    return cloud, file


def ended(process: subprocess.Popen, timeout: float = 300) -> Said:
    out, err = process.communicate(timeout=timeout)
    return Said(process.returncode, out, err)


# One machine


def one_machine(folder: Path, statuses: str, **environment: str) -> subprocess.Popen:
    """Runs the script with a Python that ends with each of these statuses in turn, and then sleeps."""
    python = folder / "python"
    python.write_text(
        f'#!/usr/bin/env bash\necho "$@" >>"{folder}/calls"\nn=$(wc -l <"{folder}/calls")\n'
        f"statuses=({statuses})\n"
        'trap "exit 130" TERM\n[[ -n ${statuses[n-1]:-} ]] || { sleep 60 & wait; }\nexit "${statuses[n-1]}"\n'
    )
    python.chmod(0o755)
    return subprocess.Popen(
        ["bash", str(ELSEWHERE / "one_machine.sh"), "my recipe's.py", "a=b c"], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "EASYLM_PYTHON": str(python), "EASYLM_PAUSE": "0", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("statuses, status, calls", [("1 75 137 0", 0, 4), ("1 2", 2, 2), ("1 1 1 1", 75, 4)])
def test_one_machine_starts_again_until_it_is_done_needs_the_user_or_fails_too_often(statuses, status, calls, tmp_path):
    said = ended(one_machine(tmp_path, statuses, EASYLM_FAILURES="3"))
    assert said.status == status, said
    lines = (tmp_path / "calls").read_text().splitlines()
    assert lines == ["-m easylm_jax run my recipe's.py a=b c"] * calls


@pytest.mark.slow
def test_one_machine_that_is_stopped_lets_the_run_save_and_does_not_start_again(tmp_path):
    process = one_machine(tmp_path, "1")
    end = time.monotonic() + 30
    while not (tmp_path / "calls").exists() or (tmp_path / "calls").read_text().count("\n") < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert ended(process).status == 130 and (tmp_path / "calls").read_text().count("\n") == 2


# Hosts over SSH


def test_hosts_are_read_with_their_addresses(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# ours\nme@a.org 10.0.0.1\n\nb # the second\n")
    assert read_hosts(file) == (Host("me@a.org", "10.0.0.1"), Host("b", "b"))


@pytest.mark.parametrize(
    "text, says",
    [("", "names no host"), ("a\na\n", ":2: a is there twice"), ("a b c\n", ":1: write a host as ssh knows it"),
     ("-oProxyCommand=x\n", ":1: write a host"), (None, "No such file or directory")],
)  # fmt: skip
def test_a_file_of_hosts_that_is_wrong_is_one_line(text, says, tmp_path, capfd):
    file = tmp_path / "hosts"
    if text is not None:
        file.write_text(text)
    assert hosts.main(["status", str(file)]) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1
    with pytest.raises(UserError):
        read_hosts(file)


def test_every_host_runs_one_process_and_knows_who_it_is(ready):
    cloud, file = ready
    odd = ["my recipe's.py", 'a="b c"', "sleep"]
    cloud.works("elsewhere/ssh.sh", "launch", file, "--job", "it's mine", "--", *odd)
    said = cloud.works("elsewhere/ssh.sh", "logs", file, "--job", "it's mine").out
    places = re.findall(r"\['localhost:(\d+)', '2', '([01])'\]", said)
    assert [place for _, place in places] == ["0", "1"] and len({port for port, _ in places}) == 1
    for i in (0, 1):
        home = cloud.folder / "hosts" / f"host-{i}"
        assert f"[me@host-{i}] {['run', *odd, '--out', f'{home}/easylm/shared/runs']!r}" in said
    twice = cloud.run("elsewhere/ssh.sh", "launch", file, "--job", "it's mine", "--", "r.py")
    assert twice.status == 2 and "job it's mine is running already" in twice.line
    assert cloud.works("elsewhere/ssh.sh", "status", file, "--job", "it's mine").out.count("running") == 2
    cloud.works("elsewhere/ssh.sh", "stop", file, "--job", "it's mine")
    assert cloud.processes() == []


def test_a_supervised_run_on_hosts_ends_with_its_own_status(ready):
    cloud, file = ready
    done = cloud.works("elsewhere/ssh.sh", "supervise", file, *QUICK, "--", "r.py")
    assert "finished after 0 restarts" in done.err
    wrong = cloud.run("elsewhere/ssh.sh", "supervise", file, *QUICK, "--", "wrong")
    assert wrong.status == 2 and wrong.line == "me@host-0: no such data"


def test_a_host_that_refuses_connections_leaves_nothing_running(ready):
    cloud, file = ready
    cloud.goes_down(1)
    said = cloud.run("elsewhere/ssh.sh", "launch", file, "--", "sleep")
    assert said.status == 75 and said.line == "me@host-1: ssh: connect to host me@host-1 port 22: Connection refused"
    assert cloud.processes() == []
    assert "worker 1  does not answer" in cloud.works("elsewhere/ssh.sh", "status", file).out
    setup = cloud.run("elsewhere/ssh.sh", "setup", file)
    assert setup.status == 75 and setup.line.startswith("no SSH connection to me@host-1")


@pytest.mark.parametrize(
    "arguments, says",
    [(("launch", "{file}"), "which recipe? write it after --"),
     (("supervise", "{file}", "--elastic", "3", "--", "r.py"), "a number of hosts from 1 to 2, not 3"),
     (("status", "{file}", "--job", "../x"), "job name '../x' must be usable as the name of a folder"),
     (("setup", "{file}", "--code", "/none"), "/none is not the project's folder"),
     (("launch", "{file}", "--", "r.py"), "this host is not set up; run tpu_scripts/elsewhere/ssh.sh setup")],
)  # fmt: skip
def test_what_a_user_gets_wrong_ends_in_one_line(arguments, says, cloud):
    file = cloud.hosts(2)
    said = cloud.run("elsewhere/ssh.sh", *(text.format(file=file) for text in arguments))
    assert said.status == 2 and says in said.line


# SLURM


def sbatch(folder: Path, *arguments: str, nodes: int = 2) -> subprocess.Popen:
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith(("EASYLM_", "SLURM_"))},
        "PATH": f"{REPOSITORY / 'tests/stand-in/slurm'}:{os.environ['PATH']}", "SLURM_STAND_IN": str(folder / "slurm"),
        "SLURM_STAND_IN_SUBMIT_DIR": str(folder / "project"), "EASYLM_PYTHON": sys.executable, "EASYLM_PAUSE": "0",
        "EASYLM_FAILURES": "2",
    }  # fmt: skip
    return subprocess.Popen(
        ["sbatch", f"--nodes={nodes}", str(ELSEWHERE / "slurm.sh"), *arguments], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    small_project(tmp_path / "project")
    return tmp_path


def test_every_node_of_a_slurm_job_runs_one_process_and_knows_who_it_is(slurm):
    said = ended(sbatch(slurm, "my recipe's.py", "a=b c"))
    assert said.status == 0, said
    places = re.findall(r"\['localhost:(\d+)', '2', '([01])'\]", said.out)
    assert sorted(place for _, place in places) == ["0", "1"] and len({port for port, _ in places}) == 1
    assert said.out.count(repr(["run", "my recipe's.py", "a=b c"])) == 2
    assert not list((slurm / "project").glob(".easylm-slurm-*"))


def test_an_error_of_the_user_ends_a_slurm_job_and_a_crash_starts_it_again(slurm):
    assert ended(sbatch(slurm, "wrong")).status == 2
    assert (slurm / "slurm/calls").read_text().count("srun") == 1
    main = slurm / "project/easylm_jax/__main__.py"
    main.write_text("import os, sys\nprint(os.environ['EASYLM_COORDINATOR'])\nsys.exit(1)\n")
    said = ended(sbatch(slurm, "r.py"))
    assert said.status == 75 and "given up after 2 failures; the last exit statuses: 1" in said.err
    assert len(set(said.out.split())) == 3  # a port of its own for each start


def test_a_slurm_job_whose_time_ends_saves_and_is_requeued(slurm):
    (slurm / "project/easylm_jax/__main__.py").write_text(
        "import os, pathlib, signal, sys, time\nplace = os.environ['EASYLM_PROCESS_ID']\n"
        f"saved = pathlib.Path({str(slurm)!r}, f'saved-{{place}}')\n"
        "if saved.exists(): sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (saved.touch(), sys.exit(130)))\n"
        f"pathlib.Path({str(slurm)!r}, f'up-{{place}}').touch()\ntime.sleep(60)\n"
    )
    process = sbatch(slurm, "r.py")
    end = time.monotonic() + 30
    while not all((slurm / f"up-{i}").exists() for i in range(2)):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    os.kill(int((slurm / "slurm/batch.pid").read_text()), signal.SIGTERM)
    said = ended(process)
    assert said.status == 0 and all((slurm / f"saved-{i}").exists() for i in range(2)), said
    assert [line.split()[0] for line in (slurm / "slurm/calls").read_text().splitlines()].count("srun") == 2


def test_a_slurm_job_without_a_recipe_is_one_line(slurm):
    said = ended(sbatch(slurm))
    assert said.status == 2 and said.err.startswith("slurm: error: which recipe?") and said.err.count("\n") == 1


# GKE


def test_the_jobset_runs_easylm_on_every_host_and_restarts_what_the_table_says():
    (value,) = yaml.safe_load_all((ELSEWHERE / "gke.yaml").read_text())
    (group,) = value["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    assert (value["kind"], job["parallelism"]) == ("JobSet", job["completions"]) == ("JobSet", 2)
    (rule,) = job["podFailurePolicy"]["rules"]
    fixed = [code for code, row in exit_status.TABLE.items() if not row.restart and code > 0]
    assert rule["onExitCodes"]["values"] == fixed == [exit_status.USER_ERROR]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["command"][:4] == ["python", "-m", "easylm_jax", "run"]
    assert container["command"][-1].startswith(container["volumeMounts"][0]["mountPath"])
    assert pod["terminationGracePeriodSeconds"] >= 600 and pod["restartPolicy"] == "Never"


def test_xpk_is_called_with_its_names_of_things(cloud, tmp_path):
    where = ("--cluster", "mine", "--type", "v5e:4x4", "--image", "gcr.io/p/i")
    words = ("tulu", *where, "--dry-run", "--", "my recipe's.py", "--out", "/shared")
    said = cloud.works("elsewhere/xpk.sh", *words)
    assert said.out.startswith("xpk workload create --workload=tulu --cluster=mine --tpu-type=v5litepod-16 ")
    assert "--max-restarts=100" in said.out and "my recipe" in said.out
    for words, says in (
        (("tulu", *where, "--", "r.py"), "give --out after --"),
        (("Tulu", *where, "--", "r.py", "--out", "x"), "a workload cannot be called Tulu"),
        (("tulu", "--cluster", "mine", "--", "r.py"), "give --type"),
        (("tulu", *where[:3], "v9-8", *where[4:], "--", "r.py", "--out", "x"), "v9-8"),
        (("tulu", *where, "--", "r.py", "--out", "x"), "xpk is not on the PATH"),
    ):  # fmt: skip
        if words[-1] == "x" and shutil.which("xpk") and "PATH" in says:
            continue
        said = cloud.run("elsewhere/xpk.sh", *words)
        assert said.status == 2 and says in said.err, words
