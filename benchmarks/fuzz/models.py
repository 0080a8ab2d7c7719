"""What comes with a model: chat templates, tokenizers, GGUF files and Hugging Face folders."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import jax

from benchmarks.fuzz import mutate
from dasd_jax.errors import UserError
from dasd_jax.mesh import MeshConfig, make_mesh
from dasd_jax.run import models
from dasd_jax.text.prompts import encode_prompt, left_pad, student_messages
from dasd_jax.text.tokenizer_files import copy_tokenizer, load_tokenizer

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
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
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


def _load_weights(path: Path) -> None:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        models.load_weights(str(path), mesh)


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
    """A value of the metadata with another type or length after its key."""
    keys = (b"general.architecture", b"llama.block_count", b"llama.embedding_length", b"llama.attention.head_count",
            b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"tokenizer.ggml.eos_token_id",
            b"tokenizer.chat_template", b"tokenizer.ggml.padding_token_id", b"llama.rope.freq_base")  # fmt: skip
    key = rng.choice(keys)
    at = content.index(key) + len(key) + rng.choice((0, 0, 4, 4, 8))
    value = rng.choice((0, 1, 8, 9, 12, 13, 2**31, 2**32 - 1)).to_bytes(4, "little")
    return f"{key.decode()} at {at}: {value.hex()}", content[:at] + value + content[at + 4 :]


def hf_folder(rng: random.Random, samples: Path, folder: Path):
    """config.json, the index and the safetensors header of a Hugging Face folder."""
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
        for number in (1, 2):
            shutil.copy(file, source / f"model-{number:05d}-of-00002.safetensors")
        file.unlink()
    elif kind < 0.85:
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        names = [name for name in header if name != "__metadata__"]
        what, text = mutate.altered(rng, {"weight_map": dict.fromkeys(names, file.name)})
        (source / "model.safetensors.index.json").write_bytes(text.encode(errors="surrogateescape"))
        what = "index: " + what
    else:
        what, content = mutate.damaged(rng, file.read_bytes(), 2000)
        file.write_bytes(content)
    return what, lambda: _load_weights(source)
