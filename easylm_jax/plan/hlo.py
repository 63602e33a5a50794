"""Parses the HLO text of a compiled TPU program: cycles, kernels and collectives, multiplied by loop trip counts.

The compiler annotates every fusion and copy with estimated cycles, but its own totals count the body of a loop once,
count nothing for kernels and gathers of rows and leave out the network. So the text is parsed here: every instruction
is multiplied by the trip counts of the loops around it (the constant that the loop condition compares with).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+)$")
_OPCODE = re.compile(r"(?<=[\s})\]])([a-z][a-z0-9\-]*)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLS = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_INDEX = re.compile(r"index=(\d+)")
_CONSTANT = re.compile(r"[su]\d+\[\]\S* constant\((\d+)\)")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:mesh\[([^\]]*)\] \{([^}]*)\}|\[(\d+),(\d+)\]|\{\{([\d,]*)\})")
_NAME = re.compile(r'op_name="([^"]*)"')
_COST_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"?(\d+)"?[^}]*"bytes_accessed":"?(\d+)')
_NUMBER = re.compile(r"(\.(\d+|clone|remat\d*))+$")  # what the compiler appends to a name to make it unique
_UNKNOWN = 1 << 62  # from here on, `estimated_cycles` means that the compiler has no estimate
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Number of matrix products of causal attention in each splash kernel; the forward pass has two.
_UNITS = (("_dkv", 4), ("_dq", 3), ("_fwd", 2), ("splash", 2))


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective over `group` devices that runs `times` times; `bytes` is the size of its result on one device.
    `overlapped`: it is asynchronous, or part of a fusion that computes at the same time."""

    kind: str
    bytes: int
    group: int
    times: int
    overlapped: bool
    name: str

    @property
    def wire_bytes(self) -> float:
        """Bytes that one device sends for one run, with a ring algorithm."""
        share = (self.group - 1) / self.group if self.group > 1 else 0.0
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        if self.kind == "reduce-scatter":
            return share * self.bytes * self.group
        if self.kind == "collective-permute":
            return float(self.bytes)
        return share * self.bytes


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of one run of a program on one device. `cycles`: of everything but kernels; `copy_cycles`: the part of them
    in plain copies; `kernel_flops`: of attention kernels (causal, so half of the square); `matmul_flops`: of all other
    matrix products; `hottest`: (source location, cycles) of the most expensive operations; `kernel_runs`: how often
    each Pallas kernel runs, by the name that the compiled text gives it."""

    cycles: int
    copy_cycles: int
    kernel_flops: float
    matmul_flops: float
    collectives: tuple[Collective, ...]
    hottest: tuple[tuple[str, int], ...]
    kernels: tuple[tuple[float, float], ...] = ()  # (FLOPs, bytes) of each kernel or gather, over all its runs
    kernel_runs: tuple[tuple[str, int], ...] = ()

    def wire_bytes(self, overlapped: bool) -> float:
        """Bytes that one device sends in collectives that are overlapped, or that are not."""
        return sum(c.wire_bytes * c.times for c in self.collectives if c.overlapped is overlapped)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    text: str


class HloProgram:
    """A compiled HLO module, parsed into computations; `trip_count` is assumed for loops of unknown length."""

    def __init__(self, text: str, trip_count: int = 1):
        self.trip_count = trip_count
        self.computations: dict[str, list[_Instruction]] = {}
        self.threads: dict[str, str] = {}  # the core that runs a computation; "" for the main one
        self.entry = name = ""
        current: list[_Instruction] | None = None
        for line in text.splitlines():
            if current is None:
                found = _COMPUTATION.match(line)
                if found and "->" in line:
                    name = found[1]
                    current = self.computations.setdefault(name, [])
                    if line.startswith("ENTRY"):
                        self.entry = name
            elif line.rstrip() == "}" or line.startswith("}, execution_thread="):  # runs on the named core
                self.threads[name] = line.partition("execution_thread=")[2].strip(' "\n')
                current = None
            elif (found := _INSTRUCTION.match(line)) and (opcode := _OPCODE.search(f" {found[2]}")):
                current.append(_Instruction(found[1], opcode[1], found[2]))
            elif current:  # the attributes of a kernel may span several lines
                last = current[-1]
                current[-1] = dataclasses.replace(last, text=f"{last.text}\n{line}")
        self.shapes = {i.name: i.text for body in self.computations.values() for i in body}

    def costs(self) -> Costs:
        """The costs of all instructions, multiplied by how often they run."""
        times: collections.Counter[str] = collections.Counter()
        self._count(self.entry, 1, times)
        cycles = copies = 0
        kernel = matmul = 0.0
        kernels: list[tuple[float, float]] = []
        collectives: list[Collective] = []
        hottest: collections.Counter[str] = collections.Counter()
        runs: collections.Counter[str] = collections.Counter()
        fused = self._fused
        for name, count in times.items():
            for op in self.computations[name]:
                matmul += count * self._matmul_flops(op)
                if op.opcode == "custom-call" and "tpu_custom_call" in op.text:
                    flops, moved = _declared_costs(op)
                    kernel += count * flops
                    kernels.append((count * flops, count * moved))
                    runs[_NUMBER.sub("", op.name)] += count
                kind = op.opcode.removesuffix("-start")
                if kind in _COLLECTIVES and not self._is_continuation(op, name):
                    overlapped = "chain_id=" in op.text or bool(self.threads.get(name))
                    collectives.append(self._collective(op, kind, count, overlapped))
                if name in fused:  # the cycles of the fusion include those of its body
                    continue
                found = _CYCLES.search(op.text)
                if op.opcode == "fusion" and not found and self._gathers(op):
                    kernels.append((0.0, 2.0 * count * self._result_bytes(op)))  # rows are read and written
                if found and int(found[1]) < _UNKNOWN:
                    spent = count * int(found[1])
                    cycles += spent
                    copies += spent if op.opcode == "copy" else 0
                    hottest[_source_location(op)] += spent
        return Costs(
            cycles, copies, kernel, matmul, tuple(collectives), tuple(hottest.most_common(12)), tuple(kernels),
            tuple(sorted(runs.items())),
        )  # fmt: skip

    def _gathers(self, op: _Instruction) -> bool:
        """Whether a fusion is a gather of rows, for which the compiler has no estimate."""
        called = _CALLS.search(op.text)
        return called is not None and any(inner.opcode == "gather" for inner in self.computations.get(called[1], ()))

    @staticmethod
    def _result_bytes(op: _Instruction) -> int:
        return sum(_bytes(kind, dims) for kind, dims in _SHAPE.findall(_result(op.text)))

    def _is_continuation(self, op: _Instruction, name: str) -> bool:
        """Whether this is a later part of a collective that started in another fusion. A collective that is overlapped
        with several fusions appears in each of them with the same chain id."""
        return "chain_id=" in op.text and not any(
            "AsyncCollectiveStart" in other.text for other in self.computations[name]
        )

    @functools.cached_property
    def _fused(self) -> set[str]:
        """Computations that are called by a fusion, directly or indirectly."""
        todo = [
            called for body in self.computations.values() for op in body if op.opcode == "fusion"
            for called in _CALLS.findall(op.text)
        ]  # fmt: skip
        found: set[str] = set()
        while todo:
            name = todo.pop()
            if name in found or name not in self.computations:
                continue
            found.add(name)
            todo += [called for op in self.computations[name] for called in _CALLS.findall(op.text)]
        return found

    def _count(self, name: str, times: int, total: collections.Counter[str]) -> None:
        """Adds to `total` how often `name` and each computation that it calls run."""
        if name not in self.computations:
            return
        total[name] += times
        for op in self.computations[name]:
            if op.opcode == "while":
                body, condition = _BODY.search(op.text), _CONDITION.search(op.text)
                if body and condition:
                    self._count(body[1], times * self._trips(condition[1], body[1]), total)
            elif op.opcode == "conditional":
                for several, one in _BRANCHES.findall(op.text):
                    for branch in (several or one).replace("%", "").replace(" ", "").split(","):
                        self._count(branch, times, total)
            elif op.opcode in ("fusion", "call", "async-start", "call-start"):
                for called in _CALLS.findall(op.text):
                    self._count(called, times, total)

    def _trips(self, condition: str, body: str) -> int:
        """The trip count of a loop: the largest constant in its condition, divided by the stride of its counter (2 if
        the compiler unrolled it). If there is no constant above 0, `trip_count`: the loop over the tokens of a decode
        block ends at an argument."""
        own = self.computations.get(condition, [])
        texts = [op.text for op in own]
        for op in own:
            texts += [inner.text for called in _CALLS.findall(op.text) for inner in self.computations.get(called, ())]
        found = [int(number) for text in texts for number in _CONSTANT.findall(text)]
        most = max(found, default=0)
        return -(-most // self._stride(own, body)) if most else self.trip_count

    def _stride(self, condition: list[_Instruction], body: str) -> int:
        """The increment of the loop counter in each iteration."""
        counter = next((_INDEX.search(op.text) for op in condition if op.opcode == "get-tuple-element"), None)
        inside = self.computations.get(body, [])
        if counter is None or not inside or inside[-1].opcode != "tuple":
            return 1
        carried = _operands(inside[-1].text)
        named = {op.name: op for op in inside}
        after = named.get(carried[int(counter[1])]) if int(counter[1]) < len(carried) else None
        if after is None or after.opcode != "add":
            return 1
        steps = [_CONSTANT.search(named[name].text) for name in _operands(after.text) if name in named]
        return max([int(step[1]) for step in steps if step], default=1) or 1

    def _collective(self, op: _Instruction, kind: str, times: int, overlapped: bool) -> Collective:
        sizes = [_bytes(kind_of, dims) for kind_of, dims in _SHAPE.findall(_result(op.text))]
        # The type of a start operation contains both operands and result; the result is the larger of them.
        size = max(sizes, default=0) if op.opcode.endswith("-start") else sum(sizes)
        overlapped = overlapped or op.opcode.endswith("-start")
        return Collective(kind, size, _group(op.text), times, overlapped, _source_location(op))

    def _matmul_flops(self, op: _Instruction) -> float:
        """FLOPs of a dot or convolution: 2 · elements of the result · contracted elements."""
        if op.opcode not in ("dot", "convolution"):
            return 0.0
        result = _dims(_result(op.text))
        operands = _operands(op.text)[:2]
        shapes = [_dims(_result(self.shapes.get(name, ""))) for name in operands]
        if len(shapes) < 2 or not all(shapes):
            return 0.0
        if op.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.text)
            sizes = [shapes[0][int(d)] for d in contracted[1].split(",") if d] if contracted else []
            return 2.0 * math.prod(result) * math.prod(sizes)
        # On TPUs a matrix product is a convolution; all kernel dimensions but the output features are contracted.
        labels = re.search(r"dim_labels=\w+_(\w+)->", op.text)
        if labels is None or len(labels[1]) != len(shapes[1]):
            return 0.0
        inputs = math.prod(size for label, size in zip(labels[1], shapes[1], strict=True) if label != "o")
        return 2.0 * math.prod(result) * inputs / self._dilation(op.text)

    @staticmethod
    def _dilation(text: str) -> float:
        """The share of useful products in a window that slides over batch axes, as a divisor: over axes that are padded
        or whose left side is dilated by the window's size, so that one of its elements meets the window at a time."""
        window = re.search(r"window=\{size=([\dx]+)[^}]*\}", text)
        if window is None:
            return 1.0
        sizes = [int(size) for size in window[1].split("x")]
        dilated = re.search(r"lhs_dilate=([\dx]+)", window[0])
        factors = [int(factor) for factor in dilated[1].split("x")] if dilated else [1] * len(sizes)
        padded = "pad=" in window[0]
        return math.prod(
            float(size) for size, factor in zip(sizes, factors, strict=True) if padded or factor == size > 1
        )


def _operands(text: str) -> list[str]:
    """The names of the operands of an instruction, in order."""
    found = _OPCODE.search(f" {text}")
    return re.findall(r"%([\w.\-]+)", f" {text}"[found.end() :].split(")", 1)[0]) if found else []


def _result(text: str) -> str:
    """The type of the result of an instruction: the text before its opcode."""
    found = _OPCODE.search(f" {text}")
    return text[: found.start() - 1] if found else text


def _dims(text: str) -> list[int]:
    found = _SHAPE.search(text)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _bytes(kind: str, dims: str) -> int:
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])  # type: ignore[index]
    return math.prod(int(size) for size in dims.split(",") if size) * bits // 8


def _group(text: str) -> int:
    """The number of devices in one group of a collective."""
    found = _GROUPS.search(text)
    if found is None:
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
        return 2 if pairs else 1
    if found[1] is not None:
        sizes = dict(part.replace("'", "").split("=") for part in found[1].split(","))
        return math.prod(int(sizes[axis.strip().strip("'")]) for axis in found[2].split(",") if axis.strip())
    if found[3] is not None:
        return int(found[4])
    return len([number for number in found[5].split(",") if number])


def _source_location(op: _Instruction) -> str:
    """Where in the model an instruction comes from: the last parts of its `op_name`."""
    found = _NAME.search(op.text)
    parts = [part for part in found[1].split("/") if part not in ("while", "body", "closed_call")] if found else []
    return "/".join(parts[-4:]) or op.opcode


def _declared_costs(op: _Instruction) -> tuple[float, float]:
    """(FLOPs, bytes of memory traffic) that a kernel declares (`cost_estimate`). JAX's splash attention kernel is
    recognised by its name, because its declared costs ignore the mask."""
    known, found = _attention_flops(op), _COST_ESTIMATE.search(op.text)
    if known or found is None:
        return known, 0.0
    return float(found[1]), float(found[2])


def _attention_flops(op: _Instruction) -> float:
    """FLOPs of a causal splash attention kernel, from its name and the shape [heads, S, hd] of its queries."""
    units = next((units for part, units in _UNITS if part in op.name), 0)
    operands = re.search(r"operand_layout_constraints=\{(.*)", op.text)
    if not units or operands is None:
        return 0.0
    floats = [dims for kind, dims in _SHAPE.findall(operands[1]) if kind in ("bf16", "f32")]
    shapes = [[int(n) for n in dims.split(",")] for dims in floats]
    queries = next((shape for shape in shapes if len(shape) >= 3), None)
    if queries is None:
        return 0.0
    *lead, length, width = queries
    return float(units * math.prod(lead) * length * length * width)
