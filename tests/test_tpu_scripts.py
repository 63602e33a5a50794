"""The scripts of tpu_scripts/ against a stand-in for gcloud: what they call, what they refuse, what they leave."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pod_kit import REPOSITORY, SCRIPTS, ZONE, StandIn, small_project

from easylm_jax.plan import cost, topology
from easylm_jax.plan.cost import cloud_names, read_prices
from easylm_jax.runtime.chips import CHIPS, CLOUD_NAMES
from models.errors import UserError

COMMANDS = sorted(path.name for path in SCRIPTS.glob("*.sh") if path.name not in ("common.sh", "worker_setup.sh"))
CREATE = ("--type", "v5p-16", "--zone", ZONE, "--poll", "0.05")
OTHER_ZONE = "us-central1-a"
NEEDS = {"launch.sh": ("--", "recipes/quickstart.py"), "supervise.sh": ("--", "recipes/quickstart.py"),
         "create.sh": CREATE}  # fmt: skip


@pytest.fixture
def cloud(tmp_path):
    made = StandIn(tmp_path)
    yield made
    made.close()


def verbs(calls):
    """`queued-resources create`, … of calls of gcloud."""
    return [" ".join(words[words.index("tpus") + 1 :][:2]) for words in calls if "tpus" in words]


def changing(calls):
    return [verb for verb in verbs(calls) if not verb.endswith("describe")]


def test_shellcheck_finds_nothing():
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("shellcheck is not installed (pip install -e '.[dev]')")
    stand_ins = [path for path in (REPOSITORY / "tests/stand-in").rglob("*") if path.is_file() and not path.suffix]
    files = [*SCRIPTS.rglob("*.sh"), *stand_ins]
    found = subprocess.run([program, "-x", "-P", SCRIPTS, *files], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_help_shows_the_options_that_there_are_and_an_example_that_runs(script, cloud):
    said = cloud.works(script, "--help")
    text = (SCRIPTS / script).read_text()
    options = re.search(r'^begin "(.*)" "\$@"', text, re.MULTILINE)[1].split()
    hidden = {"unreachable=", "leave="}
    assert {f"--{name.rstrip('=')}" for name in options if name not in hidden} <= set(
        re.findall(r"--[a-z-]+", said.out)
    )
    example = shlex.split(re.search(r"^Example: (.*)$", said.out, re.MULTILINE)[1])
    assert example[0] == script
    split = example.index("--") if "--" in example else len(example)
    done = cloud.run(script, *example[1:split], "--dry-run", *example[split:])
    assert done.status == 0, done.err
    assert cloud.calls() == []


@pytest.mark.parametrize("script", COMMANDS)
def test_a_dry_run_prints_commands_that_a_shell_reads_back_and_runs_none(script, cloud, tmp_path):
    needs = NEEDS.get(script, ())
    split = needs.index("--") if "--" in needs else len(needs)
    said = cloud.works(script, "tulu", *needs[:split], "--project", "it's mine", "--dry-run", *needs[split:])
    printed = [shlex.split(line) for line in said.out.splitlines()]
    assert printed and all(words[0] == "gcloud" and "--project=it's mine" in words for words in printed)
    assert cloud.calls() == [] and cloud.nothing_left() and not (tmp_path / "pods of mine").exists()


def test_the_name_of_the_pod_comes_first_or_from_the_environment(cloud):
    assert "delete tulu " in cloud.works("delete.sh", "--dry-run", "--zone", ZONE, TPU_NAME="tulu").out
    assert "delete other " in cloud.works("delete.sh", "other", "--dry-run", "--zone", ZONE, TPU_NAME="tulu").out
    said = cloud.run("status.sh", "--zone", ZONE)
    assert said.status == 2 and said.line.startswith("which pod? give its name first, or set TPU_NAME")


@pytest.mark.parametrize("name", ["my pod", "it's", 'a"b', "$(touch x)", "Pod", "pod-", "a;b", "-x y"])
@pytest.mark.parametrize("script", ["create.sh", "delete.sh"])
def test_a_name_that_google_refuses_is_told_in_one_line(script, name, cloud):
    said = cloud.run(script, name, *NEEDS.get(script, ()))
    assert said.status == 2 and said.line and cloud.calls() == []


@pytest.mark.parametrize(
    "script, arguments, says",
    [
        ("create.sh", ("tulu", "--zone", ZONE), "which type? give --type, such as v5p-8"),
        ("create.sh", ("tulu", "--zone", ZONE, "--type", "v5e-17"), "topology 'v5e-17': no slice has 17 chips"),
        ("create.sh", ("tulu", "--zone", ZONE, "--type", "tpu7x:4x4x4"), "Google's Cloud TPU API has no tpu7x"),
        ("create.sh", ("tulu", "--type", "v5p-8"), "in which zone is tulu? give --zone"),
        ("create.sh", ("tulu", "--type", "v5p-8", "--zone", "us east"), "'us east' is no zone"),
        ("create.sh", ("tulu", *CREATE, "--spot", "--reserved"), "give one of --spot, --reserved and --reservation"),
        ("create.sh", ("tulu", *CREATE, "--wait", "soon"), "--wait must be a number, not soon"),
        ("create.sh", ("tulu", "--typ", "v5p-8"), "unknown option --typ (see create.sh --help)"),
        ("create.sh", ("tulu", "--type"), "--type needs a value"),
        ("setup.sh", ("tulu", "--zone", ZONE, "--mount", "bucket"), "--mount must be gs://BUCKET or HOST:/SHARE"),
        ("launch.sh", ("tulu", "--zone", ZONE), "which recipe? write it after --"),
        (
            "launch.sh",
            ("tulu", "recipes/quickstart.py"),
            "unexpected recipes/quickstart.py; the pod's name comes first",
        ),
        ("launch.sh", ("tulu", "--zone", ZONE, "--", "recipes/quickstart.py"), "there is no pod tulu in us-east5-a"),
        ("supervise.sh", ("tulu", "--zone", ZONE, "--", "r.py"), "there is no such pod; create it with"),
        ("supervise.sh", ("tulu", "--zone", ZONE, "--failures", "x", "--", "r.py"), "--failures must be a number"),
        ("logs.sh", ("tulu", "--zone", ZONE, "--worker", "x"), "--worker must be a number or all, not x"),
        ("stop.sh", ("tulu", "--zone", ZONE, "--job", "../x"), "job name ../x must be usable as the name of a folder"),
        ("cost.sh", ("tulu", "--zone", ZONE), "there is no pod tulu in us-east5-a; nothing costs"),
        ("cost.sh", ("--type", "v3-8"), "has no on-demand price for v3"),
    ],
)
def test_what_a_user_gets_wrong_ends_in_one_line(script, arguments, says, cloud):
    said = cloud.run(script, *arguments)
    assert said.status == 2 and says in said.line and changing(cloud.calls()) == []


def test_without_gcloud_it_is_told_where_to_get_it(cloud, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("bash", "mktemp", "rm", "dirname", "basename", "awk"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    said = cloud.run("status.sh", "tulu", "--zone", ZONE, PATH=str(tmp_path / "bin"))
    assert said.status == 2 and said.line.startswith("gcloud is not on the PATH; install the Google Cloud CLI")


def test_a_pod_is_created_once_and_deleted_once(cloud):
    cloud.works("create.sh", "tulu", *CREATE, "--spot", "--labels", "team=it's")
    (call,) = [words for words in cloud.calls() if "create" in words]
    assert call[:5] == ["compute", "tpus", "queued-resources", "create", "tulu"]
    assert set(call[5:]) == {
        f"--zone={ZONE}", "--accelerator-type=v5p-16", "--runtime-version=v2-alpha-tpuv5", "--node-id=tulu", "--spot",
        "--valid-until-duration=900s", "--quiet", "--labels=team=it's",
    }  # fmt: skip
    again = cloud.works("create.sh", "tulu")  # it is there, so nothing is asked for
    assert "tulu is ready" in again.err and changing(cloud.calls()) == ["queued-resources create"]
    other = cloud.run("create.sh", "tulu", "--type", "v5e-16", "--zone", ZONE)
    assert other.status == 2 and other.line == "tulu exists already and is a v5p-16, not a v5litepod-16"
    assert "tulu is deleted" in cloud.works("delete.sh", "tulu").err and cloud.nothing_left()
    assert "there is no pod tulu" in cloud.works("delete.sh", "tulu", "--zone", ZONE).err


def test_reservations_are_asked_for_as_gcloud_wants_them(cloud):
    cloud.works("create.sh", "a", *CREATE, "--reserved")
    cloud.works("create.sh", "b", *CREATE, "--reservation", "ours")
    first, second = (words for words in cloud.calls() if "create" in words)
    assert "--reserved" in first and "alpha" not in first
    assert second[0] == "alpha" and "--reservation=ours" in second


def test_zones_are_tried_in_turn_and_a_request_that_is_not_granted_is_withdrawn(cloud):
    cloud.goes_wrong(full=[ZONE])
    said = cloud.works("create.sh", "tulu", *CREATE, "--zone", f"{ZONE},{OTHER_ZONE}", "--wait", "1")
    assert (
        f"create: {ZONE}: no capacity within 1 s" in said.err or f"create: {ZONE}: the request was FAILED" in said.err
    )
    assert f"tulu is ready in {OTHER_ZONE}" in said.err
    assert changing(cloud.calls()) == ["queued-resources create", "queued-resources delete", "queued-resources create"]
    assert "READY" in cloud.works("status.sh", "tulu").out  # the zone is remembered


def test_no_capacity_anywhere_is_one_line_and_leaves_no_request(cloud):
    cloud.goes_wrong(full=[ZONE, OTHER_ZONE])
    zones = ("--zone", f"{ZONE},{OTHER_ZONE}", "--wait", "0", "--rounds", "2", "--pause", "0.01")
    said = cloud.run("create.sh", "tulu", *CREATE, *zones)
    assert said.status == 69 and said.line.startswith(f"no zone has v5p-16 now ({ZONE}: ")
    assert verbs(cloud.calls()).count("queued-resources create") == 4 and cloud.nothing_left()


@pytest.mark.parametrize(
    "fault, says",
    [
        ({"no_quota": [ZONE]}, "no zone grants v5p-16 to this project (us-east5-a: RESOURCE_EXHAUSTED: Quota limit"),
        ({"no_permission": True}, "no zone grants v5p-16 to this project (us-east5-a: PERMISSION_DENIED"),
    ],
)
def test_no_quota_and_no_permission_are_not_tried_again(fault, says, cloud):
    cloud.goes_wrong(**fault)
    said = cloud.run("create.sh", "tulu", *CREATE)
    assert said.status == 2 and said.line.startswith(says) and "ask for quota" in said.line
    assert verbs(cloud.calls()).count("queued-resources create") == 1 and cloud.nothing_left()


def test_ctrl_c_while_waiting_withdraws_the_request(cloud):
    cloud.goes_wrong(full=[ZONE])
    process = cloud.start("create.sh", "tulu", *CREATE)
    end = time.monotonic() + 60
    while "queued-resources create" not in verbs(cloud.calls()):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"withdrawing the request in {ZONE}" in err
    assert cloud.nothing_left()


def test_a_preempted_pod_is_created_again_with_its_options_where_there_is_room(cloud):
    cloud.works("create.sh", "tulu", *CREATE, "--zone", f"{ZONE},{OTHER_ZONE}", "--spot")
    cloud.preempt("tulu")
    assert "PREEMPTED" in cloud.works("status.sh", "tulu").out
    cloud.goes_wrong(full=[ZONE])
    said = cloud.works("create.sh", "tulu", "--wait", "0")
    assert "removing tulu, which is PREEMPTED" in said.err
    cloud.works("delete.sh", "tulu")
    assert cloud.nothing_left()


def test_a_delete_that_fails_says_that_the_pod_may_still_cost(cloud):
    cloud.works("create.sh", "tulu", *CREATE)
    cloud.goes_wrong(no_delete=True)
    said = cloud.run("delete.sh", "tulu")
    assert said.status == 75 and said.line.startswith("tulu is not deleted and may still cost: UNAVAILABLE")
    cloud.goes_wrong()
    cloud.works("delete.sh", "tulu")
    assert cloud.nothing_left()


@pytest.fixture
def ready(cloud, tmp_path):
    """A pod of two workers with a small project on it, whose folder has a name that needs quotes."""
    code = small_project(tmp_path / "it's a project")
    cloud.works("create.sh", "tulu", *CREATE)
    cloud.works("setup.sh", "tulu", "--code", code)
    return cloud, code


def test_a_job_runs_with_odd_arguments_is_shown_and_stopped(ready):
    cloud, _ = ready
    odd = ["my recipe's.py", 'a="b c"', "$HOME", "sleep"]
    job = ("--job", "it's mine")
    cloud.works("launch.sh", "tulu", *job, "--", *odd)
    for number in (0, 1):
        said = cloud.works("logs.sh", "tulu", *job, "--worker", number).out
        assert repr(["run", *odd, "--out", f"{cloud.home('tulu', number)}/easylm/shared/runs"]) in said
        assert "v5p-16" in said
    assert cloud.works("status.sh", "tulu", *job).out.count("running") == 2
    twice = cloud.run("launch.sh", "tulu", *job, "--", "r.py")
    assert twice.status == 2 and "is running already on worker 0 1 of tulu; stop it with stop.sh" in twice.line
    cloud.works("stop.sh", "tulu", *job)
    report = json.loads(cloud.works("status.sh", "tulu", *job, "--json").out)
    assert [(one["state"], one["status"], one["asked_to_stop"]) for one in report["workers"]] == [
        ("ended", -15, True)
    ] * 2
    cloud.works("delete.sh", "tulu")
    assert cloud.nothing_left()


def test_logs_of_all_workers_are_shown_and_fetched(ready, tmp_path):
    cloud, _ = ready
    cloud.works("launch.sh", "tulu", "--", "r.py", "--out", "/elsewhere")
    said = cloud.works("logs.sh", "tulu", "--worker", "all", "--lines", 2).out
    line = "['run', 'r.py', '--out', '/elsewhere'] v5p-16"
    assert said.splitlines()[::2] == [f"[worker 0] {line}", f"[worker 1] {line}"]
    cloud.works("logs.sh", "tulu", "--fetch", tmp_path / "all logs")
    assert [line in (tmp_path / "all logs" / f"worker-{i}.txt").read_text() for i in (0, 1)] == [True, True]
    said = cloud.run("logs.sh", "tulu", "--job", "other")
    assert said.status == 2 and said.line == "worker 0: no job other was started here"


def test_a_recipe_that_fails_at_once_is_told_with_the_workers_own_words(ready):
    cloud, _ = ready
    said = cloud.run("launch.sh", "tulu", "--", "wrong")
    assert said.status == 2 and said.line == "worker 0: no such data"


def test_a_disk_that_is_full_on_one_worker_leaves_nothing_running(ready):
    cloud, _ = ready
    cloud.job("tulu", 1).mkdir(parents=True)
    (cloud.job("tulu", 1) / "log.txt").symlink_to("/dev/full")
    said = cloud.run("launch.sh", "tulu", "--", "sleep")
    assert said.status == 2 and re.match(r"worker 1: cannot write \S+/jobs/run: No space left on device", said.line)
    assert cloud.processes() == []


def test_a_worker_that_refuses_ssh_leaves_nothing_running(ready):
    cloud, code = ready
    cloud.goes_wrong(ssh_refused={f"{ZONE}/tulu": [1]})
    for script, arguments in (("launch.sh", ("--", "sleep")), ("sync.sh", ("--code", code)), ("stop.sh", ())):
        said = cloud.run(script, "tulu", *arguments)
        assert said.status == 75 and "return code [255]" in said.line, (script, said)
    report = json.loads(cloud.works("status.sh", "tulu", "--json").out)
    assert report["pod"] == "READY" and report["workers"][0] and report["workers"][1] is None
    assert cloud.processes() == []


def test_a_pod_that_is_not_set_up_says_so(cloud):
    cloud.works("create.sh", "tulu", *CREATE)
    said = cloud.run("launch.sh", "tulu", "--", "recipes/quickstart.py")
    assert said.status == 2 and said.line == "worker 0: this worker is not set up; run tpu_scripts/setup.sh"


def test_setup_can_be_run_again_and_says_what_fails_on_a_worker(ready):
    cloud, code = ready
    environment = cloud.home("tulu", 0) / "easylm" / "venv" / ".easylm-setup"
    before = environment.stat().st_mtime_ns
    cloud.works("setup.sh", "tulu", "--code", code)
    assert environment.stat().st_mtime_ns == before  # nothing was installed again
    (code / "requirements.txt").write_text("jax==0\n")
    (cloud.home("tulu", 1).parent / "no_internet").touch()
    said = cloud.run("setup.sh", "tulu", "--code", code)
    assert said.status == 2 and said.line == "worker 1: the packages could not be installed: uv says why above"


def test_sync_replaces_the_code_of_the_next_job_and_keeps_that_of_a_running_one(ready):
    cloud, code = ready
    cloud.works("launch.sh", "tulu", "--", "sleep")
    old = os.readlink(f"/proc/{cloud.pid('tulu', 0)}/cwd")
    (code / "easylm_jax" / "new file.py").write_text("")
    cloud.works("sync.sh", "tulu", "--code", code)
    assert (cloud.home("tulu", 1) / "easylm/code/easylm_jax/new file.py").is_file()
    assert Path(old).is_dir() and not (Path(old) / "easylm_jax/new file.py").exists()


def test_supervise_sees_a_run_to_its_end_and_reports_what_the_user_has_to_fix(ready):
    cloud, _ = ready
    quick = ("--poll", "0.1", "--pause", "0.1", "--leave", "0.1")
    done = cloud.works("supervise.sh", "tulu", *quick, "--", "r.py")
    assert "finished after 0 restarts" in done.err
    wrong = cloud.run("supervise.sh", "tulu", *quick, "--", "wrong")
    assert wrong.status == 2 and wrong.line == "worker 0: no such data"


def test_cost_is_that_of_the_chips_since_the_pod_was_created(cloud, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text(
        json.dumps({"date": "2030-01-01", "currency": "EUR", "chips": {"v5p": {"on_demand": 2, "spot": 1}}})
    )
    cloud.works("create.sh", "tulu", *CREATE, "--spot")
    with cloud.state() as value:
        value["nodes"][f"{ZONE}/tulu"]["createTime"] = "2020-01-01T00:00:00.123456789Z"
    first, second = cloud.works("cost.sh", "tulu", "--prices", prices).out.splitlines()
    assert first.startswith("v5p:2x2x2: 8 chips, EUR 8.00 an hour spot (prices of 2030-01-01")
    hours, total = re.search(r"since it was created ([\d,.]+) hours: EUR ([\d,.]+)", second).groups()
    assert float(total.replace(",", "")) == pytest.approx(8 * float(hours.replace(",", "")), abs=1)
    said = cloud.works("cost.sh", "--type", "v5p-128", "--hours", 24, EASYLM_PRICES=str(prices)).out
    assert "64 chips, EUR 128.00 an hour on-demand" in said and "in 24.0 hours: EUR 3,072.00" in said


def test_the_projects_prices_are_dated_and_name_their_source():
    value = json.loads(cost.DEFAULT.read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", value["date"]) and "https://" in value["source"]
    assert set(value["chips"]) == set(CHIPS)
    assert read_prices().hourly(topology.parse("v5p-128")) == 64 * value["chips"]["v5p"]["on_demand"]
    with pytest.raises(UserError, match="has no spot price for v5p: look it up"):
        read_prices().hourly(topology.parse("v5p-128"), "spot")


@pytest.mark.parametrize(
    "text, says",
    [("{", "has not the form"), ('{"date": 1, "currency": "USD", "chips": {"v4": {"spot": -1}}}', r"v4.spot is -1")],
)
def test_a_file_of_prices_that_is_wrong_is_told(text, says, tmp_path):
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read_prices(str(tmp_path / "prices.json"))
    with pytest.raises(UserError, match="cannot read the prices of .*: No such file"):
        read_prices(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    "pod, accelerator",
    [
        ("v5p-128", "v5p-128"),
        ("v5p:4x4x4", "v5p-128"),
        ("v5e:4x4", "v5litepod-16"),
        ("v6e-8", "v6e-8"),
        ("v4-8", "v4-8"),
    ],
)
def test_pods_have_google_clouds_names(pod, accelerator):
    parsed = topology.parse(pod)
    assert cloud_names(parsed) == (accelerator, CLOUD_NAMES[parsed.chip.name][1])
    assert topology.parse(accelerator) == parsed
