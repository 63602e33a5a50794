import subprocess
import sys
import types
from pathlib import Path

import pytest

import easylm_jax
from easylm_jax.cli import main
from models.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
HEAVY = {"jax", "flax", "numpy", "tensorflow", "seqio", "torch", "transformers", "datasets", "orbax"}


def easylm(capsys, *arguments):
    status = main.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def command(monkeypatch):
    """Adds a command `try` that calls what the test gives it."""

    def add(action, add_arguments=lambda parser: None):
        module = types.SimpleNamespace(add_arguments=add_arguments, main=action)
        monkeypatch.setitem(sys.modules, "easylm_jax.cli.try", module)
        monkeypatch.setitem(main.COMMANDS, "try", main.Command("try", "easylm try"))

    return add


@pytest.fixture
def experiment(monkeypatch, tmp_path):
    """Records how `easylm run` calls the experiment, from a folder that holds recipes/quickstart.py."""
    calls = []

    def run(recipe, **options):
        calls.append((recipe, options))
        return 0

    fake = types.SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "easylm_jax.experiment", fake)
    monkeypatch.setattr(easylm_jax, "experiment", fake, raising=False)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "quickstart.py").touch()
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["convert", "--help"],
        ["data", "--help"],
        ["generate", "--help"],
        ["report", "--help"],
        ["check", "--help"],
        ["new", "--help"],
        ["fields", "GRPO.optimizer"],
        ["recipes"],
        ["rum"],
    ],
)
def test_help_and_usage_errors_import_nothing_heavy(arguments):
    code = (
        "import sys\nfrom easylm_jax.cli import main as cli\n"
        f"status = cli.main({arguments!r})\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert run.stderr.splitlines()[-1] == "[]"
    assert run.returncode == (2 if arguments == ["rum"] else 0)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command_and_an_example(capsys, arguments):
    status, out, err = easylm(capsys, *arguments)
    assert (status, err) == (0, "")
    assert all(f"  {name} " in out and command.summary in out for name, command in main.COMMANDS.items())
    assert "example: easylm run recipes/quickstart.py" in out


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_help_of_each_command_ends_in_its_example(capsys, name):
    status, out, _ = easylm(capsys, name, "--help")
    assert status == 0
    assert out.rstrip().endswith(f"example: {main.COMMANDS[name].example}")
    assert main.COMMANDS[name].example.startswith(f"easylm {name} ")


def test_run_passes_what_was_asked(capsys, experiment):
    status, _, err = easylm(
        capsys,
        "run",
        "recipes/quickstart.py",
        "sft.optimizer.lr=1e-5",
        "--only",
        "sft",
        "--out",
        "elsewhere",
        "sft.steps=-1",
    )
    assert (status, err) == (0, "")
    assert experiment == [
        (
            "recipes/quickstart.py",
            {
                "overrides": ["sft.optimizer.lr=1e-5", "sft.steps=-1"],
                "only": "sft",
                "out": "elsewhere",
                "overwrite": False,
                "list_stages": False,
                "show_config": False,
            },
        )
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["rum"], "no command 'rum'; did you mean 'run'? (see easylm --help)"),
        (
            ["zzz"],
            "no command 'zzz'; known: run, new, recipes, fields, data, checkpoints, convert, generate, "
            "serve, eval, plan, report, moderate, check (see easylm --help)",
        ),
        (
            ["run", "recipes/quickstart.py", "--overwite"],
            "unknown argument '--overwite'; did you mean '--overwrite'? (see easylm run --help)",
        ),
        (["run", "recipes/quickstart.py", "--zzz"], "unknown argument '--zzz' (see easylm run --help)"),
        (["run", "recipes/quikstart.py"], "no recipe at recipes/quikstart.py; did you mean 'recipes/quickstart.py'?"),
        (["run"], "the following arguments are required: RECIPE, FIELD=VALUE (see easylm run --help)"),
        (["run", "recipes/quickstart.py", "sft"], "'sft' is not FIELD=VALUE; write for example sft.optimizer.lr=1e-5"),
        (["run", "recipes/quickstart.py", "--only"], "argument --only: expected one argument (see easylm run --help)"),
        (
            ["convert", "a", "b", "--dtype", "float23"],
            "no dtype 'float23'; did you mean 'float32'? (see easylm convert --help)",
        ),
    ],
)
def test_mistake_in_the_command_line_is_one_line_that_helps(capsys, experiment, arguments, message):
    status, out, err = easylm(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err == f"easylm: error: {message}\n"
    assert experiment == []


def test_unknown_option_of_a_nested_command_gets_its_nearest_name(capsys, command):
    def add_arguments(parser):
        commands = parser.add_subparsers(dest="action", required=True)
        commands.add_parser("build").add_argument("--workers")
        commands.add_parser("inspect").add_argument("--rows")

    command(lambda arguments: 0, add_arguments)
    assert easylm(capsys, "try", "bild")[2].startswith("easylm: error: no action 'bild'; did you mean 'build'?")
    assert "'--worker'; did you mean '--workers'?" in easylm(capsys, "try", "build", "--worker", "1")[2]
    assert "'--workers'" not in easylm(capsys, "try", "inspect", "--worker", "1")[2].replace("'--worker'", "")


def test_user_error_is_one_line_and_status_2(capsys, command):
    def action(arguments):
        raise UserError("no file x.jsonl\n  give one that exists")

    command(action)
    assert easylm(capsys, "try") == (2, "", "easylm: error: no file x.jsonl give one that exists\n")


@pytest.mark.parametrize("arguments", [["--debug", "try"], ["try", "--debug"]])
def test_debug_adds_the_traceback(capsys, command, arguments):
    def action_that_fails(arguments):
        raise UserError("no file x.jsonl")

    command(action_that_fails)
    status, _, err = easylm(capsys, *arguments)
    assert status == 2
    assert "Traceback" in err and "action_that_fails" in err and err.endswith("easylm: error: no file x.jsonl\n")


def test_defect_of_the_program_keeps_its_traceback(command):
    def action(arguments):
        raise KeyError("a bug")

    command(action)
    with pytest.raises(KeyError):
        main.main(["try"])


def test_interrupt_is_one_line_and_status_130(capsys, command):
    def action(arguments):
        raise KeyboardInterrupt

    command(action)
    assert easylm(capsys, "try") == (130, "", "easylm: interrupted\n")


def test_status_of_the_command_is_the_exit_status(capsys, command):
    command(lambda arguments: 1)
    assert easylm(capsys, "try")[0] == 1
    command(lambda arguments: None)
    assert easylm(capsys, "try")[0] == 0


def test_reader_that_closes_the_pipe_ends_the_program_quietly():
    code = (
        "import sys, types\nfrom easylm_jax.cli import main as cli\n"
        "def talk(arguments):\n"
        "    for _ in range(100000): print('a line')\n"
        "sys.modules['easylm_jax.cli.try'] = types.SimpleNamespace(add_arguments=lambda parser: None, main=talk)\n"
        "cli.COMMANDS['try'] = cli.Command('try', 'easylm try')\n"
        "sys.exit(cli.main(['try']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


def test_an_argument_that_is_not_utf8_is_one_line(capsys):
    for arguments in (["run", "\udcff.py"], ["generate", "runs", "\udcc3"], ["\udcff"], ["check", "--json=\udcff"]):
        assert main.main(arguments) == 2
        err = capsys.readouterr().err
        assert "is not UTF-8 text" in err and err.isascii() and len(err.splitlines()) == 1
