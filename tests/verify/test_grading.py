r"""Each rule of the verifier: what it makes right, and the wrong answers nearby that have to stay wrong.

A line has a reference, answers that are right and answers that are not, all without their box. `RESPONSES` has whole
responses instead of answers.
"""

import random
from fractions import Fraction

import pytest

from dasd_jax.verify.extract import extract_answer
from dasd_jax.verify.grading import grade

ANSWERS = {
    "constants are compared without a tolerance": [
        (r"\frac{1}{2^{99}}", ["2^{-99}", r"\left(\frac12\right)^{99}"], ["2^{-98}", r"-\frac{1}{2^{99}}", "0"]),
        ("3^{-40}", [r"\frac{1}{3^{40}}", r"\frac{1}{12157665459056928801}"], ["3^{-41}", "0"]),
        (r"\frac{1}{20!}", [r"\frac{1}{20\cdot 19!}"], [r"\frac{1}{21!}"]),
        (r"\frac{1}{2004!}", [r"\frac{2005}{2005!}"], [r"\frac{1}{2006!}"]),
        (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", [r"\frac{1}{6}+\frac{1}{3\cdot 2^{2006}}"], [r"\frac{1}{6}"]),
        (r"1-\frac{1}{2^{60}}", [r"\frac{2^{60}-1}{2^{60}}"], [r"1+\frac{1}{2^{60}}", "1"]),
        (r"\sqrt{2} \times 10^{-19}", [r"\frac{2}{\sqrt{2}\cdot 10^{19}}"], [r"\sqrt{3}\times 10^{-19}"]),
        (r"\sqrt{2}", [r"\frac{2}{\sqrt{2}}"], [r"\sqrt{2}+10^{-30}", "1.4142135623730950488016887242097"]),
        (r"\sqrt{10^{60}+1}", [], ["10^{30}"]),
        ("1-e^{-100}", [r"1-\frac{1}{e^{100}}"], ["1", "1-e^{-101}"]),
        (r"\ln(1+e^{-5000})", [], ["0"]),
        (r"\cos\frac{\pi}{5}", [r"\frac{1+\sqrt5}{4}"], [r"\frac{1+\sqrt5}{4}+10^{-25}"]),
        (r"\sqrt{5+2\sqrt{6}}", [r"\sqrt2+\sqrt3"], [r"\sqrt2+\sqrt3+2^{-99}"]),
    ],
    "what is infinite or undefined equals no number": [
        (r"\frac{A}{3}", [], [r"\frac{A}{0}", r"\infty A", r"\infty"]),
        (r"\infty", [r"+\infty", "infinity"], [r"-\infty", r"\frac{1}{0}", r"x\infty", "1"]),
        (r"\frac{0}{1}", ["0"], [r"\frac{0}{0}", r"0\cdot\infty", r"\infty-\infty"]),
        (r"\int_0^\infty e^{-x} dx", ["1"], [r"\infty", "0"]),
        (r"\frac{\pi^2}{6}", [r"\sum_{n=1}^\infty \frac{1}{n^2}"], [r"\sum_{n=1}^\infty \frac{1}{n^3}"]),
    ],
    "so are the entries of tuples, sets, intervals, matrices and relations": [
        (r"(\frac{1}{2^{99}}, 1)", ["(2^{-99}, 1)"], ["(2^{-98}, 1)", "(1, 2^{-99})"]),
        (r"\{2^{-70}, 1\}", [r"\{1, 2^{-70}\}"], [r"\{1, 2^{-71}\}"]),
        ("[0, 2^{-70}]", [r"[0, \frac{1}{2^{70}}]"], ["[0, 2^{-71}]", "[0, 2^{-70})"]),
        (r"\begin{pmatrix}2^{-70}\\1\end{pmatrix}", [], [r"\begin{pmatrix}2^{-71}\\1\end{pmatrix}"]),
        ("x > 2^{-70}", ["2^{70}x > 1"], ["x > 2^{-71}", "x < 2^{-70}"]),
        ("2^{-70}x + 1", [r"1+\frac{x}{2^{70}}"], ["2^{-71}x + 1", "1"]),
        ("(1e-7, 1)", ["(10^{-7}, 1)"], ["(2e-7, 1)"]),
        ("(0.1, 0.2)", [r"(\frac{1}{10}, \frac15)"], ["(0.1, 0.2000001)"]),
    ],
    "relations are equal if a constant factor or their solutions make them so": [
        ("x+2y=3", ["2x+4y=6", "-x-2y+3=0", r"y=\frac{3-x}{2}"], ["x+2y=4", "x-2y=3"]),
        ("x^2+y^2=1", ["2x^2+2y^2=2"], [r"y=\sqrt{1-x^2}", r"x=\sqrt{1-y^2}"]),
        ("x=y^2", ["y^2=x"], [r"y=\sqrt{x}"]),
        (r"x \in [1,\infty)", [r"x \ge 1", r"[1,\infty)"], [r"y \ge 1", r"y \in [1,\infty)", "x > 1"]),
        ("x^3+y^3=1", ["2x^3+2y^3-2=0", "(x^3+y^3-1)^2=0"], ["x^3+y^3+xy=1", "(x^3+y^3-1)(x-y)=0"]),
        ("y=e^x", [r"x=\ln y"], ["y=e^{-x}"]),
        ("f(0)=0", ["0=f(0)", "f(0) = 0"], ["u(0)=0", "f(0)=3", "f(1)=0"]),
        ("AB=BA", ["BA=AB"], ["AC=CA", "A=B"]),
        ("a=b=c=0", ["0"], ["a=m=c=0", "a=0", "a=b=c=1"]),
        ("x^2+1>0", [], ["x^2+2>0"]),
        ("|x|=-1", [], [r"\sqrt{x}=-2"]),
        ("x>3", ["2x>6", "-x<-3", r"(3,\infty)"], ["-x>-3", r"x\ge 3", "y>3", r"[3,\infty)"]),
        ("1<x<2", ["2>x>1", "(1,2)"], ["1<x<2<y", "1<x", r"1\le x<2", r"\{1,2\}"]),
    ],
    "a comma may stand beside 'and' and 'or'": [
        (r"19, 46, \text{ and } 82", ["19, 46, 82", "19, 46, and 82", r"19\text{, }46\text{, and }82"],
         ["19, 46", r"19, 46, \text{ and } 83", "(19, 46, 82)", r"19, 46, 82, \text{ and } 1"]),
        ("19, 46, 82", [r"19, 46, \text{ and } 82", r"19,\ 46\ \textrm{and}\ 82", r"19, 46 \& 82"],
         [r"19, \text{ and } 82"]),
        (r"2, \text{ or } 3", ["2, 3", r"\text{3 or 2}", "x = 2, or x = 3"], ["2", "(2,3)", "2, or 4"]),
        ("5", [], ["5, or 6", r"5, \text{ and } 6"]),
        (r"(1,2), \text{ and } (3,4)", ["(3,4),(1,2)"], ["(2,1),(3,4)"]),
        ("odd and even", ["odd, and even"], ["odd"]),
    ],
    "constants and functions may be in roman type": [
        (r"1 - \frac{1}{\mathrm{e}}", [r"\frac{e-1}{e}", r"1-\text{e}^{-1}"],
         [r"1 + \frac{1}{\mathrm{e}}", r"1-\frac{1}{2.718}"]),
        ("e^2", [r"\mathrm{e}^2", r"{\rm e}^2", r"\operatorname{e}^{2}", r"\mathrm e^2"], [r"\mathrm{e}^{-2}", "2e"]),
        (r"e\pi", [r"\pi\mathrm{e}"], [r"\pi+\mathrm{e}"]),
        (r"3+4\mathrm{i}", ["4i+3"], ["3-4i", r"3+4\mathrm{m}"]),
        ("m_e", [r"m_{\mathrm{e}}", r"m_\mathrm{e}"], [r"m\mathrm{e}"]),
        (r"\sin(x)+\ln 2", [r"\operatorname{sin}(x)+\mathrm{ln}\,2"], [r"\operatorname{cos}(x)+\mathrm{ln}\,2"]),
    ],
    "functions and pi may lack their backslash": [
        (r"\dfrac{\pi}{2}", ["pi/2", "0.5pi", "Pi/2"], ["-pi/2", "pi", "p*i/2"]),
        (r"2\pi r", ["2*pi*r", "2 pi r"], ["2pi"]),
        ("e^{16} - 1", ["-1 + exp(16)"], ["exp(15)", "exp(16)+1"]),
        (r"2\sqrt{3}", ["2 sqrt(3)", "2*sqrt(3)", "sqrt(3*(5-1))", "sqrt12"],
         ["sqrt(23)", "2 + sqrt(3)", "-2sqrt(3)"]),
        ("2^{1/3}", ["2^(1/3)", "2**(1/3)"], ["2^1/3"]),
        ("x^{10}", ["x**10"], ["x**1*0", "10x"]),
        (r"\log_2 3", ["log_2(3)"], ["log_3(2)", "ln(3)"]),
        (r"\frac{\pi}{6}", [r"\frac\pi6", r"\frac \pi 6"], [r"\frac6\pi"]),
        ("epic", ["epic"], ["pice"]),
    ],
    "lists with dots are equal entry by entry": [
        (r"1, 2, \ldots, n", [r"1,2,\dots,n", "1, 2, ..., n", "1,2,…,n", r"\{1,2,\cdots,n\}"],
         ["1,2,n", r"1, 3, 5, \ldots, 2n-1", r"2,1,\ldots,n", r"1,2,\ldots,n-1", r"1,2,\ldots", r"(1,2,\ldots,n)"]),
        (r"(1, \frac12, \ldots, \frac1n)", [r"\left(1, 0.5, \dots, 1/n\right)"], [r"1, \frac12, \ldots, \frac1n"]),
        ("2,4,6", [], [r"2,4,6,\ldots"]),
        (r"1+2+\ldots+n", [r"1+2+\cdots+n"], ["1+2+n"]),
    ],
    "money may have a unit, and a unit may be a rate": [
        ("18", [r"\$18 \text{ per day}", r"18 \text{ dollars per day}", "18 dollars per day", r"\$18 \text{ dollars}",
                r"\$18/\text{day}", "$18 per day", r"18\text{ dollars}/\text{day}", r"\$18 each", "18 euros a week",
                r"\$18.00 \text{ per ticket}"],
         [r"\$19 \text{ per day}", r"-\$18 \text{ per day}", r"\$18 \text{ million}", r"18\text{ per thousand}",
          r"\$18 \text{ euros}", "18/d", "18 per 100", r"\$18 \text{ or more}", r"\$18 \text{ and } \$19"]),
        (r"\$18 \text{ per day}", ["18", "18 dollars a day"],
         [r"\$18 \text{ per hour}", "18 euros per day", r"\$18"]),
        ("12", ["12 square units", "12 sq. ft", r"12\text{ units}^2", "12 cubic feet"],
         ["12 squared", r"12 \text{ dozen}"]),
        ("12 square feet", [r"12\text{ ft}^2", "12 feet squared"], ["12 cubic feet", "12 feet", "12 square miles"]),
        (r"9.8\text{ m/s}^2", [r"9.8\,\mathrm{m}\,\mathrm{s}^{-2}", r"9.8\ \frac{\text{m}}{\text{s}^2}"],
         [r"9.8\text{ m/s}"]),
        ("60 miles per hour", ["60 mph", r"60\text{ mi/h}"], ["60 km/h", "60 miles"]),
        ("18/h", [], ["18", "18/k"]),
    ],
    "a choice's label may have its text behind it": [
        ("E", ["E: A risk score of many genes", "E: many genes", "x = E"],
         ["e: many genes", "B = E", "C: E", "E or C"]),
        ("B", ["B. I and II", r"\text{(B) I and III only}", r"(B) \angle A", "(B) points A and C", "B. I, II, and V",
               "(B) $P(A) = 1/2$", r"\textbf{(B)} Vitamin C is best"],
         ["A or B", "(A) or (B)", "(B) or (A)", "(B), (A)", "(B)/(A)", "(B) and A", "B. A. C.", "B: 12, A: 13",
          "B 12 or A", "B: 12 or C", "(B) A", "B: no, A", "not B", "(B) is wrong", "(B) is not right", "B: maybe C",
          "D: many genes"]),
    ],
    "a name before an equals sign is no part of the answer": [
        ("Yes", ["x = Yes", r"x = \text{Yes}", "Answer = yes"],
         ["x = No", "No = Yes", "x = not Yes", "x = Yes or No"]),
        ("52_8", ["n = 52_8", "n = 52_{8}", "n = (52)_8", "52"], ["n = 52_7", "n = 25_8", "n = 42", "n = 52_8 = 42"]),
        ("x = Yes", ["Yes"], ["y = Yes", "No"]),
        ("3:2", ["x = 3:2"], ["x = 2:3", "x = 3/2"]),
        ("y = 2x", ["2x", "x = y = 2x", "2x - y = 0"], ["x = 2x", "z = 2x"]),
        ("3", ["x = 3", "y = 6/2 = 3"], ["x = 4", "x = 3 = 4", "not x = 3", "x != 3"]),
        (r"\{ z \mid |z| \leq 1 \}", [r"x = \{ z \mid |z| \leq 1 \}"], [r"x = \{ z \mid |z| < 1 \}"]),
    ],
    "what math-verify drops decides nothing": [
        ("y'", [r"y^{\prime}"], ["y", "y''"]),
        ("y'+2y", ["2y+y'"], ["2y'+y"]),
        ("52_8, 13_8", ["52_8,13_8"], ["52_7, 13_7", "52, 13_7"]),
        ("4", [], [r"4\sqrt(2)", r"4\sqrt{2}"]),
        (r"\frac{dx}{dt}=kx-a", [r"kx-a=\frac{dx}{dt}"], [r"-\frac{dx}{dt}=kx-a", r"\frac{dt}{dx}=kx-a", r"0=kx-a"]),
        (r"\sum_{i=1}^n X_i", [r"1\cdot\sum_{i=1}^n X_i"], ["nX_i", r"\sum_{q=1}^n X_i"]),
        (r"\sum_{i=1}^n i", [r"\frac{n(n+1)}{2}"], [r"\frac{n(n-1)}{2}"]),
        (r"\gcd(k, p-1)", [r"\gcd(k,p-1)"], [r"\gcd(n, p-1)", "1"]),
        (r"\gcd(12, 18)", ["6"], ["1"]),
        (r"111,\! 111,\! 111", ["111111111", "111,111,111"], ["111"]),
    ],
    "text around a whole answer says nothing": [
        (r"\frac{1}{2}", [r"\text{\frac{1}{2}}", r"\text{$\frac12$}"],
         [r"\text{not \frac{1}{2}}", r"\text{\frac{2}{1}}"]),
        ("5", [r"\text{5 cm}", r"\mathrm{5}"], [r"\text{not 5}", r"\text{5 or 6}"]),
    ],
}  # fmt: skip

RESPONSES = {
    "mathematics between dollars is the answer of its sentence": [
        ("12", ["Final Answer: The final answer is $12$. I hope it is correct.", "The answer is $12$, as required.",
                "The final answer is 12. I hope it is correct.", "The final answer is **12**. I hope it is correct.",
                r"The answer is \(12\), which completes the solution.", "The answer is therefore $12$.",
                "The answer is $12$ because every pair counts.", "The answer is $$12$$ I hope it is correct.",
                "The answer is $12$ cm. I hope it is correct.", "The answer is $12$."],
         ["The answer is $12$ or $13$.", "The answer is $12$, or maybe thirteen.",
          "The answer is $12$. Actually, it is $13$.", "The answer is $12$. That is wrong.",
          "The answer is $12$ is wrong.", "The answer is not $12$.", "The answer is $12$ million.",
          "The answer is twice $12$.", "The answer is $12$ times larger.", "The answer is $12$, but I am unsure.",
          "The answer is $12$, $13$.", "The answer is less than $12$.",
          "The answer is $12$. No, that can't be right.", "The answer is $12$, negative.", "The answer is $12$?",
          "The answer is 12. It isn't 12.", "The answer is $12$ and its double."]),
        ("[2,5)", ["The final answer is $[2,5)$. I hope it is correct."],
         ["The final answer is $[2,5]$. I hope it is correct."]),
        ("-12", [], ["The answer is $12$. I hope it is correct."]),
        ("18", [r"**Answer: \$18 per day.**", "The answer is $18 per day."], [r"**Answer: \$180 per day.**"]),
    ],
    "boxes with nothing but separators between them are one list": [
        ("1,-2", [r"So $n = \boxed{1}$ and $n = \boxed{-2}$.", r"$\boxed{-2}$ or $\boxed{1}$",
                  r"\boxed{1}, \boxed{-2}", "- $\\boxed{1}$\n- $\\boxed{-2}$", r"\boxed{x=1} and \boxed{x=-2}",
                  r"\boxed{1} \text{ and } \boxed{-2}"],
         [r"\boxed{1}, \boxed{2}", r"\boxed{1}, \boxed{-2}, \boxed{3}", r"\boxed{1}", r"\boxed{-2}",
          r"First \boxed{1}. No, it is \boxed{-2}.", r"\boxed{1}, not \boxed{-2}", r"\boxed{1} - \boxed{-2}"]),
        ("3,5,7", [r"The primes are \boxed{3}, \boxed{5}, \boxed{7}.", r"$\boxed{7}$, $\boxed{3}$, and $\boxed{5}$"],
         [r"\boxed{3}, \boxed{5}", r"\boxed{357}"]),
        ("(1,-2)", [r"$x=\boxed{1}$ and $y=\boxed{-2}$"],
         [r"$x=\boxed{-2}$ and $y=\boxed{1}$", r"\boxed{1}, \boxed{-2}"]),
        ("5", [r"\boxed{3}. Wait, it is \boxed{5}.", r"\boxed{5}. So \boxed{5}.", r"$\boxed{5}$ $\boxed{5}$",
               r"a = \boxed{3}, b = \boxed{2}, so a + b = \boxed{5}"],
         [r"\boxed{4} or \boxed{5}", r"\boxed{4}, \boxed{5}, \boxed{6}", "\\boxed{4}\n\n\\boxed{5}",
          r"\boxed{5}, \boxed{6}"]),
        ("B", [], [r"\boxed{A} or \boxed{B}", r"\boxed{A} \boxed{B} \boxed{C}"]),
        ("1234", [], [r"\boxed{1}, \boxed{234}", r"\boxed{12}\boxed{34}"]),
    ],
    "a response that ends within its thoughts has no answer": [
        ("5", [r"<think>\boxed{4}</think>\boxed{5}"],
         [r"<think> It might be \boxed{5} but let me check", r"\boxed{5} <think> or not", "<think> Answer: 5",
          r"<think>a</think> so <think> \boxed{5}", r"<think>\boxed{5}</think>"]),
    ],
}  # fmt: skip


def is_right(reference: str, response: str) -> bool:
    answer = extract_answer(response)
    return answer is not None and grade(reference, answer)[0] == 1


@pytest.mark.parametrize("rule", [*ANSWERS, *RESPONSES])
def test_a_rule_makes_right_what_is_right_and_nothing_that_is_wrong(rule):
    written = "{}" if rule in RESPONSES else r"\boxed{{{}}}"
    for reference, right, wrong in (ANSWERS | RESPONSES)[rule]:
        found = [answer for answer in right + wrong if is_right(reference, written.format(answer))]
        assert found == right, reference


def test_powers_and_factorials_are_right_exactly_where_fractions_are_equal():
    draw = random.Random(0)
    factorials = {n: r for n, r in zip(range(1, 40), factorial_values(), strict=False)}
    verdicts = []
    for _ in range(150):
        base, power, shift = draw.randint(2, 9), draw.randint(30, 200), draw.choice((-1, 0, 0, 1))
        top, bottom = draw.randint(1, 12), draw.randint(20, 39)
        gold = Fraction(top, base**power) + Fraction(1, factorials[bottom])
        guess = Fraction(top, 1) * Fraction(base) ** -(power + shift) + Fraction(1, factorials[bottom])
        reference = rf"\frac{{{top}}}{{{base}^{{{power}}}}} + \frac{{1}}{{{bottom}!}}"
        answer = rf"\frac{{1}}{{{bottom}!}} + {top} \cdot {base}^{{{-(power + shift)}}}"
        verdicts.append(gold == guess)
        assert (grade(reference, answer)[0] == 1) == (gold == guess), (reference, answer)
    assert 50 < sum(verdicts) < 100


def factorial_values():
    value = 1
    for n in range(1, 40):
        value *= n
        yield value
