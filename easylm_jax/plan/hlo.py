"""What a compiled TPU program says of itself: cycles, kernels and collectives, each as often as its loops run it.

The compiler writes its own estimate of cycles beside every fusion and copy, but its totals count the body of a loop
once, charge nothing for kernels and leave the network out. So the text is read: loops are walked with their trip
counts (the constant that the condition compares with), and every instruction counts that often.
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
_DECLARED = re.compile(r'"cost_estimate":\{"flops":"?(\d+)"?[^}]*"bytes_accessed":"?(\d+)')
_UNKNOWN = 1 << 62  # cycles that the compiler does not know
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
# Matrix products of one causal attention that each splash kernel does, forward having two (spec of its own backward).
_UNITS = (("_dkv", 4), ("_dq", 3), ("_fwd", 2), ("splash", 2))


@dataclasses.dataclass(frozen=True)
class Collective:
    """`bytes` of the whole result on one device, over `group` devices, `times` a step. `overlapped`: it starts before
    it is waited for, or lies inside a fusion that computes meanwhile. `crosses` slices."""

    kind: str
    bytes: int
    group: int
    times: int
    overlapped: bool
    name: str

    @property
    def wire(self) -> float:
        """Bytes that one device sends for it, by a ring."""
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
    """Of one run of a program on one device. `cycles` of all but kernels; `copy_cycles` those of plain copies among
    them; `kernel_flops` of attention kernels (causal: half of the square); `matmul_flops` of all other products."""

    cycles: int
    copy_cycles: int
    kernel_flops: float
    matmul_flops: float
    collectives: tuple[Collective, ...]
    hottest: tuple[tuple[str, int], ...]
    kernels: tuple[tuple[float, float], ...] = ()  # FLOPs and bytes of each that declares them, of all its runs

    def wire(self, overlapped: bool) -> float:
        """Bytes that one device sends in collectives that are overlapped, or that are not."""
        return sum(c.wire * c.times for c in self.collectives if c.overlapped is overlapped)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    text: str


class Program:
    """The text of a compiled module, read into computations; a loop of unknown length is run `rounds` times."""

    def __init__(self, text: str, rounds: int = 1):
        self.rounds = rounds
        self.computations: dict[str, list[_Instruction]] = {}
        self.threads: dict[str, str] = {}  # the core that runs a computation, "" for the one that runs the program
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
            elif line.rstrip() == "}" or line.startswith("}, execution_thread="):  # of another core, which it names
                self.threads[name] = line.partition("execution_thread=")[2].strip(' "\n')
                current = None
            elif (found := _INSTRUCTION.match(line)) and (opcode := _OPCODE.search(f" {found[2]}")):
                current.append(_Instruction(found[1], opcode[1], found[2]))
            elif current:  # what a kernel says of itself may go on over lines
                last = current[-1]
                current[-1] = dataclasses.replace(last, text=f"{last.text}\n{line}")
        self.shapes = {i.name: i.text for body in self.computations.values() for i in body}

    def costs(self) -> Costs:
        """Everything, as often as it runs."""
        times: collections.Counter[str] = collections.Counter()
        self._count(self.entry, 1, times)
        cycles = copies = 0
        kernel = matmul = 0.0
        kernels: list[tuple[float, float]] = []
        collectives: list[Collective] = []
        hottest: collections.Counter[str] = collections.Counter()
        fused = self._fused
        for name, count in times.items():
            for it in self.computations[name]:
                matmul += count * self._products(it)
                if it.opcode == "custom-call" and "tpu_custom_call" in it.text:
                    flops, moved = _declared(it)
                    kernel += count * flops
                    kernels.append((count * flops, count * moved))
                kind = it.opcode.removesuffix("-start")
                if kind in _COLLECTIVES and not self._goes_on(it, name):
                    aside = "chain_id=" in it.text or bool(self.threads.get(name))
                    collectives.append(self._collective(it, kind, count, aside))
                if name in fused:  # the fusion itself tells the cycles of what is in it
                    continue
                found = _CYCLES.search(it.text)
                if found and int(found[1]) < _UNKNOWN:
                    spent = count * int(found[1])
                    cycles += spent
                    copies += spent if it.opcode == "copy" else 0
                    hottest[_place(it)] += spent
        return Costs(cycles, copies, kernel, matmul, tuple(collectives), tuple(hottest.most_common(12)), tuple(kernels))

    def _goes_on(self, it: _Instruction, name: str) -> bool:
        """Whether this is a later part of a collective that was begun in another fusion. One that is spread over
        fusions which compute meanwhile stands in each of them under the number of its chain."""
        return "chain_id=" in it.text and not any(
            "AsyncCollectiveStart" in other.text for other in self.computations[name]
        )

    @functools.cached_property
    def _fused(self) -> set[str]:
        """Computations that a fusion calls, and what those call in turn."""
        todo = [
            called for body in self.computations.values() for it in body if it.opcode == "fusion"
            for called in _CALLS.findall(it.text)
        ]  # fmt: skip
        found: set[str] = set()
        while todo:
            name = todo.pop()
            if name in found or name not in self.computations:
                continue
            found.add(name)
            todo += [called for it in self.computations[name] for called in _CALLS.findall(it.text)]
        return found

    def _count(self, name: str, times: int, total: collections.Counter[str]) -> None:
        """Adds how often each computation below `name` runs."""
        if name not in self.computations:
            return
        total[name] += times
        for it in self.computations[name]:
            if it.opcode == "while":
                body, condition = _BODY.search(it.text), _CONDITION.search(it.text)
                if body and condition:
                    self._count(body[1], times * self._trips(condition[1], body[1]), total)
            elif it.opcode == "conditional":
                for several, one in _BRANCHES.findall(it.text):
                    for branch in (several or one).replace("%", "").replace(" ", "").split(","):
                        self._count(branch, times, total)
            elif it.opcode in ("fusion", "call", "async-start", "call-start"):
                for called in _CALLS.findall(it.text):
                    self._count(called, times, total)

    def _trips(self, condition: str, body: str) -> int:
        """How often a loop runs: the largest constant that its condition compares with, over what its counter goes up
        by (a loop that the compiler unrolled counts by 2). `rounds` where there is none: the loop over a block's tokens
        ends with an argument. Zeros that a sum in the condition begins with are none."""
        own = self.computations.get(condition, [])
        texts = [it.text for it in own]
        for it in own:
            texts += [inner.text for called in _CALLS.findall(it.text) for inner in self.computations.get(called, ())]
        found = [int(number) for text in texts for number in _CONSTANT.findall(text)]
        most = max(found, default=0)
        return -(-most // self._stride(own, body)) if most else self.rounds

    def _stride(self, condition: list[_Instruction], body: str) -> int:
        """What the loop's counter goes up by in each round."""
        counter = next((_INDEX.search(it.text) for it in condition if it.opcode == "get-tuple-element"), None)
        inside = self.computations.get(body, [])
        if counter is None or not inside or inside[-1].opcode != "tuple":
            return 1
        carried = _operands(inside[-1].text)
        named = {it.name: it for it in inside}
        after = named.get(carried[int(counter[1])]) if int(counter[1]) < len(carried) else None
        if after is None or after.opcode != "add":
            return 1
        steps = [_CONSTANT.search(named[name].text) for name in _operands(after.text) if name in named]
        return max([int(step[1]) for step in steps if step], default=1) or 1

    def _collective(self, it: _Instruction, kind: str, times: int, aside: bool) -> Collective:
        sizes = [_bytes(kind_of, dims) for kind_of, dims in _SHAPE.findall(_result(it.text))]
        # A start's result holds operands and result side by side; the result is the larger of them.
        size = max(sizes, default=0) if it.opcode.endswith("-start") else sum(sizes)
        overlapped = aside or it.opcode.endswith("-start")
        return Collective(kind, size, _group(it.text), times, overlapped, _place(it))

    def _products(self, it: _Instruction) -> float:
        """FLOPs of a dot or convolution: twice the result's elements times the contracted ones."""
        if it.opcode not in ("dot", "convolution"):
            return 0.0
        result = _dims(_result(it.text))
        operands = _operands(it.text)[:2]
        shapes = [_dims(_result(self.shapes.get(name, ""))) for name in operands]
        if len(shapes) < 2 or not all(shapes):
            return 0.0
        if it.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", it.text)
            sizes = [shapes[0][int(d)] for d in contracted[1].split(",") if d] if contracted else []
            return 2.0 * math.prod(result) * math.prod(sizes)
        # A TPU's product is a convolution: its kernel's elements but for the output features are contracted.
        labels = re.search(r"dim_labels=\w+_(\w+)->", it.text)
        if labels is None or len(labels[1]) != len(shapes[1]):
            return 0.0
        inputs = math.prod(size for label, size in zip(labels[1], shapes[1], strict=True) if label != "o")
        return 2.0 * math.prod(result) * inputs / self._dilation(it.text)

    @staticmethod
    def _dilation(text: str) -> float:
        """A window that is padded to move over a batch axis multiplies zeros; its size tells how many."""
        window = re.search(r"window=\{size=([\dx]+)[^}]*\}", text)
        if window is None or "pad=" not in window[0]:
            return 1.0
        return float(math.prod(int(size) for size in window[1].split("x")))


def _operands(text: str) -> list[str]:
    """Names of the instructions that one takes, in order."""
    found = _OPCODE.search(f" {text}")
    return re.findall(r"%([\w.\-]+)", f" {text}"[found.end() :].split(")", 1)[0]) if found else []


def _result(text: str) -> str:
    """The type of what an instruction gives: what stands before its name."""
    found = _OPCODE.search(f" {text}")
    return text[: found.start() - 1] if found else text


def _dims(text: str) -> list[int]:
    found = _SHAPE.search(text)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _bytes(kind: str, dims: str) -> int:
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])  # type: ignore[index]
    return math.prod(int(size) for size in dims.split(",") if size) * bits // 8


def _group(text: str) -> int:
    """Devices of one group of a collective."""
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


def _place(it: _Instruction) -> str:
    """Where in the model an instruction comes from: the end of its name in the source."""
    found = _NAME.search(it.text)
    parts = [part for part in found[1].split("/") if part not in ("while", "body", "closed_call")] if found else []
    return "/".join(parts[-4:]) or it.opcode


def _declared(it: _Instruction) -> tuple[float, float]:
    """FLOPs and bytes of memory that a kernel declares (`cost_estimate`). JAX's own splash kernel is known by its name:
    what it does declare takes no mask into account."""
    known, found = _attention_flops(it), _DECLARED.search(it.text)
    if known or found is None:
        return known, 0.0
    return float(found[1]), float(found[2])


def _attention_flops(it: _Instruction) -> float:
    """FLOPs of a splash attention kernel by its name and the shape [heads, S, hd] of its queries, causal."""
    units = next((units for part, units in _UNITS if part in it.name), 0)
    operands = re.search(r"operand_layout_constraints=\{(.*)", it.text)
    if not units or operands is None:
        return 0.0
    floats = [dims for kind, dims in _SHAPE.findall(operands[1]) if kind in ("bf16", "f32")]
    shapes = [[int(n) for n in dims.split(",")] for dims in floats]
    queries = next((shape for shape in shapes if len(shape) >= 3), None)
    if queries is None:
        return 0.0
    *lead, length, width = queries
    return float(units * math.prod(lead) * length * length * width)
