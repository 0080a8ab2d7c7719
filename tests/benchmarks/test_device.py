"""What a machine is sent in pieces arrives whole or is refused; what is measured there is kept, whatever fails."""

import json
import sys

import pytest

from benchmarks.device import pieces
from benchmarks.device.runner import RESULTS, Part, run_parts
from dasd_jax.errors import UserError


@pytest.fixture
def sent(tmp_path):
    """Files whose borders are not those of the pieces, cut into pieces of 10 bytes; (contents by path, folder)."""
    contents = {"wheels/a.whl": b"0123456", "weights.gguf": bytes(range(25)), "empty": b"", "gsm8k/x": b"end"}
    sources = {}
    for number, (path, content) in enumerate(contents.items()):
        sources[path] = tmp_path / f"source{number}"
        sources[path].write_bytes(content)
    pieces.cut(sources, tmp_path / "pieces", 10)
    return contents, tmp_path / "pieces"


def alone(folder, tmp_path, name):
    """A folder with the manifest and one piece."""
    one = tmp_path / f"only-{name}"
    one.mkdir()
    for file in (name, pieces.MANIFEST):
        (one / file).write_bytes((folder / file).read_bytes())
    return one


def test_pieces_that_come_one_at_a_time_are_joined_as_soon_as_a_file_is_whole(sent, tmp_path):
    contents, folder = sent
    names = sorted(path.name for path in folder.glob("*.piece"))
    assert [(folder / name).stat().st_size for name in names] == [10, 10, 10, 5]
    there = [pieces.join(alone(folder, tmp_path, name), tmp_path / "into")[0] for name in names]
    assert [len(found) for found in there] == [1, 1, 1, 4]
    for path, content in contents.items():
        assert (tmp_path / "into" / path).read_bytes() == content
    assert pieces.join(folder, tmp_path / "into") == ([*contents], [])


def test_a_piece_with_another_sum_is_refused_and_can_be_sent_again(sent, tmp_path):
    contents, folder = sent
    damaged, whole = folder / "002.piece", (folder / "002.piece").read_bytes()
    damaged.write_bytes(whole[:-1] + b"?")
    with pytest.raises(UserError, match=r"002\.piece: sha256 .* expected .* send the piece again"):
        pieces.join(folder, tmp_path / "into")
    assert not (tmp_path / "into" / "weights.gguf").exists()
    damaged.write_bytes(whole)
    assert pieces.join(folder, tmp_path / "into") == ([*contents], [])


def test_a_part_that_fails_or_does_not_end_leaves_its_figures_and_the_next_runs(tmp_path):
    def part(name, code, limit=20.0, least=0.0, needs=()):
        return Part(name, (sys.executable, "-c", f"import sys, time; {code}"), limit, least, needs)

    parts = [
        part("fails", "print('{\"rate\": 2}', flush=True); print('no figure'); sys.exit('it broke')"),
        part("hangs", "print('{\"first\": 1}', flush=True); time.sleep(60)", limit=0.5),
        part("lacks", "", needs=(tmp_path / "weights",)),
        part("late", "", least=1000.0),
        part("told", "print('{\"limit\": {seconds}}')", limit=7.0),
    ]
    lines = run_parts(parts, tmp_path / "out", 100.0, {})
    assert [json.loads(line) for line in (tmp_path / "out" / RESULTS).read_text().splitlines()] == lines
    assert [line["status"] for line in lines] == ["failed", "timeout", "skipped", "skipped", "ok"]
    assert [line.get("figures") for line in lines] == [{"rate": 2}, {"first": 1}, None, None, {"limit": 7}]
    assert lines[0]["reason"] == "exit code 1: it broke" and lines[1]["seconds"] < 5
    assert str(tmp_path / "weights") in lines[2]["reason"] and "1000 needed" in lines[3]["reason"]
