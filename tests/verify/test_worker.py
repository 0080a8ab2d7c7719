"""A worker: what becomes of an answer whose scorer dies, loops, sleeps or leaks, and what no scorer may evaluate."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import reasoning_gym

from dasd_jax.data.sources import load_source
from dasd_jax.verify import worker
from dasd_jax.verify.worker import LITERAL_SCORERS, evaluate_mathematics

VERIFY = Path(__file__).parents[2] / "dasd_jax" / "verify"
ROOM = sorted(VERIFY.glob("*.py"))

# A keeper whose scorer does what its answer says; memory that parent and children share counts the tries.
PROGRAM = """
import json, mmap, resource, select, signal, sys
from dasd_jax.verify import worker

tries, leaked = mmap.mmap(-1, 1), []

def score(answer, problem, _):
    tries[0] += 1
    if answer == "leak":  # a third of the cap stays behind; untouched, since clearing it costs CPU time
        leaked.append(mmap.mmap(-1, 170 << 20))
    elif answer == "hungry":
        bytearray(600 << 20)
    elif answer == "die":
        signal.raise_signal(signal.SIGKILL)
    elif answer == "die once" and tries[0] == 1:
        signal.raise_signal(signal.SIGKILL)
    elif answer == "exit":
        sys.exit(0)
    elif answer == "nan":
        return float("nan"), "", {}
    elif answer == "spin":
        while True:
            pass
    elif answer == "wait":
        select.select([], [], [], 60)
    return 1.5, "", {}

worker._score = score
resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
keeper = worker.Keeper(512, 0.3, ())
for answer in sys.argv[1:]:
    tries[0] = 0
    score_, error, cpu_s, *_ = keeper.score(1.2, [answer, {}, ""])
    print(json.dumps([answer, score_, error, cpu_s, tries[0]]))
keeper.end_child()
"""


def test_every_end_of_a_scorer_is_one_verdict_and_the_next_answer_is_scored():
    ends = {
        "fine": (1.0, "", 1),
        "hungry": (0.0, "memory", 2),
        "die": (0.0, "crash", 2),
        "die once": (1.0, "", 2),
        "exit": (0.0, "crash", 1),
        "nan": (0.0, "crash", 1),
        "spin": (0.0, "timeout", 1),
        "wait": (0.0, "late", 1),
    }
    asked = [answer for end in ends for answer in (end, "fine")] + ["leak"] * 6
    done = subprocess.run([sys.executable, "-c", PROGRAM, *asked], capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(score, error, tries) for _, score, error, _, tries in said[:16]] == [
        expected for end in ends for expected in (ends[end], ends["fine"])
    ]
    # Each by itself fits into the cap: none of them pays for those before, not even with a second try.
    assert [(score, error, tries) for _, score, error, _, tries in said[16:]] == [(1.0, "", 1)] * 6
    cost = {answer: cpu_s for answer, _, _, cpu_s, _ in said}
    assert 0.2 < cost["spin"] < 0.6 and cost["wait"] < 0.2 and cost["fine"] < 0.2


def test_the_room_evaluates_nothing_and_opens_neither_shell_nor_network():
    """No eval, exec or compile; sympy's parser and `sympify` are not called on a text; one program is ever started."""
    banned = {"eval", "exec", "compile", "__import__", "sympify", "parse_expr", "S", "system", "popen", "lambdify"}
    modules = {"socket", "urllib", "http", "requests", "ctypes", "pty", "pickle", "marshal", "multiprocessing"}
    programs = []
    for path in ROOM:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                of = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
                assert of == "re" or name not in banned, f"{path}:{node.lineno}"
                if of == "subprocess":
                    programs.append((path.name, ast.unparse(node.args[0])))
                    assert "shell" not in {keyword.arg for keyword in node.keywords}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not modules & {name.split(".")[0] for name in names}, f"{path}:{node.lineno}"
    [(file, argv)] = programs
    assert file == "verifier.py" and argv.startswith("[sys.executable, '-m', 'dasd_jax.verify.worker'")


# Scorers and generators of reasoning-gym that evaluate what the task itself wrote, never an answer.
OF_THEIR_OWN = {
    "arithmetic.basic_arithmetic", "arithmetic.bitwise_arithmetic", "algorithmic.number_sorting", "code.codeio",
    "arithmetic.gsm_symbolic.generators_00_49", "arithmetic.gsm_symbolic.generators_50_99",
}  # fmt: skip


def test_every_module_of_reasoning_gym_that_evaluates_is_known():
    """A new version may bring another; then it belongs in LITERAL_SCORERS, or here."""
    root = Path(reasoning_gym.__file__).parent
    found = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
    }
    assert found == OF_THEIR_OWN | {name.removeprefix("reasoning_gym.") for name in LITERAL_SCORERS}


@pytest.fixture
def closed():
    """Scorers as a worker has them."""
    import sympy.parsing.sympy_parser

    modules = [sys.modules[name] for name in (*LITERAL_SCORERS, sympy.parsing.sympy_parser.__name__)]
    worker.close_evaluators()
    yield modules
    for module in modules:
        vars(module).pop("eval", None)


@pytest.mark.parametrize("task", ["spiral_matrix", "binary_matrix", "string_insertion", "n_queens", "countdown",
                                  "puzzle24", "simple_integration", "intermediate_integration"])  # fmt: skip
def test_scorers_that_evaluated_answers_take_the_right_one_and_run_no_other(task, closed, tmp_path):
    trace = tmp_path / "trace"
    for problem in load_source(f"gym:{task}?size=3"):
        known = vars(problem)
        assert worker._score("task", known, problem.answer)[0] == 1.0
        for attack in (f"open({str(trace)!r}, 'w')", f"[open({str(trace)!r}, 'w')]",
                       f"__import__('os').system('touch {trace}')", f"[__import__('os').system('touch {trace}')]",
                       f"lambdify([x], \"open({str(trace)!r}, 'w')\")(1)"):  # fmt: skip
            try:
                score = worker._score("task", known, attack)[0]
            except Exception:
                score = 0.0
            assert score < 0.99
        assert not trace.exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2*3 + 4**2 // 3", "11"),
        ("x**2/2 + C", "C + x**2/2"),
        ("sin(x)*exp(-x) + sqrt(8) + log(x, 2)", "2*sqrt(2) + exp(-x)*sin(x) + log(x)/log(2)"),
        ("Rational(1, 3) + 0.5 - abs(-1)", "-0.166666666666667"),
        ("-(3 - 5)*pi", "2*pi"),
    ],
)
def test_sympy_reads_mathematics_as_before(closed, text, value):
    import sympy

    read = sympy.parse_expr(text)
    for module in closed:
        del module.eval
    assert read == sympy.parse_expr(text)
    assert abs(sympy.simplify(read - sympy.parse_expr(value))) < 1e-12


@pytest.mark.parametrize(
    "text",
    ["().__class__", "x.subs", "[y for y in (1,)]", "lambda: 1", "f'{1}'", "(1)[0]", "getattr(x, 'y')", "print(1)",
     "eval('1')", "lambdify(x, x)", "preview(x)", "1 if x else 2", "{1: 2}", "x < 2 < 3", "sin(*[x])"],
)  # fmt: skip
def test_nothing_else_is_evaluated(text):
    names: dict = {}
    exec("from sympy import *", names)
    names |= {"x": names["Symbol"]("x"), "getattr": getattr, "print": print, "eval": eval}
    with pytest.raises(ValueError, match="is not mathematics"):
        evaluate_mathematics(text, names, {})
