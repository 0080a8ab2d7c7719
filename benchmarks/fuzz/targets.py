"""The parsers under fuzz: each target makes a hostile input in an empty folder and says how the program reads it.

A target is a function (rng, valid samples, empty folder) → (what the input is, the call that reads it). The call may
return or raise UserError; anything else is a find, and so is a file that it leaves behind when it raises.
"""

import contextlib
import io
import json
import os
import random
import shutil
import string
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import pyarrow
import pyarrow.parquet

from benchmarks.fuzz import mutate
from benchmarks.fuzz.samples import ROWS, manifest_of, write_samples
from configs import common
from dasd_jax import cli, convert, evaluate, files, generate, prepare, train
from dasd_jax import compile as compile_command
from dasd_jax.data.pipeline import PromptSet, PromptText
from dasd_jax.data.sources import labels, load_problems, split_heldout
from dasd_jax.errors import UserError
from dasd_jax.learner import checkpoint, session
from dasd_jax.learner.metrics import RunLog
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.text.prompts import encode_prompt, left_pad, student_messages
from dasd_jax.text.tokenizer import copy_tokenizer, load_tokenizer
from launchers import sweep, tpu_vm

__all__ = ["TARGETS", "write_samples"]

Target = Callable[[random.Random, Path, Path], tuple[str, Callable[[], object]]]
ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT}/configs/qwen_math.py:tiny"
FIELDS = [(group, field) for group, fields in common.base().to_dict().items() for field in fields]

# ------------------------------------------------------------------------------------------------ commands


def command(main: Callable[[list[str]], None], *argv: str) -> None:
    """Runs a command through its door; exit code 2 with one line becomes a UserError, any other failure a find."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["fuzz", *argv]),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        try:
            cli.run(main)
        except SystemExit as ended:
            error = said.getvalue()
            if ended.code == 2 and error.startswith("error: ") and error.count("\n") == 1:
                raise UserError(error.removeprefix("error: ").rstrip("\n")) from ended
            if ended.code not in (0, None):
                raise AssertionError(f"exit code {ended.code}: {error}") from ended


def _train(*argv: str) -> None:
    """The training command up to where its loop would begin."""

    def one_device(config):
        return make_mesh(config, jax.devices()[:1])

    with mock.patch.object(train, "make_mesh", one_device), mock.patch.object(train.Trainer, "run"):
        command(train.main, *argv)


def overrides(rng: random.Random, _samples: Path, folder: Path):
    """Values of --config.GROUP.FIELD on the command line of `train`."""
    argv = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        group, field = rng.choice(FIELDS)
        value = str(rng.choice(mutate.NASTY)) if rng.random() < 0.6 else _text_of(rng)
        if rng.random() < 0.08:
            field = rng.choice(("", field + "x", field.upper(), "__class__", "get", "\ud800"))
        if rng.random() < 0.03:
            group = rng.choice(("", "loss", "__dict__", "lock"))
        argv.append(f"--config.{group}.{field}={value}")
    if rng.random() < 0.1:
        argv.append(
            rng.choice(("--workdir=", "--workdir=" + "w" * 300, "--config=", "--x", "x", "--", "--config.a", ""))
        )
    what = " ".join(argv)
    return what, lambda: _train(TINY, f"--workdir={folder / 'w'}", *argv)


def _text_of(rng: random.Random) -> str:
    return rng.choice(
        (
            lambda: mutate.nested(rng.choice((10, 500, 20_000))).replace("[", "(").replace("]", ",)"),
            lambda: mutate.nested(rng.choice((150, 900))),
            lambda: "9" * rng.choice((20, 400, 5000)),
            lambda: rng.choice("+-") + str(rng.randrange(10**6)) + rng.choice(("", ".", ".5", "e9", "e999", "_0", "٣")),
            lambda: "".join(rng.choices(string.printable, k=rng.randrange(40))),
            lambda: rng.choice(
                ("__import__('os').system('true')", "(1 for _ in ())", "lambda: 0", "('a',)", "('a','a')")
            ),
            lambda: rng.choice(("0", "1", "2", "4", "8", "0.5", "1.0", "1e-3", "true", "none", "full")),
            lambda: rng.choice(("NaN", "inf", "-inf", "1e-400", "True", "FALSE", "none", "0x10", "1_000", "²")),
        )
    )()


def config_files(rng: random.Random, _samples: Path, folder: Path):
    """What get_config of a config file returns."""
    tiny = cli.load_config(str(ROOT / "configs/qwen_math.py"), "tiny").to_dict()
    places = [(group, field) for group in tiny for field in tiny[group]]
    group, field = rng.choice(places)
    if rng.random() < 0.8:
        tiny[group][field] = rng.choice((*mutate.NASTY, 1, 2, 4, 8, 0.25, 1e-3, "none"))
        what = f"{group}.{field} = {tiny[group][field]!r:.50}"
    else:
        tiny[group] = rng.choice(mutate.NASTY)
        what = f"{group} = {tiny[group]!r:.50}"
    if rng.random() < 0.1:
        del tiny[rng.choice(list(tiny))]
    file = folder / "config.py"
    head = "from math import inf, nan\nimport ml_collections\n\n\ndef get_config(arg):\n"
    file.write_text(f"{head}    return ml_collections.ConfigDict({tiny!r})\n", errors="surrogatepass")
    return what, lambda: _train(f"--config={file}", f"--workdir={folder / 'w'}")


def command_flags(rng: random.Random, samples: Path, folder: Path):
    """Flags of the other commands."""
    name = rng.choice(list(_COMMANDS))
    main, flags = _COMMANDS[name]
    flags = [flag.format(samples=samples, folder=folder, config=TINY) for flag in flags]
    place = rng.randrange(len(flags))
    flags[place] = flags[place].partition("=")[0] + "=" + rng.choice((*map(str, mutate.NASTY), "x" * 300, str(samples)))
    return f"{name} {' '.join(flags)}", lambda: command(main, *flags)


_COMMANDS = {
    "prepare": (prepare.main, ["--input={samples}/rows.jsonl", "--output={folder}/set", "--layout=auto"]),
    "convert": (convert.main, ["--source={samples}/hf", "--output={folder}/out", "--format=hf"]),
    "evaluate": (evaluate.main, ["{config}", "--workdir={folder}/w", "--checkpoint=9"]),
    "generate": (generate.main, ["{config}", "--workdir={folder}/w", "--checkpoint=9", "--prompt=1 + 1?"]),
    "compile": (compile_command.main, ["{config}", "--topology=v5e:2x4"]),
}


def launcher_flags(rng: random.Random, _samples: Path, folder: Path):
    """Flags of the launcher and of sweeps."""
    flags = ["run", "--name=n", "--project=my-project-123", "--zone=us-west4-a", "--slice=v5e-8", "--bucket=bbb", "--"]
    flags += ["python", "-m", "dasd_jax.train", TINY, "--workdir=/bucket/runs/a"]
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(len(flags))
        name, equals, _ = flags[place].partition("=")
        flags[place] = name + equals + str(rng.choice(mutate.NASTY)) if rng.random() < 0.7 else _text_of(rng)
    file = folder / "my.flags"
    if rng.random() < 0.3:
        file.write_bytes(mutate.damaged(rng, " ".join(flags[1:6]).encode())[1])
        flags[1:6] = [f"@{file}"]
    return " ".join(flags), lambda: command(tpu_vm.main, "--dry-run", *flags)


# ------------------------------------------------------------------------------------------------ problems


def _read_problems(*specs: str) -> None:
    """As a run does: read, hold out, tokenise."""
    problems, _ = load_problems(specs)
    kept, _ = split_heldout(problems, min(1, len(problems) - 1))
    labels(specs)
    text = PromptText("boxed", "answer", None, shots=())
    PromptSet(kept, load_tokenizer("byte"), text, student_width=4096, teacher_width=4096, target_width=4096)


def rows_jsonl(rng: random.Random, samples: Path, folder: Path):
    """Lines of a JSONL file."""
    file = folder / "rows.jsonl"
    if rng.random() < 0.5:
        what, line = mutate.altered(rng, rng.choice(ROWS))
        lines = [json.dumps(row) for row in ROWS[:2]] + [line]
        file.write_bytes("\n".join(rng.sample(lines, 3)).encode(errors="surrogateescape"))
    else:
        what, content = mutate.damaged(rng, (samples / "rows.jsonl").read_bytes())
        file.write_bytes(content)
    return what, lambda: _read_problems(f"jsonl:{file}")


_COLUMNS = (
    pyarrow.array([b"\xff\xfe", b"a"], pyarrow.binary()),
    pyarrow.array([1, None], pyarrow.int64()),
    pyarrow.array([float("nan"), float("inf")], pyarrow.float64()),
    pyarrow.array([2**62, -(2**63)], pyarrow.timestamp("ns")),
    pyarrow.array([2**62, -(2**63)], pyarrow.timestamp("s")),
    pyarrow.array([2**31 - 1, -(2**31)], pyarrow.date32()),
    pyarrow.array([2**62, 1], pyarrow.duration("s")),
    pyarrow.array([[], None], pyarrow.list_(pyarrow.string())),
    pyarrow.array([{"a": 1}, None]),
    pyarrow.array([[("a", 1), ("a", 2)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    pyarrow.array([True, None], pyarrow.bool_()),
    pyarrow.array([None, None], pyarrow.null()),
    pyarrow.array(["", "x" * 100_000], pyarrow.large_string()),
    pyarrow.DictionaryArray.from_arrays(pyarrow.array([0, 0]), pyarrow.array(["same"])),
)


def rows_parquet(rng: random.Random, samples: Path, folder: Path):
    """Bytes and column types of a Parquet file."""
    file = folder / "rows.parquet"
    if rng.random() < 0.35:
        columns = {name: rng.choice(_COLUMNS) for name in ("question", "answer", "solution", "question")}
        what = ", ".join(f"{name} {column.type}" for name, column in columns.items())
        with contextlib.suppress(pyarrow.ArrowException):  # not every type can be written
            pyarrow.parquet.write_table(pyarrow.table(columns), file)
    else:
        content = (samples / "rows.parquet").read_bytes()
        if rng.random() < 0.5:  # the footer is where the lengths are
            body, footer = content[:-800], content[-800:]
            what, footer = mutate.damaged(rng, footer)
            file.write_bytes(body + footer)
        else:
            what, content = mutate.damaged(rng, content)
            file.write_bytes(content)
    return what, lambda: _read_problems(f"parquet:{file}")


def specs(rng: random.Random, samples: Path, folder: Path):
    """Source specs, and data sets of TFDS with damaged files."""
    if rng.random() < 0.2:
        folder = _prepared(samples, folder)
        name = rng.choice(sorted(path.name for path in folder.iterdir()))
        what, content = mutate.damaged(rng, (folder / name).read_bytes())
        (folder / name).write_bytes(content)
        return f"tfds {name}: {what}", lambda: _read_problems(f"tfds:{folder}")
    known = (
        "gym:chain_sum?min_terms=2&max_terms=2&size=5&seed=1",
        "gym:lcm?size=3",
        f"jsonl:{samples}/rows.jsonl?question=question&answer=answer",
        f"parquet:{samples}/rows.parquet?privileged=solution",
        f"tfds:{samples}/hf?split=train",
    )
    spec = rng.choice(known)
    if rng.random() < 0.7:
        head, _, query = spec.partition("?")
        pairs = [pair.partition("=") for pair in query.split("&") if pair] or [("size", "=", "3")]
        place = rng.randrange(len(pairs))
        name = rng.choice((pairs[place][0],) * 4 + ("privileged", "question", "seed", "size", "operators", "__class__"))
        pairs[place] = (name, "=", str(rng.choice(mutate.NASTY)) if rng.random() < 0.7 else _text_of(rng))
        spec = head + "?" + "&".join("".join(pair) for pair in pairs)
    else:
        spec = mutate.damaged(rng, spec.encode())[1].decode(errors="surrogateescape")
    return spec, lambda: _read_problems(spec)


def _prepared(samples: Path, folder: Path) -> Path:
    """A copy of a data set that `prepare` made."""
    made = samples / "prepared"
    if not made.exists():
        command(prepare.main, f"--input={samples}/rows.jsonl", f"--output={made}")
    return Path(shutil.copytree(made, folder / "set"))


def prepared(rng: random.Random, _samples: Path, folder: Path):
    """Rows of the published layouts, through the command that makes data sets of them."""
    rows = rng.choice(
        (
            [{"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2", "style": "rule"}}],
            [{"problem": "What is 2?", "solution": "It is \\boxed{2}."}],
            [{"problem": "What is 2?", "answer": "2", "solution": "2."}],
            [{"prompt": "What is 2?", "solution": "2", "source_prompt": [{"role": "user", "content": "?"}]}],
            [{"question": "1?", "final_answer": ["1"], "modality": "Text-only", "language": "English", "error": None}],
            ROWS[:2],
        )
    )
    what, line = mutate.altered(rng, rows[0])
    file = folder / "rows.jsonl"
    file.write_bytes((line + "\n" + json.dumps(rows[0])).encode(errors="surrogateescape"))
    extra = []
    if rng.random() < 0.3:
        extra = [
            rng.choice(("--layout=", "--columns=")) + rng.choice(("boxed", "question=a", "=", ",", "\ud800", "dapo"))
        ]
    return what, lambda: command(prepare.main, f"--input={file}", f"--output={folder / 'set'}", *extra)


# ------------------------------------------------------------------------------------------------ tokenizers


_ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch escaped') }}",
    "{{ lipsum.__globals__['os'].popen('touch escaped').read() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{{ ''|attr('__class__')|attr('__base__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ '%s' % messages.__class__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.listdir('.') }}",
    "{% extends messages %}",
    "{{ namespace(**{'__class__': 1}) }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ dict.__base__ }}{{ joiner.__init__.__globals__ }}",
    "{{ tojson.func.__globals__ }}",
    "{{ range.__self__ }}{{ loop.__class__ }}",
)
_ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxx' }}{% endfor %}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{% set x = namespace(v='xxxx') %}{% for i in range(60) %}{% set x.v = x.v ~ x.v %}{% endfor %}{{ x.v }}",
    "{{ 'x'.rjust(10000000000) }}",
    "{{ 'x'|center(10000000000) }}",
    "{{ '%10000000000s' % 'x' }}",
    "{{ '{:>10000000000}'.format('x') }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 1 << 99999999999 }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}",
    "{{ range(10**9)|list }}",
    "{{ [0] * 10**10 }}",
    "{{ ('a' * 100000)|replace('', 'b' * 100000) }}",
    "{{ messages|tojson * 10**9 }}",
    "{{ lipsum(n=1000000000) }}",
    "{{ ((('a' * 30)|list)|batch(1)|list)|string * 10**8 }}",
    "{{ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaa!'|wordwrap(1) * 10**8 }}",
    "{{ '(' * 10000 }}" + "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{{ " + "-" * 50000 + "1 }}",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "{{ messages" + "|list" * 20000 + " }}",
)


def templates(rng: random.Random, _samples: Path, _folder: Path):
    """Chat templates: ways out of the sandbox, work without end, output without end, damaged text."""
    tokenizer = load_tokenizer("byte")
    kind = rng.random()
    if kind < 0.45:
        template = rng.choice(_ESCAPES)
    elif kind < 0.6:
        template = rng.choice(_ENDLESS)
    else:
        template = mutate.damaged(rng, tokenizer.chat_template.encode())[1].decode(errors="surrogateescape")
    if rng.random() < 0.3:
        place = rng.randrange(len(tokenizer.chat_template))
        template = tokenizer.chat_template[:place] + template + tokenizer.chat_template[place:]
    tokenizer.chat_template = template

    def render():
        ids = encode_prompt(tokenizer, student_messages("1 + 1?", instruction=""), enable_thinking=True)
        text = tokenizer.decode(ids)
        if any(word in text for word in ("<module", "<class 'os", "root:x:", "__builtins__", "subprocess.Popen")):
            raise AssertionError(f"the template reached out of its sandbox: {text!r:.200}")

    return template[:200], render


def _use_tokenizer(path: str, copies: Path) -> None:
    tokenizer = load_tokenizer(path)
    ids = encode_prompt(tokenizer, student_messages("What is 1 + 12? é 😀", instruction=""))
    tokenizer.decode([*ids, 0, 1, 10**6])
    for id in (0, 1, 5, 10**6):
        tokenizer.piece(id)
    left_pad([ids], len(ids) + 1, tokenizer.pad_id)
    copy_tokenizer(path, copies)


def tokenizer_json(rng: random.Random, samples: Path, folder: Path):
    """A Hugging Face folder's tokenizer.json and the files beside it."""
    source = folder / "source"
    source.mkdir()
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for name in names:
        shutil.copy(samples / "hf" / name, source / name)
    name = rng.choice(names)
    if rng.random() < 0.8:
        what, text = mutate.altered(rng, json.loads((source / name).read_text()))
        (source / name).write_bytes(text.encode(errors="surrogateescape"))
    else:
        what, content = mutate.damaged(rng, (source / name).read_bytes())
        (source / name).write_bytes(content)
    return f"{name}: {what}", lambda: _use_tokenizer(str(source), _copy_in(folder))


def _copy_in(folder: Path) -> Path:
    """Where the files of a tokenizer are copied to; not looked at afterwards, for `convert` copies into a draft."""
    copies = folder.parent / "copies"
    shutil.rmtree(copies, ignore_errors=True)
    copies.mkdir()
    return copies


def sentencepiece_model(rng: random.Random, samples: Path, folder: Path):
    """A SentencePiece .model file."""
    file = folder / "tokenizer.model"
    what, content = mutate.damaged(rng, (samples / "tiny.model").read_bytes())
    file.write_bytes(content)
    return what, lambda: _use_tokenizer(str(file), _copy_in(folder))


# ------------------------------------------------------------------------------------------------ weights


def _load_weights(path: Path) -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        session.load_weights(str(path), mesh)


def gguf_header(rng: random.Random, samples: Path, folder: Path):
    """The header, metadata and tensor table of a GGUF file, for weights and tokenizer."""
    file = folder / "tiny.gguf"
    content = (samples / "tiny.gguf").read_bytes()
    header = content.rindex(b"ffn_down.weight") + 64
    if rng.random() < 0.3:
        what, content = _retyped(rng, content)
    else:
        what, content = mutate.damaged(rng, content, rng.choice((64, 900, header)))
    file.write_bytes(content)

    def read():
        with contextlib.suppress(UserError):
            _use_tokenizer(str(file), _copy_in(folder))
        _load_weights(file)

    return what, read


def _retyped(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """A value of the metadata with another type or length behind its key."""
    keys = (b"general.architecture", b"llama.block_count", b"llama.embedding_length", b"llama.attention.head_count",
            b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"tokenizer.ggml.eos_token_id",
            b"tokenizer.chat_template", b"tokenizer.ggml.padding_token_id", b"llama.rope.freq_base")  # fmt: skip
    key = rng.choice(keys)
    at = content.index(key) + len(key) + rng.choice((0, 0, 4, 4, 8))
    value = rng.choice((0, 1, 8, 9, 12, 13, 2**31, 2**32 - 1)).to_bytes(4, "little")
    return f"{key.decode()} at {at}: {value.hex()}", content[:at] + value + content[at + 4 :]


def hf_folder(rng: random.Random, samples: Path, folder: Path):
    """config.json and the safetensors header of a Hugging Face folder."""
    source = folder / "source"
    shutil.copytree(samples / "hf", source)
    file = source / "model.safetensors"
    kind = rng.random()
    if kind < 0.4:
        raw = json.loads((source / "config.json").read_text())
        raw["rope_scaling"] = {"rope_type": rng.choice(("yarn", "llama3")), "factor": 2.0, "low_freq_factor": 1.0,
                               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
        if rng.random() < 0.5:
            raw["rope_scaling"] = None
        if rng.random() < 0.7:
            del raw["rope_parameters"]
        what, text = mutate.altered(rng, raw)
        (source / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        what = "config.json: " + what
    elif kind < 0.75:
        content = file.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        what, text = mutate.altered(rng, header)
        if rng.random() < 0.3:  # two tensors in the same bytes
            one, two = rng.sample([name for name in header if name != "__metadata__"], 2)
            header[one]["data_offsets"] = header[two]["data_offsets"]
            what, text = f"{one} over {two}", json.dumps(header)
        text = text.encode(errors="surrogateescape")
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    elif kind < 0.8:
        what = "the same tensors in two files"
        shutil.copy(file, source / "more.safetensors")
    else:
        what, content = mutate.damaged(rng, file.read_bytes(), 2000)
        file.write_bytes(content)
    return what, lambda: _load_weights(source)


# ------------------------------------------------------------------------------------------------ runs


def checkpoints(rng: random.Random, samples: Path, folder: Path):
    """Folders of checkpoints: files missing, cut or flipped, manifests that are wrong or vouch for damaged files."""
    run = folder / "run"
    place = run / "checkpoints" / "000002"
    shutil.copytree(samples / "checkpoint", place)
    found = sorted(path for path in place.rglob("*") if path.is_file())
    path = rng.choice(found)
    kind = rng.choice(("damage", "damage", "missing", "manifest", "manifest", "vouched", "vouched", "odd"))
    what = f"{kind}: {path.relative_to(place)}"
    if kind in ("damage", "vouched"):
        what, content = mutate.damaged(rng, path.read_bytes())
        path.write_bytes(content)
        what = f"{kind}: {path.relative_to(place)}: {what}"
    elif kind == "missing":
        path.unlink()
    elif kind == "odd":
        path.unlink()
        rng.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path.name), path.touch))()
    if kind == "manifest":
        what, text = mutate.altered(rng, json.loads((place / "manifest.json").read_text()))
        (place / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
        what = f"manifest: {what}"
    if kind == "vouched" and path.name != "manifest.json":
        (place / "manifest.json").write_text(json.dumps(manifest_of(place)))
    which = rng.choice(("", "2", "best", str(place), "²", "-1", "9" * 30, "\0", "x" * 300, "."))

    def read():
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        with jax.set_mesh(mesh):
            checkpoint.restore_params(checkpoint.find(run, which), mesh)

    return f"--checkpoint={which!r:.30}, {what}", read


def workdirs(rng: random.Random, _samples: Path, folder: Path):
    """What readers of a run meet in its workdir: config, metrics, samples, figures, half an evaluation."""
    workdir = folder / "w"
    _finished(workdir)
    name = rng.choice([path.relative_to(workdir) for path in sorted(workdir.rglob("*")) if path.is_file()])
    path = workdir / name
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = rng.randrange(len(lines))
    if rng.random() < 0.7:
        what, lines[number] = mutate.altered(rng, json.loads(lines[number]))
        path.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    else:
        what, content = mutate.damaged(rng, path.read_bytes())
        path.write_bytes(content)

    if path.name != "done.json":
        (workdir / "done.json").unlink(missing_ok=True)
    if path.name == "config.json":
        (workdir / "checkpoints").mkdir()

    def read():
        if path.name == "4.partial.jsonl":
            evaluate.Partial(path, {"checkpoint": "4", "run.seed": 0})
        elif path.name == "config.json":
            train._check_workdir(cli.parse(cli.parser(""), [TINY]).config, workdir)
            convert._source(workdir)
        elif path.name == "done.json":
            point = sweep.Point({"run.seed": 0}, workdir, ())
            sweep.table([point], [sweep.result(point)], {})
            train.train(cli.parse(cli.parser(""), [TINY]).config, workdir)
        elif path.parent.name == "heldout":
            _end_of_a_run(workdir)
        else:
            RunLog(workdir, 4).close()

    return f"{name}: {what}", read


def _end_of_a_run(workdir: Path) -> None:
    """What is left of a run that was killed between its last checkpoint and done.json."""
    config = cli.parse(cli.parser(""), [TINY, "--config.run.steps=4"]).config
    run = SimpleNamespace(config=config, workdir=workdir, state=SimpleNamespace(step=4))
    lines = [{"step": step, "reward/mean": 0.5} for step in range(5)]
    run.display, run.log = mock.Mock(), SimpleNamespace(lines=lines, close=lambda: None)
    run._done = lambda seconds: train.Trainer._done(run, seconds)
    train.Trainer.run(run)


def _finished(workdir: Path) -> None:
    """The files of a finished run, without one."""
    figures = {
        "problems": 2,
        "samples": 2,
        "avg@2": 0.5,
        "pass@2": 0.5,
        "standard_error": 0.1,
        "per_problem": [0.0, 1.0],
    }
    figures["macro"] = {"avg@2": 0.5}
    held = {"avg@2": [0.1, 0.2], "pass@2": [0.1, 0.2], "standard_error": [0.1, 0.1], "rise": 0.1}
    held |= {"rise_standard_error": 0.01, "problems": 2}
    answer = {"example_id": 0, "reward": [0.0], "length": [3], "finished": [True], "error": [""]}
    metrics = [{"step": step, "reward/mean": 0.5, "entropy/mean": 1.0, "eval/avg@2": 0.1} for step in range(5)]
    samples = [{"step": step, "question": "1?", "text": "2", "tokens": ["2"], "entropy": [0.1]} for step in range(1, 5)]
    tiny = cli.parse(cli.parser(""), [TINY]).config
    files.write_json(workdir / "config.json", json.loads(json.dumps(tiny, default=vars)))
    files.write_json(workdir / "heldout" / "0.json", figures)
    files.write_json(workdir / "heldout" / "4.json", figures)
    files.write_json(
        workdir / "done.json",
        {"heldout": held, "mean_over_steps": {"reward/mean": 0.1}, "seconds_this_session": 1.0, "peak_memory_gib": 1.0,
         "workdir": str(workdir), "steps": 4, "method": "dasd", "beta": 0.1},
    )  # fmt: skip
    (workdir / "eval").mkdir()
    identity = {"checkpoint": "4", "run.seed": 0}
    for name, lines in (
        ("metrics.jsonl", metrics),
        ("samples.jsonl", samples),
        ("eval/4.partial.jsonl", [identity, answer, answer]),
    ):
        (workdir / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


# Target → its share of the inputs of a whole run.
TARGETS: dict[str, tuple[Target, int]] = {
    "overrides": (overrides, 5),
    "config_files": (config_files, 3),
    "launcher_flags": (launcher_flags, 3),
    "command_flags": (command_flags, 3),
    "rows_jsonl": (rows_jsonl, 5),
    "rows_parquet": (rows_parquet, 5),
    "specs": (specs, 4),
    "prepared": (prepared, 3),
    "templates": (templates, 4),
    "tokenizer_json": (tokenizer_json, 5),
    "sentencepiece_model": (sentencepiece_model, 4),
    "gguf_header": (gguf_header, 6),
    "hf_folder": (hf_folder, 6),
    "checkpoints": (checkpoints, 4),
    "workdirs": (workdirs, 4),
}
