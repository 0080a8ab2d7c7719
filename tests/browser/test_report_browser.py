"""The report in Chromium: what a person sees, hovers and reaches with the keyboard, and what hostile text cannot do."""

import json
import re

import fake_run
import hostile_run
import pytest

from dasd_jax.page import build
from dasd_jax.run import records

pytestmark = pytest.mark.browser
LABELS = {
    "entropy": "entropy, nats",
    "gap": "gap, nats",
    "route": "route",
    "gate": "gate",
    "dense": "teacher’s share of the credit",
    "credit": "credit",
}


@pytest.fixture(scope="module")
def chromium():
    from chromium import browser

    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = [fake_run.write(folder / f"run{i}", steps=6, rollouts=3, tokens=30, seed=i) for i in range(2)]
    config = json.loads((made[1] / "config.json").read_text())
    config["objective"]["beta"] = 0.0  # two series, not two seeds
    (made[1] / "config.json").write_text(json.dumps(config))
    return made


def report(path, *runs):
    warning = {"step": 1, "until": 2, "text": hostile_run.HOSTILE}
    build.write(path, build.report(runs, 15, lambda run: [warning]).html)
    return path


@pytest.fixture(scope="module")
def shown(chromium, runs, tmp_path_factory):
    """The report of both runs, opened once; tests leave no state that another one needs."""
    from chromium import opened

    with opened(chromium, report(tmp_path_factory.mktemp("page") / "report.html", *runs)) as found:
        found.page.wait_for_selector("#token-text .t")
        yield found


def detail(page):
    """What the detail pane says, term → text."""
    return dict(zip(page.locator("#token-detail dt").all_text_contents(),
                    page.locator("#token-detail dd").all_text_contents(), strict=True))  # fmt: skip


def number(text):
    return float(text.replace("−", "-"))


def select(page, **values):
    for name, value in values.items():
        page.select_option(f"#token-{name}", str(value))
        page.wait_for_timeout(100)


def test_a_hovered_token_shows_the_numbers_of_the_log(shown, runs):
    page, place = shown.page, 7
    select(page, run=1, step=4, problem=1, rollout=2)
    problem = [each for each in records.samples(runs[1]) if each["step"] == 4][1]
    rollout = problem["rollouts"][2]
    page.hover(f"#t{place}")
    found = detail(page)
    for name, label in LABELS.items():
        assert number(found[label]) == pytest.approx(rollout[name][place], rel=6e-3, abs=1e-5), name
    assert number(found["verifier’s share of the credit"]) == rollout["advantage"]
    assert page.locator("#token-detail .piece").text_content() == records.pieces(rollout)[place].replace("\n", "↵\n")
    assert problem["question"] in page.locator("#token-problem-text").text_content()
    assert "".join(page.locator("#token-text .t").all_text_contents()).replace("↵", "") == "".join(
        records.pieces(rollout)
    )


def test_alternatives_of_both_views_are_shown_where_they_are_logged(shown, runs):
    page = shown.page
    select(page, run=0, step=1, problem=0, rollout=0)
    logged = next(records.samples(runs[0]))["rollouts"][0]["alternatives"][0]
    page.hover(f"#t{logged['token']}")
    for view in ("student", "teacher"):
        texts = page.locator(f"#token-detail .views div:has(h3:text-is('{view}')) li").all_text_contents()
        assert [
            text.startswith(piece.replace("\n", "↵")) for text, (piece, _, _) in zip(texts, logged[view], strict=True)
        ]
        assert len(texts) == 5
    without = next(i for i in range(30) if i not in {each["token"] for each in
                   next(records.samples(runs[0]))["rollouts"][0]["alternatives"]})  # fmt: skip
    page.hover(f"#t{without}")
    assert page.locator("#token-detail .views").count() == 0


def test_colours_follow_directions(shown, runs):
    page = shown.page
    select(page, run=0, step=2, problem=0, rollout=1)
    rollout = next(each for each in records.samples(runs[0]) if each["step"] == 2)["rollouts"][1]
    classes = [page.locator(f"#t{i}").get_attribute("class") for i in range(30)]
    for kind, sign in (("a", 1), ("r", -1)):
        assert [bool(re.search(rf" {kind}[1-4]", each)) for each in classes] == [
            direction == sign for direction in records.directions(rollout)
        ]
    assert ["fork" in each for each in classes] == records.forks(rollout)


def test_arrow_keys_move_from_token_to_token(shown):
    page = shown.page
    page.focus("#token-text")

    def place():
        return int(page.locator("#token-text").get_attribute("aria-activedescendant")[1:])

    page.keyboard.press("Home")
    assert place() == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert place() == 1
    page.keyboard.press("End")
    assert place() == 29
    page.keyboard.press("ArrowRight")
    assert place() == 29
    page.keyboard.press("ArrowUp")
    assert page.locator("#t29").bounding_box()["y"] > page.locator(f"#t{place()}").bounding_box()["y"]


@pytest.mark.parametrize(("kept", "word"), [("right", "✓ right"), ("wrong", "✗ wrong")])
def test_filters_show_what_they_name(shown, runs, kept, word):
    page = shown.page
    select(page, run=0, filter=kept)
    wanted = float(kept == "right")
    expected = sum(
        rollout["reward"] == wanted for problem in records.samples(runs[0]) for rollout in problem["rollouts"]
    )
    assert page.locator("#token-count").text_content() == f"1 of {expected}"
    for _ in range(3):
        assert word in page.locator("#token-verdict").text_content()
        page.click("#token-next")
        page.wait_for_timeout(60)
    select(page, filter="truncated")
    assert page.locator("#token-count").text_content() == "none"
    select(page, filter="all")


def test_two_runs_lie_over_each_other_with_colours_and_dashes(shown):
    page = shown.page
    panel = page.locator(".panel", has=page.locator("h3:text-is('Reward')"))
    strokes = panel.locator(".plot path.series").evaluate_all(
        "paths => paths.map(getComputedStyle).map(style => [style.stroke, style.strokeDasharray])"
    )
    assert len(strokes) == 2
    assert strokes[0][0] != strokes[1][0] and strokes[0][1] != strokes[1][1]
    assert page.locator("#legend li").all_text_contents() == ["run0", "run1"]


def test_a_focused_panel_reads_out_a_step(shown, runs):
    page = shown.page
    panel = page.locator(".panel", has=page.locator("h3:text-is('Entropy')"))
    panel.locator("svg.plot").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert panel.locator(".readout span").first.text_content() == "step 2"
    values = [number(text) for text in panel.locator(".readout b").all_text_contents()]
    assert values == pytest.approx([records.metrics(run)[2]["entropy/mean"] for run in runs], rel=6e-3)


def test_a_mean_over_seeds_is_of_all_of_them(chromium, tmp_path):
    """Seed 0 has six steps, seed 1 four, of which one lost its entropy: no step has the mean of one seed alone."""
    from chromium import opened

    seeds = [fake_run.write(tmp_path / f"dasd-seed{i}", steps=6, seed=i) for i in range(2)]
    logs = [records.metrics(run) for run in seeds]
    logs[1] = logs[1][:5]
    del logs[1][2]["entropy/mean"]
    logs[0][3]["grad/rare"] = 1.0
    for run, log in zip(seeds, logs, strict=True):
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    with opened(chromium, report(tmp_path / "report.html", *seeds)) as found:
        page = found.page
        for title, name, steps in (("Reward", "reward/mean", [1, 2, 3, 4]), ("Entropy", "entropy/mean", [1, 3, 4])):
            panel = page.locator(".panel", has=page.locator(f"h3:text-is('{title}')"))
            panel.locator("svg.plot").focus()
            page.keyboard.press("Home")
            for step in steps:
                assert panel.locator(".readout span").first.text_content() == f"step {step}"
                values = [log[step][name] for log in logs]
                expected = [sum(values) / 2, min(values), max(values)]
                shown = [number(text) for text in re.findall(r"[−.\d]+", panel.locator(".readout b").text_content())]
                assert shown == pytest.approx(expected, rel=6e-3)
                page.keyboard.press("ArrowRight")
            assert panel.locator(".readout span").first.text_content() == "step 4"
            assert panel.locator(".plot path.band").get_attribute("d").count("L") == 2 * len(steps) - 1
        others = page.locator("#other option").evaluate_all("options => options.map(option => option.value)")
        assert "loss/total" in others and "grad/rare" not in others  # which seed 0 alone has
        assert found.said == []


def test_what_a_run_began_with_and_was_changed_to_stands_under_the_runs(chromium, tmp_path):
    from chromium import opened

    seeds = [fake_run.write(tmp_path / f"run{i}") for i in range(2)]
    change = {"step": 3, "field": "optim.learning_rate", "before": 1e-6, "after": 3e-6}
    origin = {"run": "/runs/first", "step": 50, "weights": "ab" * 32, "optimizer": False}
    (seeds[1] / "changes.jsonl").write_text(json.dumps(change) + "\n")
    (seeds[1] / "from.json").write_text(json.dumps(origin))
    with opened(chromium, report(tmp_path / "report.html", *seeds)) as found:
        notes = found.page.locator("#runs-body p.note").all_text_contents()
        assert notes[1:] == [
            "run1: started from step 50 of /runs/first.",
            "run1: optim.learning_rate 1e-06 → 3e-06 from step 3.",
            "Apart from that, the runs have the same settings.",
        ]
        assert found.page.locator("#legend li").all_text_contents() == ["run0", "run1"]


def test_a_single_evaluation_is_before_and_nothing_after(chromium, tmp_path):
    from chromium import opened

    seeds = [fake_run.write(tmp_path / f"run{i}", seed=i) for i in range(2)]
    (seeds[1] / "heldout" / "4.json").unlink()
    with opened(chromium, report(tmp_path / "report.html", *seeds)) as found:
        rows = (
            found.page.locator("#runs-body tbody")
            .first.locator("tr")
            .evaluate_all("rows => rows.map(row => [...row.children].slice(5).map(cell => cell.textContent))")
        )
        figures = [json.loads((seeds[0] / "heldout" / f"{step}.json").read_text()) for step in (0, 4)]
        before, after = (f"{each['pass@4']:.3f}" for each in figures)
        assert rows[0][3] == f"{before} → {after}" and "–" not in rows[0]
        only = json.loads((seeds[1] / "heldout" / "0.json").read_text())
        assert rows[1] == [f"{only['avg@4']:.3f} ± 0.100", "–", "–", f"{only['pass@4']:.3f}"]


@pytest.mark.parametrize("benchmarks", [("math",), ("math", "aime")])
def test_benchmarks_have_panels_of_their_own_where_there_are_several(benchmarks, chromium, tmp_path):
    """One alone is all that was evaluated, and its macro average: one panel."""
    from chromium import opened

    run = fake_run.write(tmp_path / "run")
    for step in (0, 4):
        path = run / "heldout" / f"{step}.json"
        result = json.loads(path.read_text())
        result["benchmarks"] = dict.fromkeys(benchmarks, result["benchmarks"]["math"])
        path.write_text(json.dumps(result))
    lines = records.metrics(run)
    for line in (lines[0], lines[-1]):
        line["eval/macro/avg@4"] = line["eval/avg@4"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with opened(chromium, report(tmp_path / "report.html", run)) as found:
        titles = [title for title in found.page.locator(".panel h3").all_text_contents() if "Held out" in title]
        others = [f"Held out: {name}" for name in sorted((*benchmarks, "macro"))]
        assert sorted(titles) == ["Held out", *(others if len(benchmarks) > 1 else [])]


def test_warnings_say_where_a_level_was_crossed_or_why_it_is_not_known(chromium, tmp_path):
    from chromium import opened

    runs = [fake_run.write(tmp_path / f"run{i}") for i in range(2)]
    changed = {"step": 3, "field": "run.eval_temperature", "before": 1.0, "after": 0.0}
    (runs[0] / "changes.jsonl").write_text(json.dumps(changed) + "\n")
    said = {runs[0]: [{"step": 2, "until": 2, "text": "low"}, {"step": 3, "until": 4, "text": "odd"}], runs[1]: None}
    path = tmp_path / "report.html"
    build.write(path, build.report(runs, 15, said.get).html)
    with opened(chromium, path) as found:
        body = found.page.locator("#warnings-body")
        assert body.locator("th[scope=col]").all_text_contents() == ["run", "crossed at step", "warning"]
        assert body.locator("td").all_text_contents() == ["2", "low", "3 to 4", "odd"]
        assert body.locator("p").all_text_contents() == [
            "run1: written by another version of dasd_jax; its warning levels are unknown."
        ]
        notes = found.page.locator("#runs-body p.note").all_text_contents()
        assert (
            "run0: since step 2 held-out problems are evaluated with other settings. "
            "Earlier evaluations do not compare and are left out."
        ) in notes
        gap = found.page.locator(".panel", has=found.page.locator("h3:text-is('Gap')")).locator(".unit")
        assert gap.text_content() == "mean |gap|, nats; thin: rounding error, last measured"


def test_errors_of_one_problem_are_dashes(chromium, tmp_path):
    from chromium import opened

    run = fake_run.write(tmp_path / "run")
    for step, average in ((0, 0.75), (4, 0.25)):
        path = run / "heldout" / f"{step}.json"
        one = {"avg@4": average, "standard_error": None, "per_problem": [average]}
        path.write_text(json.dumps(json.loads(path.read_text()) | one))
    with opened(chromium, report(tmp_path / "report.html", run)) as found:
        cells = found.page.locator("#runs-body tbody").first.locator("td").all_text_contents()
        assert cells[4:7] == ["0.750 ± –", "0.250 ± –", "−0.500 ± –"]
        assert found.said == []


def test_any_other_number_can_be_chosen(shown):
    page = shown.page
    page.select_option("#other", "loss/total")
    assert page.locator("#more .panel h3").all_text_contents() == ["loss/total"]
    page.click("#more .close")
    assert page.locator("#more .panel").count() == 0


def test_the_plane_draws_tokens_of_the_steps_that_are_chosen(shown):
    page = shown.page
    painted = (
        "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
        ".filter((value, i) => i % 4 === 3 && value).length"
    )
    page.wait_for_function(
        "document.getElementById('plane-words').textContent.startsWith('Steps 1 to 6: 1,080 of 1,080')"
    )
    whole = page.locator("#plane-canvas").evaluate(painted)
    page.locator("#plane-to").fill("0")
    assert "Steps 1 to 1: 180 of 180" in page.locator("#plane-words").text_content()
    assert 0 < page.locator("#plane-canvas").evaluate(painted) < whole
    page.locator("#plane-to").fill("5")


def test_answers_before_and_after_stand_side_by_side(shown, runs):
    page = shown.page
    page.select_option("#answer-problem", "2")
    for side, step in enumerate((0, 6)):
        line = list(records.answers(runs[0] / "heldout" / f"{step}.jsonl"))[2]
        texts = page.locator("#answer-sides > div").nth(side).locator(".answer").all_text_contents()
        assert all(text.endswith(answer) for text, answer in zip(texts, line["text"], strict=True))
        assert [("✓" in text) for text in texts] == [reward >= 0.99 for reward in line["reward"]]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_no_word_of_a_title_is_cut(chromium, runs, tmp_path, width, dark):
    from chromium import opened

    with opened(chromium, report(tmp_path / "report.html", *runs), width=width, dark=dark) as found:
        found.page.wait_for_selector("#token-text .t")
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width
        heights = found.page.locator(".panel h3").evaluate_all("titles => titles.map(each => each.offsetHeight)")
        assert len(set(heights)) == 1  # each on one line
        assert found.said == [] and found.asked == []


def test_hostile_text_stays_text(chromium, tmp_path):
    from chromium import opened

    path = report(tmp_path / "report.html", hostile_run.write(tmp_path))
    with opened(chromium, path) as found:
        page = found.page
        page.wait_for_selector("#token-text .t")
        for name in page.locator("#other option").evaluate_all("options => options.map(o => o.value).filter(Boolean)"):
            page.select_option("#other", name)
        for i in range(page.locator("#token-text .t").count()):
            page.evaluate(f"showToken({i})")
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        page.click("#token-next")
        page.click("#answer-next")
        page.wait_for_timeout(300)
        text = page.evaluate("document.body.innerText")
        assert "onerror='window.broken=1'" in text and "<U+202E>" in text and "<U+D800>" in text
        assert page.evaluate("window.broken") is None
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert page.locator("img").count() == 0
        assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 1
        assert found.said == [] and found.asked == []


def test_a_script_that_is_not_ours_does_not_run(chromium, runs, tmp_path):
    """The policy itself: even text that got out of its place would not run."""
    from chromium import opened

    path = report(tmp_path / "report.html", runs[0])
    path.write_text(
        path.read_text().replace("</main>", "</main><script>window.broken=1</script><p onclick='0' style='x:y'>")
    )
    with opened(chromium, path) as found:
        assert found.page.evaluate("window.broken") is None
        assert any("Content Security Policy" in line for line in found.said)
