"""Texts that are meant to break or to stall whatever reads them as mathematics."""

from __future__ import annotations

import random

_LARGE = 30_000


def _repeated() -> list[str]:
    units = [
        "{", "}", "(", ")", "[", "]", "\\{", "\\}", "+", "-", "*", "/", "^", "_", "!", "|", "$", "\\", "\\\\", ",",
        ".", "9", "0.", "1/", "2^", "2^{", "\\frac", "\\frac{", "\\frac1", "\\sqrt", "\\sqrt{", "\\sqrt[", "\\left(",
        "\\right)", "\\boxed{", "\\boxed", "\\fbox{", "boxed", "\\text{", "\\text", "\\begin{pmatrix}",
        "\\end{pmatrix}", "&", "\\log_", "\\sin ", "\\pm ", "1\\pm", "x", "x^2+", "e^", "i", "\\pi", "\\infty", "%",
        "\\%", "#### ", "####", "answer is ", "the answer is: ", "Final Answer: The final answer is ",
        ". I hope it is correct.", "=", "x=", "1,", "1,000,", " ", "\n", "\t", "1 ", "1 1/2 ", "\\cup", "\\in", "<",
        "\\le ", "'", "f(", "|x", "a_{", "\u0663", "\xbd", "\u221a", "\U0001d7d8", "\x00", "\ud800", "e", "1e", "1e9",
        "\\int", "\\sum_{", "\\binom{", "million ", "and ", "degrees ",
    ]  # fmt: skip
    return [unit * (_LARGE // len(unit)) for unit in units]


def _nested() -> list[str]:
    depth = 10_000
    pairs = [
        ("{", "}"), ("(", ")"), ("[", "]"), ("\\{", "\\}"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("2^{", "}"),
        ("\\left(", "\\right)"), ("\\boxed{", "}"), ("\\text{", "}"), ("|", "|"), ("-(", ")"), ("\\sin(", ")"),
    ]  # fmt: skip
    shallow = [f"{opening * 30}1{closing * 30}" for opening, closing in pairs]
    return [f"{opening * depth}1{closing * depth}" for opening, closing in pairs] + shallow


_SINGLE = [
    "10^{10^{10}}", "10^{10^{10^{10}}}", "9^{9^{9^{9}}}", "2^{100000000000}", "(-1)^{10^{20}}", "0^{0}", "0^{-1}",
    "1/0", "\\frac{1}{0}", "1000000!", "100!!!!!!", "(10^9)!", "((((9!)!)!)!)!", "\\binom{10^9}{5}", "10^{-10^{10}}",
    "\\sqrt{-1}", "\\sqrt[0]{2}", "\\log 0", "\\log_1 5", "\\log_{0} 0", "\\tan(\\pi/2)", "\\cot 0", "\\csc(0)",
    "\\arcsin 5", "\\infty-\\infty", "\\infty/\\infty", "0\\cdot\\infty", "\\exp(10^{9})", "\\exp(\\exp(\\exp(9)))",
    "\\sin(10^{300})", "\\cosh(10^6)", "e^{e^{e^{e^{e}}}}", "x^{x^{x^{x^{x^{x}}}}}", "\\lfloor 10^{400}\\pi \\rfloor",
    "\\lfloor x \\rfloor", "1e999999999", "1e-999999999", "0.1e5000", "__import__('os').system('echo broken')",
    "eval('1')", "().__class__.__bases__", 'exec("x=1")', "lambda: 0", "import os", "sympy.factorial(10**8)",
    "factorial(10**8)", "Integer(10)**10**10", "open('/etc/passwd').read()", "{{7*7}}", "${7*7}", "`id`",
    "\\input{/etc/passwd}", "\\write18{id}", "\\def\\x{\\x\\x}\\x", "\\newcommand{\\a}{\\a}\\a",
    "\\csname x\\endcsname", "%s%s%s%n", "\\frac", "\\frac{}", "\\frac{}{}", "\\frac{1}", "\\frac1", "\\sqrt",
    "\\sqrt{}", "\\sqrt[", "\\sqrt[3", "\\left", "\\right", "\\left(", "\\right)", "\\left\\left", "\\begin{pmatrix}",
    "\\begin{pmatrix}1&2\\\\3\\end{pmatrix}", "\\begin{", "\\begin{array}{cc", "\\end{pmatrix}",
    "\\begin{cases}1\\end{cases}", "\\boxed", "\\boxed{", "\\boxed{}", "\\boxed{{}", "\\boxed{}}",
    "\\boxed{\\boxed{}}", "\\fbox", "\\boxed $", "\\boxed{\\}", "$", "$$", "$$$", "\\$", "\\(", "\\)", "\\[", "####",
    "answer is", "the answer is $", "the answer is:", "Final Answer: The final answer is", "\\text", "\\text{", "^",
    "_", "^^", "__", "x_", "x^", "2_", "52_{}", "52_{-1}", "52_{999999999}", "f'''''(x)", "''", "!", "!!!", "|", "||",
    "|||", "|x", "<", "=", "==", "x=", "=x", "x==y", "\\in", "x \\in", "\\cup", "(1,2) \\cup", "(1,", "(,)", "()",
    "[]", "[)", "(]", "\\{\\}", "\\{,\\}", ",", ",,,", "1,,2", "1,", ";", "\\pm", "\\pm\\pm 1", "\\mp", "-", "--",
    "+-+-1", "%", "50%%%", "\\%\\%", "1 2 3 4", "1/2/3/4/5", "1//2", "1..2", "1.2.3", ".", "..", "...", ".5.", "-.",
    "\u0661\u0662\u0663", "\xb2\xb3", "\u2460", "\u0968/\u0969", "\u202e321", "e\u0301", "\ufeff1", "\u200b",
    "\U0001f600", "\ud83d", "\x00", "\x1b[31m1", "NaN", "nan", "inf", "-inf", "None", "True", "1_000", "0x10", "0b1",
    "1j", "1+2j", "\\sum_{k=1}^{10^{12}} k^{k}", "\\sum_{k=1}^{\\infty} \\frac{1}{k^{3}}", "\\int_0^1 x^{x^{x}} dx",
    "\\lim_{x \\to 0} \\frac{\\sin x}{x}", "\\prod_{k=1}^{99999} k", "\\int\\int\\int", "\\sum", "\\lim",
    "\\frac{d}{dx} x^{x^{x}}", "\\max(1,2", "\\det", "\\gcd(10^{30},10^{31})",
    "\\int_0^{\\infty} e^{-x^2} \\sin(x^3) dx",
]  # fmt: skip


def _mixtures() -> list[str]:
    """Pieces of formulas thrown together."""
    draw = random.Random(0)
    pieces = [
        "\\frac",
        "{",
        "}",
        "(",
        ")",
        "^",
        "_",
        "1",
        "23",
        "x",
        "\\pi",
        "+",
        "-",
        "/",
        "\\sqrt",
        "!",
        "|",
        ",",
        "\\pm",
        "=",
        "\\left(",
        "\\log",
    ]
    return ["".join(draw.choices(pieces, k=draw.randrange(2, 120))) for _ in range(150)]


def _heavy() -> list[str]:
    """Within all bounds on length and depth, and as much work as they allow."""
    return [
        "+".join(f"\\sqrt{{{n}}}" for n in range(2, 90)),
        "*".join(f"(x+{n})^{{9}}" for n in range(60)),
        "\\frac{1}{1+" * 19 + "x" + "}" * 19,
        "\\sqrt{2+" * 38 + "1" + "}" * 38,
        "(" * 30 + "x+1" + ")^{7}" * 30,
        "(a+b+c+d+f+g+h)^{90}(a-b-c-d)^{90}",
        "9^{99}" * 60, "99999^{999}+" * 50 + "1", "x^{200}+" * 100 + "1", "7^{9^{4}}", "2^{19000}+\\sqrt{2}",
        ", ".join(str(n) for n in range(180)), "\\{" + ",".join(f"x+{n}" for n in range(24)) + "\\}",
        "\\sin(" * 30 + "x" + ")" * 30, "\\exp(" * 5 + "x" + ")" * 5, "\\pm 1" * 100, "300!+" * 60 + "1",
        "\\binom{400}{200}" * 50, "1 \\pm " * 80 + "1", "x_1+" * 150 + "x_2",
    ]  # fmt: skip


_MEGABYTES = [
    "9" * 2_000_000, "1," * 500_000, "\\boxed{" + "9" * 1_000_000 + "}", "\\boxed{" * 150_000, "a" * 1_000_000,
    "$" * 1_000_000, "the answer is " * 70_000, "-" * 1_000_000, "\\frac{" * 50_000,
]  # fmt: skip

HOSTILE = [
    *_repeated(), *_nested(), *_SINGLE, *_mixtures(), *_heavy(), *_MEGABYTES,
    "1+" * 10_000 + "1", "\\boxed{" + "1+" * 10_000 + "1}",
]  # fmt: skip
