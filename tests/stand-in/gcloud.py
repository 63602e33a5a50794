"""A stand-in for gcloud: the part of `gcloud compute tpus` that tpu_scripts/ use, on this machine.

A pod is a folder, a worker a folder below it that is the home of its processes. Everything is below the folder that
GCLOUD_STAND_IN names:

    state.json     requests, nodes, and what is to go wrong; tests change it through tests/pod_kit.py
    calls.jsonl    every call, one list of words a line
    pods/<zone>/<name>/<worker>/home

Commands, flags and messages are those of Google Cloud SDK 528: an unknown flag is an error, as it is there. Processes
of a worker carry STAND_IN_WORKER in their environment, and are found by it.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["GCLOUD_STAND_IN"])
WIDE = ("--project", "--format", "--quiet", "--verbosity")
CREATE = [
    "--zone", "--runtime-version", "--accelerator-type", "--node-id", "--async", "--data-disk", "--description",
    "--guaranteed", "--internal-ips", "--labels", "--metadata", "--network", "--range", "--reserved", "--scopes",
    "--service-account", "--spot", "--subnetwork", "--tags", "--valid-after-duration", "--valid-until-duration",
]  # fmt: skip
REMOTE = ["--zone", "--worker", "--internal-ip", "--plain", "--ssh-key-file"]
FLAGS = {
    "queued-resources create": CREATE,
    "alpha queued-resources create": [*CREATE, "--reservation", "--provisioning-model"],
    "queued-resources describe": ["--zone"],
    "queued-resources delete": ["--zone", "--async", "--force"],
    "tpu-vm describe": ["--zone"],
    "tpu-vm delete": ["--zone", "--async"],
    "tpu-vm ssh": [*REMOTE, "--command", "--output-directory", "--ssh-flag"],
    "tpu-vm scp": [*REMOTE, "--recurse", "--compress", "--scp-flag"],
}
SWITCHES = {"--async", "--force", "--quiet", "--spot", "--reserved", "--guaranteed", "--internal-ips", "--internal-ip",
            "--recurse", "--compress", "--plain"}  # fmt: skip
REQUIRED = {"queued-resources create": ("--runtime-version", "--accelerator-type", "--node-id")}


class Failed(Exception):
    """Ends the call with exit status 1 and the message that gcloud would print."""


@contextlib.contextmanager
def state():
    """The state, written back at the end; one call at a time."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with open(ROOT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = ROOT / "state.json"
        value = json.loads(path.read_text()) if path.exists() else {}
        for name, empty in (("requests", {}), ("nodes", {}), ("faults", {})):
            value.setdefault(name, empty)
        yield value
        path.with_suffix(".tmp").write_text(json.dumps(value, indent=1))
        path.with_suffix(".tmp").replace(path)


def workers_of(accelerator):
    """The hosts of a type: four chips each."""
    name, _, size = accelerator.partition("-")
    chips = int(size) // (1 if name in ("v5litepod", "v6e") else 2)
    return max(1, chips // 4)


def key(given):
    return f"{given.zone}/{given.name}"


def not_found(kind, given):
    raise Failed(
        f"NOT_FOUND: Resource 'projects/stand-in/locations/{given.zone}/{kind}/{given.name}' was not found. "
        "This command is authenticated as nobody@example.com."
    )


def create(given):
    with state() as value:
        faults = value["faults"]
        if given.zone in faults.get("no_quota", []):
            raise Failed(
                "RESOURCE_EXHAUSTED: Quota limit 'TPUV5PPreemptiblePerProjectPerZoneForTPUAPI' has been exceeded. "
                f"Limit: 0 in zone {given.zone}."
            )
        if faults.get("no_permission"):
            raise Failed("PERMISSION_DENIED: Permission 'tpu.queuedResources.create' denied on 'projects/stand-in'.")
        if key(given) in value["requests"]:
            raise Failed(f"ALREADY_EXISTS: Resource '{given.name}' already exists")
        value["requests"][key(given)] = {
            "state": "WAITING_FOR_RESOURCES", "accelerator": given.accelerator_type, "spot": given.spot,
            "looks": faults.get("slow", 0), "until": time.time() + float(given.valid_until_duration.rstrip("s") or 1e9),
        }  # fmt: skip


def advance(value):
    """What Google Cloud does between two calls: it grants requests, and lets them expire."""
    for name, request in value["requests"].items():
        zone, _, node = name.partition("/")
        if request["state"] != "WAITING_FOR_RESOURCES":
            continue
        if zone in value["faults"].get("full", []):
            if time.time() > request["until"]:
                request["state"] = "FAILED"
            continue
        request["looks"] -= 1
        if request["looks"] < 0:
            count = workers_of(request["accelerator"])
            request["state"] = "ACTIVE"
            value["nodes"][name] = {
                "state": "READY", "acceleratorType": request["accelerator"], "spot": request["spot"], "workers": count,
                "createTime": datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z"),
            }  # fmt: skip
            for worker in range(count):
                (ROOT / "pods" / zone / node / str(worker) / "home").mkdir(parents=True)


def described(given, table, kind, known_format):
    """The request or node that is named, if it is asked for in the format that the stand-in knows."""
    with state() as value:
        advance(value)
        found = value[table].get(key(given)) or not_found(kind, given)
    if given.format != known_format:
        raise Failed(f"the stand-in does not know the format {given.format}")
    return found


def describe_request(given):
    print(described(given, "requests", "queuedResources", "value(state.state)")["state"])


def describe_node(given):
    facts = "state,acceleratorType,schedulingConfig.spot,createTime,networkEndpoints.len()"
    node = described(given, "nodes", "nodes", f"csv[no-heading]({facts})")
    spot = "True" if node["spot"] else ""
    print(f"{node['state']},{node['acceleratorType']},{spot},{node['createTime']},{node['workers']}")


def delete_request(given):
    with state() as value:
        advance(value)
        request = value["requests"].get(key(given)) or not_found("queuedResources", given)
        if key(given) in value["nodes"] and not given.force:
            raise Failed("FAILED_PRECONDITION: The queued resource has nodes; use --force")
        if value["faults"].get("no_delete"):
            raise Failed("UNAVAILABLE: The service is currently unavailable.")
        del value["requests"][key(given)], request
        value["nodes"].pop(key(given), None)
    remove(given)


def delete_node(given):
    with state() as value:
        value["nodes"].pop(key(given), None) or not_found("nodes", given)
    remove(given)


def remove(given):
    folder = ROOT / "pods" / given.zone / given.name
    end(processes(f"{key(given)}/"), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def processes(prefix):
    """The processes of the workers whose name begins with `prefix`."""
    found = []
    marker = f"STAND_IN_WORKER={ROOT}:{prefix}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if any(one.startswith(marker) for one in (folder / "environ").read_bytes().split(b"\0")):
                    found.append(int(folder.name))
    return found


def end(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def reachable(given):
    """The pod's workers that a call is for, as numbers; fails as ssh does."""
    with state() as value:
        advance(value)
        node = value["nodes"].get(key(given)) or not_found("nodes", given)
        refused = value["faults"].get("ssh_refused", {})
    if node["state"] in ("PREEMPTED", "TERMINATED"):
        raise Failed(f'This TPU has terminal state "{node["state"]}", so it cannot be used anymore.')
    chosen = list(range(node["workers"])) if given.worker == "all" else [int(given.worker)]
    if chosen[-1] >= node["workers"]:
        raise Failed(f"Invalid value for [worker]: {given.worker}")
    return chosen, [worker for worker in chosen if key(given) in refused and worker in refused[key(given)]]


def home(given, worker):
    return ROOT / "pods" / given.zone / given.name / str(worker) / "home"


def ssh(given):
    chosen, refused = reachable(given)
    with socket.socket() as listener:  # a metadata server tells the workers of a pod about each other
        listener.bind(("localhost", 0))
        coordinator = f"localhost:{listener.getsockname()[1]}"
    running, failed = [], 255 if refused else 0
    for worker in chosen:
        if worker in refused:
            continue
        place = home(given, worker)
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith(("EASYLM_", "TPU_", "PYTEST"))},
            "HOME": str(place), "PATH": f"{Path(__file__).parent / 'worker'}:{os.environ['PATH']}",
            "STAND_IN_WORKER": f"{ROOT}:{key(given)}/{worker}", "EASYLM_COORDINATOR": coordinator,
            "EASYLM_PROCESSES": str(workers()[key(given)]), "EASYLM_PROCESS_ID": str(worker),
        }  # fmt: skip
        environment.pop("PYTHONPATH", None)
        out = sys.stdout.fileno()
        if given.output_directory:
            out = os.open(Path(given.output_directory) / f"{worker}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        running.append((worker, subprocess.Popen(
            ["bash", "-c", given.command], cwd=place, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )))  # fmt: skip
    for worker, process in running:
        status = process.wait()
        if status:
            print(f"##### Command execution on worker {worker} failed with exit status {status}. Continuing.",
                  file=sys.stderr)  # fmt: skip
            failed = failed or status
    if refused:
        raise Failed("(gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255].")
    return failed


def workers():
    with state() as value:
        return {name: node["workers"] for name, node in value["nodes"].items()}


def scp(given):
    chosen, refused = reachable(given)
    if refused:
        raise Failed("(gcloud.compute.tpus.tpu-vm.scp) [/usr/bin/scp] exited with return code [255].")
    source, target = given.paths
    for worker in chosen:
        if target.startswith(f"{given.name}:"):
            if (home(given, worker).parent / "disk_full").exists():
                raise Failed(f'scp: write remote "{target.partition(":")[2]}": No space left on device')
            shutil.copy(source, home(given, worker) / target.partition(":")[2])
        else:
            found = home(given, worker) / source.partition(":")[2]
            if not found.exists():
                raise Failed(f"scp: {found.name}: No such file or directory")
            shutil.copytree(found, Path(target) / found.name, dirs_exist_ok=True)


ACTIONS = {
    "queued-resources create": create, "alpha queued-resources create": create,
    "queued-resources describe": describe_request, "queued-resources delete": delete_request,
    "tpu-vm describe": describe_node, "tpu-vm delete": delete_node, "tpu-vm ssh": ssh, "tpu-vm scp": scp,
}  # fmt: skip


def main():
    words = sys.argv[1:]
    ROOT.mkdir(parents=True, exist_ok=True)
    with open(ROOT / "calls.jsonl", "a") as file:
        file.write(json.dumps(words) + "\n")
    if words == ["config", "get", "compute/zone"]:
        print("(unset)", file=sys.stderr)
        return 0
    track = "alpha " if words[:1] == ["alpha"] else ""
    words = words[len(track.split()) :]
    if words[:2] != ["compute", "tpus"] or track + " ".join(words[2:4]) not in ACTIONS:
        raise Failed(f"Invalid choice: '{' '.join(words[:4])}'.")
    action = track + " ".join(words[2:4])
    parser = argparse.ArgumentParser(prog="gcloud", allow_abbrev=False)
    for flag in (*FLAGS[action], *WIDE):
        if flag in SWITCHES:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(
                flag, default="0" if flag == "--worker" else "", required=flag in REQUIRED.get(action, ())
            )
    parser.add_argument("paths", nargs="+")
    given = parser.parse_args(words[4:])
    if not given.zone:
        raise Failed("Underspecified resource. Specify the [--zone] flag.")
    remote = [path for path in given.paths if ":" in path]
    given.name = remote[0].partition(":")[0] if remote else given.paths[0]
    return ACTIONS[action](given) or 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failure:
        print(f"ERROR: {failure}", file=sys.stderr)
        sys.exit(1)
