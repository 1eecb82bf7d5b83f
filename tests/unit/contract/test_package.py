"""The package id, and what a folder must be to be loaded."""

import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from bcami.contract.package import load_package, package_id
from bcami.errors import InputError
from tests.unit.contract.world import CHAINCODE

CONTRACT = """from bcami.contract import Contract
class Notes(Contract):
    name = "notes"
"""
MANIFEST = 'name = "notes"\nversion = "1"\n[[contracts]]\nfile = "notes.py"\nclass = "Notes"\n'


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "notes.py").write_text(CONTRACT)
    (tmp_path / "manifest.toml").write_text(MANIFEST)
    return tmp_path


def test_known_id(folder):
    def part(name: bytes, data: bytes) -> bytes:
        return len(name).to_bytes(4, "big") + name + len(data).to_bytes(8, "big") + data

    expected = sha256(
        b"bcami/package/1" + part(b"manifest.toml", MANIFEST.encode()) + part(b"notes.py", CONTRACT.encode())
    )
    assert package_id(folder) == expected.digest()
    assert package_id(folder).hex() == "70ddb1c0bd5f372c5c190985b1b23005068bd05b81631b9b9ac76bc0ef0b9a8e"


def test_id_covers_names_bytes_and_manifest_and_nothing_else(folder):
    first = package_id(folder)
    (folder / "README.md").write_text("not hashed")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "notes.cpython-311.pyc").write_bytes(b"not hashed")
    assert package_id(folder) == first
    (folder / "notes.py").write_text(CONTRACT + "\n")
    second = package_id(folder)
    (folder / "notes.py").write_text(CONTRACT)
    (folder / "manifest.toml").write_text(MANIFEST + "\n")
    third = package_id(folder)
    (folder / "manifest.toml").write_text(MANIFEST)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.py").write_text("")
    assert len({first, second, third, package_id(folder)}) == 4


def test_bundled_package_loads():
    package = load_package(CHAINCODE, package_id(CHAINCODE))
    assert [contract.name for contract in package.contracts] == [
        "registration",
        "usage",
        "mdms",
        "governance",
        "aggregation",
    ]


def test_other_id_is_refused_with_a_way_out(folder):
    with pytest.raises(InputError, match="genesis names 0000") as caught:
        load_package(folder, bytes(32))
    assert package_id(folder).hex() in str(caught.value)
    assert caught.value.where == str(folder)
    assert caught.value.do


def test_one_changed_byte_of_the_bundled_package_is_refused(tmp_path):
    expected = package_id(CHAINCODE)
    copy = Path(shutil.copytree(CHAINCODE, tmp_path / "chaincode"))
    assert load_package(copy, expected).package_id == expected
    text = (copy / "usage.py").read_bytes()
    (copy / "usage.py").write_bytes(text.replace(b"require(not enrolment.revoked", b"require(    enrolment.revoked"))
    with pytest.raises(InputError, match="package id"):
        load_package(copy, expected)


@pytest.mark.parametrize(
    ("name", "text", "what", "where"),
    [
        ("manifest.toml", "name = ", "manifest is not valid", "manifest.toml"),
        ("manifest.toml", 'name = "n"\n', "missing required field", "manifest.toml"),
        ("manifest.toml", MANIFEST + "extra = 1\n", "unknown field", "manifest.toml"),
        (
            "manifest.toml",
            MANIFEST.replace("notes.py", "other.py"),
            "names other.py, which is not there",
            "manifest.toml",
        ),
        (
            "manifest.toml",
            MANIFEST + '[[contracts]]\nfile = "notes.py"\nclass = "Notes"\n',
            "one name",
            "manifest.toml",
        ),
        ("manifest.toml", MANIFEST.replace('"Notes"', '"Other"'), "no contract class Other", "notes.py"),
        ("manifest.toml", MANIFEST.replace('"Notes"', '"Contract"'), "no contract class Contract", "notes.py"),
        ("more.py", "", "no contract of the manifest is in more.py", "more.py"),
        ("notes.py", CONTRACT + "    x = 0.5\n", "a float", "notes.py:4"),
        ("notes.py", "from bcami.contract import Contract\nX = NoName\n", "`NoName`", "notes.py:2"),
        ("notes.py", CONTRACT + "A = 1 + 'a'\n", "the contract does not load: TypeError", "notes.py"),
    ],
)
def test_refused(folder, name, text, what, where):
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=what) as caught:
        load_package(folder, None)
    assert where in caught.value.where


def test_no_package(tmp_path):
    with pytest.raises(InputError, match="not a chaincode package"):
        package_id(tmp_path / "nothing")


def test_links_are_refused(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "notes.py"
    elsewhere.write_text(CONTRACT)
    (folder / "notes.py").unlink()
    (folder / "notes.py").symlink_to(elsewhere)
    with pytest.raises(InputError, match="plain files only"):
        load_package(folder, None)


def test_oversized(folder):
    (folder / "notes.py").write_text("#" * (4 * 1024 * 1024))
    with pytest.raises(InputError, match="at most"):
        load_package(folder, None)


def test_an_import_that_hides_from_the_check_fails_when_it_runs(folder):
    """The list of builtins holds at run time, too."""
    (folder / "notes.py").write_text(CONTRACT)
    package = load_package(folder, None)
    contract = package.contracts[0]
    builtins = __import__("sys").modules[contract.__module__].__dict__["__builtins__"]
    assert "open" not in builtins
    with pytest.raises(ImportError, match="bcami.contract only"):
        builtins["__import__"]("os")
