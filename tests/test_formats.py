"""Files of strangers: what a file says of its own length is held against the file before anything is made of it."""

import struct
import time

import gguf as gguf_library
import pytest

from dasd_jax import formats
from dasd_jax.errors import UserError


def gguf(*, kv_count=1, value_type=9, element_type=4, length=1, elements=b"\0" * 4):
    """A header with one key, "k", and no tensors."""
    value = struct.pack("<IQ", element_type, length) + elements
    return (
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, kv_count)
        + struct.pack("<Q", 1)
        + b"k"
        + struct.pack("<I", value_type)
        + value
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 2**60}, "entries: expected at most"),
        ({"length": 2**20}, "it ends before byte"),
        ({"kv_count": 2**63}, "its metadata has"),
        ({"kv_count": 2}, "it ends before byte"),
        ({"element_type": 8, "elements": struct.pack("<Q", 2**62)}, "it ends before byte"),
        ({"element_type": 99}, "99"),
        ({"element_type": 9, "elements": struct.pack("<IQ", 9, 1) * 5000}, "is nested too deeply"),
    ],
)
def test_a_length_that_the_file_does_not_have_is_refused_at_once(change, said, tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(gguf())
    assert formats.GgufReader(file).fields["k"].contents() == [0]
    file.write_bytes(gguf(**change))
    started = time.monotonic()
    with pytest.raises(ValueError, match=said):
        formats.GgufReader(file)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("endian", gguf_library.GGUFEndian)
def test_arrays_are_those_of_gguf_s_own_reader(endian, tmp_path):
    file, arrays = (
        tmp_path / "a.gguf",
        {"texts": ["a b", "", "é"], "floats": [0.5, -2.0], "flags": [True], "ids": [7, 8]},
    )
    writer = gguf_library.GGUFWriter(file, "llama", endianess=endian)
    for name, values in arrays.items():
        writer.add_array(name, values)
    writer.add_uint32("last", 5)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    found, expected = (reader(file).fields for reader in (formats.GgufReader, gguf_library.GGUFReader))
    assert {name: field.contents() for name, field in found.items() if name in arrays} == arrays
    assert {name: field.contents() for name, field in found.items()} == {
        name: field.contents() for name, field in expected.items()
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged"),
        (b"[" * 10**5, "is damaged"),
        (b"[1]", "holds a list: expected an object"),
        (b"null", "holds a NoneType"),
        ('{"a": 1}'.encode("utf-16"), "is damaged"),
        (b'{"a": "\xff"}', "is damaged"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is damaged"),
    ],
)
def test_only_an_object_in_utf_8_is_one(content, said):
    with pytest.raises(ValueError, match=f"^x.json {said}"):
        formats.parse_object(content, "x.json")
    assert formats.parse_object(b'\xef\xbb\xbf{"a": "\xc3\xa9"}', "x.json") == {"a": "é"}


def test_a_user_error_is_one_printable_line_of_bounded_length():
    error = str(UserError("field: 'a\nb\x1b[2J\u202e\ud800': " + "x" * 10**6 + " expected y"))
    assert error.startswith("field: 'a b\\x1b[2J\\u202e\\ud800': xxx") and error.endswith("x expected y")
    assert error.isprintable() and len(error) < 2100
