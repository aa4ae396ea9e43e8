"""Encryption is age's: for those who are named, in a stream, refused where a byte of it is missing or changed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.examples import examples

from mlferry_agent.carrying.sealing import AGE, Encrypting, age_overhead, decrypting, identities_of, recipients_of
from mlferry_agent.errors import BadBundle, BadKey, Locked

IDENTITY = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()


def sealed(content: bytes) -> bytes:
    out = io.BytesIO()
    encrypting = Encrypting(out, [IDENTITY.to_public()])
    for at in range(0, len(content), 50_000):
        encrypting.write(content[at : at + 50_000])
    encrypting.close()
    return out.getvalue()


def opened(content: bytes, identity: object = IDENTITY) -> bytes:
    with decrypting(io.BytesIO(content), [identity], "b") as file:
        return file.read()


@pytest.mark.parametrize("size", [0, 1, 64 << 10, 300_000])
def test_what_goes_in_comes_out_and_is_no_longer_than_was_said(size: int) -> None:
    content = os.urandom(size)
    made = sealed(content)
    assert made.startswith(AGE) and opened(made) == content
    assert len(made) <= size + age_overhead([IDENTITY], len(made))


def test_another_identity_does_not_open_it() -> None:
    with pytest.raises(Locked, match="b: it is encrypted for others"):
        opened(sealed(b"x" * 1000), OTHER)


def test_cut_anywhere_it_is_refused() -> None:
    made = sealed(bytes(70_000))
    for length in [*range(0, 400), 40_000, len(made) - 20_000, len(made) - 1]:
        with pytest.raises(BadBundle, match="b: it is damaged, or was cut"):
            opened(made[:length])


MADE = sealed(b"some words" * 20)


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(MADE)), st.integers(0, 40), st.binary(max_size=40)), max_size=3))
def test_edited_it_is_refused_or_is_the_same(edits: list[tuple[int, int, bytes]]) -> None:
    edited = MADE
    for at, gone, new in edits:
        edited = edited[:at] + new + edited[at + gone :]
    try:
        assert opened(edited) == b"some words" * 20
    except (BadBundle, Locked):
        return


def test_what_the_medium_says_is_raised_as_it_is() -> None:
    class Full(io.RawIOBase):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    encrypting = Encrypting(Full(), [IDENTITY.to_public()])
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            encrypting.write(bytes(100_000))
        encrypting.close()


def test_a_reader_that_stops_half_way_is_done_with() -> None:
    file = decrypting(io.BytesIO(sealed(bytes(3_000_000))), [IDENTITY], "b")
    assert file.read(10) == bytes(10)
    file.close()


def test_age_itself_opens_what_we_made_and_we_open_its_own(tmp_path: Path) -> None:
    if shutil.which("age") is None:
        pytest.skip("not installed: age")
    key = tmp_path / "key.txt"
    key.write_text(f"# made by hand\n{IDENTITY}\n")
    theirs = subprocess.run(["age", "-d", "-i", key], input=sealed(b"words"), capture_output=True, check=True)
    assert theirs.stdout == b"words"
    made = subprocess.run(["age", "-r", str(IDENTITY.to_public())], input=b"words", capture_output=True, check=True)
    [identity] = identities_of([key])
    assert opened(made.stdout, identity) == b"words"


def test_keys_of_ssh_are_recipients_and_identities(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("not installed: ssh-keygen")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "k"], check=True)
    public = (tmp_path / "k.pub").read_text().strip()
    for text in (public, str(tmp_path / "k.pub")):
        out = io.BytesIO()
        encrypting = Encrypting(out, recipients_of([text]))
        encrypting.write(b"words")
        encrypting.close()
        assert opened(out.getvalue(), identities_of([tmp_path / "k"])[0]) == b"words"


@pytest.mark.parametrize(
    "text", ["age1nonsense", "ssh-ed25519 nonsense", "# nobody\n", "AGE-SECRET-KEY-1", "\x00\x01", AGE.decode()]
)
def test_what_is_no_recipient_or_identity_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "k").write_text(text)
    with pytest.raises(BadKey):
        recipients_of([str(tmp_path / "k")])
    with pytest.raises(BadKey):
        identities_of([tmp_path / "k"])
