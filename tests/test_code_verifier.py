"""Programs against tests: right ones pass, wrong ones fail, and hostile ones neither get out nor talk themselves in."""

import concurrent.futures
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easylm_jax.rewards import code as verifiers
from easylm_jax.rewards import verifier
from easylm_jax.rewards.code import plain, sandbox
from models.errors import UserError

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="programs are only run on Linux")
ROOT = Path(__file__).parents[1]
TESTS = ["assert f(1) == 2", "assert f(2) == 4", "assert f(3) == 6"]


@pytest.fixture(autouse=True)
def asked_for(monkeypatch):
    monkeypatch.setenv("EASYLM_RUN_CODE", "1")


def block(program):
    return f"Here:\n```python\n{program}\n```\n"


def code(program, tests=TESTS, **more):
    return verifiers.code(block(program), {"ground_truth": tests}, **more)


def stdio(program, *pairs, **more):
    tests = [{"input": given, "output": wanted} for given, wanted in pairs]
    return verifiers.code_stdio(block(program), {"ground_truth": tests}, **more)


def passed(program, *tests, layers=sandbox.LAYERS, seconds=1):
    return sandbox.run(program, tests, kind="assert", seconds=seconds, layers=layers).verdicts


# What is right passes, what is wrong fails


def test_the_share_of_passed_tests_is_the_score():
    assert code("def f(x):\n    return 2 * x") == 1.0
    assert code("def f(x):\n    return x + 1") == pytest.approx(1 / 3)
    assert code("def f(x):\n    return x + 1", threshold=0.5) == 0.0
    assert code("def f(x):\n    return 2 * x", json.dumps(TESTS)) == 1.0
    for wrong in (
        "def f(x:",
        "def g(x):\n    return 2 * x",
        "raise ValueError",
        "1 / 0\ndef f(x):\n    return 2 * x",
        "",
    ):
        assert code(wrong) == 0.0
    assert verifier("code(threshold=0.9, seconds=2)")(block("f = lambda x: 2 * x"), {"ground_truth": TESTS}) == 1.0


def test_odd_programs_fail_and_nothing_more():
    odd = [
        "x = '\ud800'",
        "\x00",
        "(" * 100_000,
        "x = " + "-" * 100_000 + "1",
        "9" * 100_000,
        "x" * (2 << 20),
        "\r",
        "é = (",
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: code(one, TESTS[:1]), odd)) == [0.0] * len(odd)
        assert list(pool.map(lambda one: stdio(one, ("", "1")), odd)) == [0.0] * len(odd)


def test_the_last_block_is_the_program():
    assert verifiers.last_block("a ```python\nx = 1\n``` b ```\ny = 2\n``` c") == "y = 2"
    assert verifiers.last_block("```py\nx = 1\n``` and ```python\ncut of") == "x = 1"
    assert verifiers.last_block("```python x = 1```") == "x = 1"
    assert verifiers.last_block("```x = 1```") == "x = 1"
    assert verifiers.last_block("x = 1") == "x = 1"
    assert verifiers.last_block("```python\ncut of") == "```python\ncut of"


ALL_SORTS = """
import math, collections, dataclasses, itertools
from typing import List
from functools import lru_cache

def same(x): return x
def add(*a, k=0, **b): return builtin_sum(a) + k + builtin_sum(b.values())
builtin_sum = sum
def sum(a, b): return a * 10 + b
def naturals():
    yield from itertools.count()
def in_place(xs): xs.append(len(xs)); xs.sort()
def twice(g, x): return g(g(x))
def fails(x): raise ValueError(f"no {x}")
def half(x): return x / 2
@lru_cache(None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x); return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __str__(self): return "Stack" + str(self.items)
class Solution:
    def up(self, nums: List[int]) -> List[int]: return sorted(nums)
@dataclasses.dataclass(frozen=True, order=True)
class Point:
    x: int
    y: int = 0
Row = collections.namedtuple("Row", "a b")
"""


@pytest.mark.parametrize(
    "test",
    [
        "for x in (None, True, 3, -(10 ** 5000), 2.5, float('inf'), 'é\\ud800', b'\\x00', [1, [2]], (1,), {1: {2}},\n"
        "          {3}, frozenset({4}), 1 + 2j, range(3), bytearray(b'a')):\n"
        "    assert same(x) == x and type(same(x)) is type(x)",
        "assert math.isnan(same(float('nan'))) and math.isclose(half(3), 1.5, rel_tol=1e-9)",
        "assert add(1, 2, k=3, z=4) == 10",
        "assert sum(1, 2) == 12",
        "assert sum([half(2), half(4)]) == 3",
        "for n in range(3):\n    assert sum(n, 1) == 10 * n + 1",
        "g = naturals()\nassert [next(g), next(g)] == [0, 1]\nfrom itertools import islice\n"
        "assert list(islice(naturals(), 4)) == [0, 1, 2, 3]",
        "xs = [3, 1]\nin_place(xs)\nassert xs == [1, 2, 3]",
        "assert twice(lambda x: x * 3, 1) == 9",
        "try:\n    fails(3)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'no 3'",
        "assert fib(80) == 23416728348467685",
        "s = Stack()\ns.push(1).push(2)\nassert s.pop() == 2 and len(s) == 1\n"
        "assert str(s) == 'Stack[1]' and s.items == [1]",
        "assert Solution().up([2, 1]) == [1, 2]",
        "assert Point(1) == Point(1) and Point(1) != Point(2) and Point(1) < Point(2) and Point(3).x == 3",
        "assert isinstance(same(Point(1)), Point) and not isinstance(3, Point)",
        "assert Row(1, 2) == (1, 2) and Row(1, 2).b == 2",
        "assert collections.Counter(same('aab')) == {'a': 2, 'b': 1}",
        "assert all(same(x) == x for x in range(5))",
        "def check(candidate):\n    assert candidate(3) == 3\n    assert candidate([]) == []\ncheck(same)",
        "import random\nassert same(random.Random(0).random()) == random.Random(0).random()",
        "assert {**same({'a': 1})} == {'a': 1} and sorted(same({'b': 1, 'a': 2}).keys()) == ['a', 'b']",
    ],
)  # fmt: skip
def test_tests_of_all_sorts_work_through_the_channel(test):
    assert passed(ALL_SORTS, test) == [True]


def test_a_program_that_redefines_built_ins_does_not_judge_its_own_results():
    program = "def abs(x): return 0\ndef all(x): return True\ndef len(x): return 3\ndef f(x): return None\n"
    tests = (
        "assert abs(f(2) - 4) < 1e-6",
        "x = f(2)\nassert abs(x - 4) < 1e-6",
        "assert all([f(2) == 4, f(3) == 6])",
        "def check(g):\n    y = g(2)\n    assert len(y) == 3\ncheck(f)",
        "xs = [1]\nf(xs)\nassert len(xs) == 3",
        "assert [len(y) for y in [f(1)]] == [3]",
    )
    assert passed(program, *tests, "assert len([]) == 3") == [False] * 6 + [True]


def test_tests_do_not_see_each_other():
    program = "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)"
    assert passed(program, "assert f(0) == 1", "assert f(0) == 1", "assert f(0) == f(0) - 1") == [True, True, True]


def test_standard_input_and_output_are_compared_as_lines_and_numbers():
    twice = "n = int(input())\nprint(2 * n)"
    assert stdio(twice, ("2\n", "4\n"), ("5", " 10 ")) == 1.0
    assert stdio(twice, ("2", "4"), ("5", "11"), ("x", "0")) == pytest.approx(1 / 3)
    assert stdio("import sys\nfor line in sys.stdin: print(line.strip(), 1.50)", ("a\nb", "a 1.5\nb 1.5")) == 1.0
    assert stdio("print('1.50 2')", ("", "1.5 2.0")) == 1.0
    assert stdio("print('1.50 a')", ("", "1.5 a")) == 0.0
    assert stdio("print(1)\nraise SystemExit", ("", "1")) == stdio("print(1)\nexit()", ("", "1")) == 1.0
    assert stdio("print(1)\nexit(3)", ("", "1")) == stdio("print(1)\n1 / 0", ("", "1")) == 0.0
    assert stdio("if __name__ == '__main__':\n    print('é' * 3)", ("", "ééé")) == 1.0
    deep = "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
    deep += (
        "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(20000)))\nt.start()\nt.join()"
    )
    assert stdio(deep, ("", "20000")) == 1.0
    assert stdio("print(input())", ("\ud800", "?")) == 1.0


def test_outputs_of_odd_numbers_are_compared():
    assert verifiers.same_output("1e999999999", "1E+999999999")
    assert not verifiers.same_output("nan", "NaN") and not verifiers.same_output("sNaN", "snan")
    assert not verifiers.same_output("1\n2", "1 2") and verifiers.same_output("\n 1 \n", "1")


# It is off unless asked for, and told what is wrong


def test_nothing_runs_unless_it_is_asked_for(monkeypatch):
    monkeypatch.delenv("EASYLM_RUN_CODE")
    for name, tests in (("code", TESTS), ("code_stdio", [{"input": "", "output": ""}])):
        with pytest.raises(UserError, match="running programs is off; set EASYLM_RUN_CODE=1"):
            verifier(name)(block("f = 1"), {"ground_truth": tests})


def test_where_a_program_cannot_be_shut_in_none_runs():
    with pytest.raises(UserError, match="programs cannot be isolated on this machine, so none is run: no layer"):
        passed("f = 1", "assert True", layers=())


@pytest.mark.parametrize("label", ["assert f(1) == 2", [], [1], {"a": 1}, 3, "gASVCgAAAAAAAABdlEsBYS4="])
def test_a_label_that_is_no_list_of_tests_is_told(label):
    with pytest.raises(UserError, match="the tests must be a list"):
        code("f = 1", label)


def test_options_out_of_range_are_told():
    for seconds in (0, -1, 1000, "1", True):
        with pytest.raises(UserError, match="seconds must be above 0"):
            code("f = 1", seconds=seconds)
    with pytest.raises(UserError, match="has no output"):
        verifiers.code_stdio("x", {"ground_truth": [{"input": "1"}]})


# Hostile programs


@pytest.fixture(params=[("namespaces", "landlock"), ("namespaces",), ("landlock",)], ids="+".join)
def layers(request):
    """Each layer that keeps files and processes out of reach has to hold alone."""
    try:
        has = sandbox.run("", ["pass"], kind="assert", seconds=1, layers=request.param).layers
    except UserError as error:
        pytest.skip(f"this kernel or container does not allow {request.param}: {error}")
    if not set(request.param) <= set(has):
        pytest.skip(f"this kernel or container only allows {has}")
    return request.param


def attempts(bodies):
    """A program whose `f()` gives the numbers of those bodies that neither raised OSError nor found nothing there."""
    parts = ["def f():\n    out = []"]
    for number, body in enumerate(bodies):
        lines = "\n".join(f"        {line}" for line in body.splitlines())
        parts.append(
            f"    try:\n{lines}\n        out.append({number})\n    except (OSError, ImportError, ValueError): pass"
        )
    return "\n".join([*parts, "    return out"])


ATTEMPTS = {
    "reads passwords": "open('/etc/passwd').read()",
    "reads the repository": f"open({str(ROOT / 'pyproject.toml')!r}).read()",
    "lists the repository": f"import os; os.listdir({str(ROOT)!r})",
    "reads the home": "import os; os.listdir(os.path.expanduser('~root'))",
    "lists the root's folders": "import os; os.listdir('/home'); os.listdir('/etc')",
    "reads another process": "open('/proc/1/environ').read()",
    "reads its own memory": "open('/proc/self/mem', 'rb')",
    "writes here": "open('x', 'w')",
    "writes outside": f"open({str(ROOT / 'written')!r}, 'w')",
    "writes to /tmp": "open('/tmp/easylm-written', 'w')",
    "writes shared memory": "open('/dev/shm/easylm-written', 'w')",
    "makes a folder": "import os; os.mkdir('folder')",
    "makes a temporary file": "import tempfile; tempfile.TemporaryFile()",
    "changes Python": "import os; open(os.__file__, 'a')",
    "deletes": f"import os; os.unlink({str(ROOT / 'pyproject.toml')!r})",
    "renames": f"import os; os.rename({str(ROOT / 'pyproject.toml')!r}, {str(ROOT / 'other')!r})",
    "changes rights": f"import os; os.chmod({str(ROOT / 'pyproject.toml')!r}, 0o777)",
    "opens TCP": "import socket; socket.socket().connect(('127.0.0.1', 22))",
    "opens UDP": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
    "opens a unix socket": "import socket; socket.socket(socket.AF_UNIX)",
    "opens a pair": "import socket; socket.socketpair()",
    "forks": "import os; os.fork()",
    "starts a program": "import subprocess; subprocess.run(['/bin/true'])",
    "runs a shell": "import os; pid = os.posix_spawn('/bin/sh', ['sh'], {})",
    "becomes a program": "import os, sys; os.execv(sys.executable, ['python'])",
    "uses processes": "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
    "kills its parent": "import os; os.kill(os.getppid(), 9)",
    "kills all": "import os; os.kill(-1, 9)",
    "kills its group": "import os; os.killpg(0, 9)",
    "leaves its session": "import os; os.setsid()",
    "becomes root": "import os; os.setuid(0); os.chroot('/')",
    "raises its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "limits its parent": "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "waits for events of files": "import ctypes; n = ctypes.CDLL(None, use_errno=True).inotify_init()\n"
    "if n < 0: raise OSError",
}  # fmt: skip
for _name, _call in {
    "traces": "ptrace(16, 1, 0, 0)", "mounts": "mount(b'none', b'/', None, 1 << 18, None)",
    "unshares": "unshare(0x10000000)", "execs": "execv(b'/bin/true', (ctypes.c_char_p * 2)(b'true', None))",
    "forks raw": "syscall(57)", "vforks raw": "syscall(58)", "clones raw": "syscall(56, 17, 0, 0, 0, 0)",
    "clones into namespaces": "syscall(56, 0x10000000 | 0x10000 | 0x800 | 0x100, 0, 0, 0, 0)",
    "clones anew": "syscall(435, 0, 0)", "reads memory of another": "process_vm_readv(1, None, 0, None, 0, 0)",
    "takes a descriptor": "syscall(438, 3, 1, 0)", "opens a process": "syscall(434, 1, 0)",
    "rings": "syscall(425, 1, 0)", "loads a program": "syscall(321, 0, 0, 0)", "watches": "syscall(298, 0, 0, 0, 0, 0)",
    "keeps keys": "syscall(250, 0, 0, 0, 0, 0)", "uses the other table": "syscall(0x40000000 + 41, 2, 1, 0)",
    "takes capabilities": "syscall(126, 0, 0)", "makes memory a program": "memfd_create(b'x', 0)",
    "shares memory": "shmget(1, 4096, 0o1600)", "sends to a signal owner": "fcntl(0, 8, 1)",
    "types into the terminal": "ioctl(0, 0x5412, b'x')", "chroots": "chroot(b'/')",
}.items():  # fmt: skip
    ATTEMPTS[_name] = (
        f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.{_call} < 0: raise OSError('denied')"
    )
RAW_X86 = {
    "forks raw", "vforks raw", "clones raw", "clones into namespaces", "watches", "keeps keys", "loads a program",
    "uses the other table", "takes capabilities",
}  # fmt: skip


def test_no_attempt_gets_out(layers):
    before = processes()
    names = [name for name in ATTEMPTS if name not in RAW_X86 or platform.machine() == "x86_64"]
    allowed = "import os; open(os.__file__).read()"  # what is allowed is told, so that what is not would be, too
    program = attempts([*(ATTEMPTS[name] for name in names), allowed])
    if passed(program, f"assert f() == [{len(names)}]", layers=layers, seconds=5) != [True]:
        tests = [f"assert {number} not in f()" for number in range(len(names))]
        verdicts = passed(program, *tests, layers=layers, seconds=5)
        pytest.fail(f"got out: {[name for name, verdict in zip(names, verdicts, strict=True) if not verdict]}")
    for left in (ROOT / "written", Path("/tmp/easylm-written"), Path("/dev/shm/easylm-written"), ROOT / "other"):
        assert not left.exists()
    assert (ROOT / "pyproject.toml").exists()
    assert processes() == before


HOSTILE = {
    "exhausts memory": "def f(x):\n    return bytearray(1 << 40) and [b'x' * (1 << 30) for _ in range(64)]",
    "fills memory": "def f(x):\n    xs = []\n    while True: xs.append(bytearray(1 << 26))",
    "loops": "def f(x):\n    while True: pass",
    "loops at once": "while True: pass",
    "sleeps": "import time\ntime.sleep(60)",
    "ignores signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "prints without end": "while True: print('x' * 10000)",
    "writes to the channel": "import os\nfor n in range(3, 20):\n"
    "    try: os.write(n, b'[\"loaded\", [\"f\"]]\\n' * 100)\n"
    "    except OSError: pass\ndef f(x): return 2 * x if x == 9 else 0",
    "floods the channel": "import os\nwhile True: os.write(3, b'x' * 65536)",
    "recurses": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)\nf(1)",
    "recurses in C": "import sys\nsys.setrecursionlimit(10 ** 9)\nx = []\nfor _ in range(10 ** 6): x = [x]\n"
    "def f(_): return x",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "starts threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "ends well": "import os\nos._exit(0)",
    "says it is done": "raise SystemExit(0)",
    "ends when called": "import os\ndef f(x): os._exit(0)",
    "prints verdicts": "print('{\"passed\": true}\\n' * 3, flush=True)\nimport os\n"
    "for n in range(3):\n    os.write(n, b'1') if n else None",
    "equals everything": "class Yes:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    "    def __sub__(self, other): return 0\n    __rsub__ = __sub__\ndef f(x): return Yes()",
    "derives a number": "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    "def f(x): return Yes(0)",
    "patches the built-ins": "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\n"
    "builtins.abs = builtins.bool = lambda *a: True\ndef f(x): return None",
    "changes modules": "import sys\nsys.modules['operator'] = sys.modules['json'] = sys.modules['easylm_jax'] = None\n"
    "def f(x): return None",
    "looks for its tests": "import gc, re, sys\ndef f(x):\n"
    "    is_test = re.compile(r'assert f\\S+ == \\d').search\n"
    "    seen = [o for o in gc.get_objects() if type(o) in (dict, list, tuple) and is_test(repr(o))]\n"
    "    frame = sys._getframe()\n    while frame:\n"
    "        seen += [1 for value in list(frame.f_locals.values()) if is_test(repr(value))]\n"
    "        frame = frame.f_back\n    return 2 * x if seen else None",
    "answers by itself": "import sys\nframe = sys._getframe()\nwhile frame:\n"
    "    own = frame.f_locals.get('self')\n    if own is not None:\n"
    "        type(own)._call = lambda self, *a: [True, [None]]\n        type(own)._both = lambda self, *a: [True]\n"
    "    frame = frame.f_back\ndef f(x): return 0",
    "unpickles": "class P:\n    def __reduce__(self):\n        return (print, ('out',))\ndef f(x): return P()",
}  # fmt: skip


def test_hostile_programs_are_fails_and_nothing_more():
    before = processes()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # most of them wait for their end
        found = list(pool.map(lambda program: passed(program, TESTS[0], seconds=0.2), HOSTILE.values()))
    assert [name for name, verdict in zip(HOSTILE, found, strict=True) if verdict != [False]] == []
    assert processes() == before


def test_hostile_input_programs_are_fails_too():
    endless = "import sys\nwhile True: sys.stdout.write('x' * 100000)"
    silent = "import sys, time\nsys.stdout.close()\ntime.sleep(60)"
    closed = "import os\nprint(1, flush=True)\nos.close(1)\nwhile True: pass"
    odd = (endless, silent, closed, "import os\nprint(1)\nos._exit(0)", "import os\nprint(1)\nos.abort()")
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda program: stdio(program, ("", "1"), seconds=0.2), odd)) == [0.0] * 5
    assert processes() == {}


def test_a_bare_pass_of_the_test_needs_the_program():
    assert passed("", "assert True") == [True]
    assert passed("1 / 0", "assert True") == [False]


def test_programs_see_no_environment_and_no_packages(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    program = "import os\ndef f(): return dict(os.environ)\ndef g():\n    import numpy"
    tests = "assert f() == {}", "try:\n    g()\n    assert False\nexcept ImportError: pass"
    assert passed(program, *tests) == [True, True]


def test_it_works_from_threads():
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: code(f"def f(x):\n    return x * {n}"), [2, 3, 2, 0])) == [1.0, 0.0, 1.0, 0.0]


def test_it_works_in_a_worker_of_the_pool():
    from easylm_jax.rewards.pool import Pool
    from easylm_jax.rewards.verify import LOOKUP

    records = [{"ground_truth": TESTS}] * 2
    with Pool(workers=1, seconds=60, lookup=LOOKUP) as pool:
        found = pool.verdicts(["code"], [block("f = lambda x: 2 * x"), block("import os\nos._exit(0)")], records)
    assert found.values.tolist() == [[1.0], [0.0]] and not found.timed_out.any()


def test_killing_the_verifiers_process_leaves_no_program_behind():
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from easylm_jax.rewards.code import sandbox
print("begins", flush=True)
sandbox.run("import time, signal\\nsignal.signal(15, 1)\\ntime.sleep(300)", ["pass"] * 2, kind="assert", seconds=60)
"""
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert started.stdout.readline() == b"begins\n"
    until(lambda: len(processes()) >= 4)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    started.stdout.close()
    until(lambda: not processes())


def until(done):
    for _ in range(2000):
        if done():
            return
        time.sleep(0.01)
    raise AssertionError(f"still {processes()}")


def processes():
    """Processes of jails that are alive, by number."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line, state = (
                    (entry / "cmdline").read_bytes(),
                    (entry / "stat").read_text().rpartition(")")[2].split()[0],
                )
            except OSError:
                continue
            if b"rewards/code/jail.py" in line and state not in "ZX":
                found[entry.name] = line
    return found


# The data that cross

ANY_TEXT = st.text(st.characters(exclude_categories=()))
NUMBERS = st.integers() | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False) | st.fractions()
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.decimals(allow_nan=False) | st.binary() | ANY_TEXT,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_plain_data_cross_unchanged(value):
    def never(_):
        raise AssertionError

    sent = json.loads(json.dumps(plain.encode(value, never)))
    assert plain.decode(sent, never) == value
    assert type(plain.decode(sent, never)) is type(value)


PLAIN = (
    bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, deque, dict, range, Decimal, Fraction
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=20))
def test_data_that_nobody_encoded_are_an_error_or_plain(data):
    try:
        found = plain.decode(data, lambda number: number)
    except (ValueError, TypeError, LookupError, ArithmeticError):
        return
    assert found is None or isinstance(found, PLAIN)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_categories=())) | st.lists(st.sampled_from(["```", "python", "\n", "x"])).map("".join)
)
def test_any_response_has_a_block(response):
    assert isinstance(verifiers.last_block(response), str)
