"""Signatures are minisign's: of its own command and of none but the keys that are named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import minisign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from mlferry_agent.carrying.signing import MOST_SIGNATURE_BYTES, Signer, check_signature, digesting, public_keys, signer
from mlferry_agent.errors import BadBundle, BadKey

CONTENT = b"what is carried"


def digest(content: bytes = CONTENT) -> bytes:
    made = digesting()
    made.update(content)
    found: bytes = made.digest()
    return found


def a_key(folder: Path, name: str = "key", password: str = "") -> tuple[Signer, tuple[Any, ...]]:
    """Somebody's: what signs, and what others know of it."""
    pair = minisign.KeyPair.generate()
    if password:
        pair.secret_key.encrypt(password, opslimit=minisign.OPSLIMIT // 64, memlimit=minisign.MEMLIMIT // 64)
    (folder / name).write_bytes(bytes(pair.secret_key) + b"\n")
    (folder / f"{name}.pub").write_bytes(bytes(pair.public_key) + b"\n")
    return signer(folder / name, lambda question: "secret"), public_keys([str(folder / f"{name}.pub")])


def test_a_signature_is_good_for_its_file_and_key_alone(tmp_path: Path) -> None:
    (mine, my_keys), (_, others) = a_key(tmp_path), a_key(tmp_path, "other")
    made = mine(digest(), "b.tar.zst")
    check_signature(others + my_keys, digest(), made, "b")
    for keys, content in ((others, CONTENT), (my_keys, b"something else")):
        with pytest.raises(BadBundle, match="b is not as any of the keys"):
            check_signature(keys, digest(content), made, "b")


def test_a_key_with_a_password_asks_for_it(tmp_path: Path) -> None:
    mine, keys = a_key(tmp_path, password="secret")
    check_signature(keys, digest(), mine(digest(), "b"), "b")
    with pytest.raises(BadKey, match="wrong password"):
        signer(tmp_path / "key", lambda question: "guessed")


def test_minisign_itself_knows_our_signatures_and_we_know_its_own(tmp_path: Path) -> None:
    if shutil.which("minisign") is None:
        pytest.skip("not installed: minisign")
    mine, keys = a_key(tmp_path)
    path = tmp_path / "b.tar.zst"
    path.write_bytes(CONTENT)
    signature = tmp_path / "b.tar.zst.minisig"
    signature.write_bytes(mine(digest(), path.name))
    verify = ["minisign", "-V", "-p", str(tmp_path / "key.pub"), "-m", str(path)]
    assert "verified" in subprocess.run(verify, capture_output=True, text=True, check=True).stdout
    signature.unlink()
    subprocess.run(["minisign", "-S", "-s", str(tmp_path / "key"), "-m", str(path)], capture_output=True, check=True)
    check_signature(keys, digest(), signature.read_bytes(), "b")


def test_a_signature_longer_than_any_is_none(tmp_path: Path) -> None:
    mine, keys = a_key(tmp_path)
    made = mine(digest(), "b")
    with pytest.raises(BadBundle, match="too long"):
        check_signature(keys, digest(), made + b" " * MOST_SIGNATURE_BYTES, "b")


@settings(max_examples=examples(200))
@given(st.integers(0, 400), st.integers(0, 20), st.binary(max_size=20))
def test_a_signature_that_somebody_edited_is_refused_or_says_the_same(at: int, gone: int, new: bytes) -> None:
    made = SIGN(digest(), "b")
    edited = made[:at] + new + made[at + gone :]
    try:
        check_signature(KEYS, digest(), edited, "b")
    except BadBundle:
        return
    assert edited.split()[-1:] == made.split()[-1:]  # the first line, which nobody signs, and white space


_PAIR = minisign.KeyPair.generate()
KEYS = (_PAIR.public_key,)


def SIGN(content: bytes, name: str) -> bytes:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(_PAIR.secret_key))
        file.flush()
        return signer(Path(file.name), str)(content, name)


@pytest.mark.parametrize("content", [b"", b"nothing\nRWQ\n", b"\xff" * 100])
def test_what_is_no_key_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(BadKey, match="k:"):
        public_keys([str(tmp_path / "k")])
    with pytest.raises(BadKey, match="k:"):
        signer(tmp_path / "k", str)
