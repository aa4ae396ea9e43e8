"""Credentials: MLflow's variables in MLflow's order, the agent's own before them, and no secret in sight."""

from __future__ import annotations

import base64
import copy
import logging
from pathlib import Path

import pytest

from mlferry_agent.credentials import Destination, Tls, Token, destination
from mlferry_agent.errors import Misconfigured, WrongDestination

URI = "https://mlflow.example:8443/mlflow"


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def header(environ: dict[str, str], uri: str = URI) -> str | None:
    authorization = destination(uri, environ).authorization
    return authorization.reveal() if authorization else None


def secret_file(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_without_any_variable_there_is_no_authorization() -> None:
    assert destination(URI, {}) == Destination(URI)


def test_a_secret_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    found = destination(URI, {"MLFLOW_TRACKING_TOKEN": "s3cret"})
    logging.getLogger("t").warning("%s %r", found, found.authorization)
    assert "s3cret" not in f"{found}{found!r}{found.authorization}{[found.authorization]}{caplog.text}"
    assert repr(Token("s3cret")) == str(Token("s3cret")) == "Token(***)"
    with pytest.raises(TypeError):
        copy.copy(Token("s3cret"))


def test_basic_wins_over_the_token_as_in_mlflow() -> None:
    environ = {"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p", "MLFLOW_TRACKING_TOKEN": "t"}
    assert header(environ) == basic("u", "p")
    assert header({**environ, "MLFLOW_TRACKING_PASSWORD": ""}) == "Bearer t"


def test_each_of_user_and_password_falls_back_to_mlflows_file(tmp_path: Path) -> None:
    ini = "[mlflow]\nmlflow_tracking_username = fu\nmlflow_tracking_password = f%%p\n"
    secret_file(tmp_path / ".mlflow" / "credentials", ini)
    home = {"HOME": str(tmp_path)}
    assert header(home) == basic("fu", "f%p")
    assert header({**home, "MLFLOW_TRACKING_USERNAME": "u"}) == basic("u", "f%p")
    secret_file(tmp_path / ".mlflow" / "credentials", ini.replace("%%", "%"))
    assert header(home) == basic("fu", "f%p")


def test_mlflows_file_without_its_section_or_with_nonsense_is_told_apart(tmp_path: Path) -> None:
    path = secret_file(tmp_path / ".mlflow" / "credentials", "[other]\na = b\n")
    assert header({"HOME": str(tmp_path)}) is None
    path.write_text("no section\n")
    with pytest.raises(Misconfigured, match="credentials"):
        destination(URI, {"HOME": str(tmp_path)})


def test_a_file_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    closed = secret_file(tmp_path / "token", "t\n")
    assert destination(URI, {"MLFERRY_TOKEN_FILE": str(closed)}).warnings == ()
    closed.chmod(0o640)
    [warning] = destination(URI, {"MLFERRY_TOKEN_FILE": str(closed)}).warnings
    assert f"chmod 600 {closed}" in warning


def test_what_was_given_to_the_agent_alone_wins(tmp_path: Path) -> None:
    mine = secret_file(tmp_path / "mine", "from-file")
    secret_file(tmp_path / "systemd" / "mlflow-token", "from-systemd\n")
    environ = {
        "MLFLOW_TRACKING_USERNAME": "u",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "CREDENTIALS_DIRECTORY": str(tmp_path / "systemd"),
    }
    assert header(environ) == "Bearer from-systemd"
    assert header({**environ, "MLFERRY_TOKEN_FILE": str(mine)}) == "Bearer from-file"


def test_systemd_can_give_a_user_and_password(tmp_path: Path) -> None:
    secret_file(tmp_path / "mlflow-password", "p\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_TOKEN": "t"}
    assert header(environ) == basic("u", "p")
    secret_file(tmp_path / "mlflow-username", "su")
    assert header(environ) == basic("su", "p")


@pytest.mark.parametrize("text", ["", "\n", "a b\n", "a\nb\n", "é", "a\x00b"])
def test_a_token_that_fits_no_header_is_refused_without_being_told(tmp_path: Path, text: str) -> None:
    path = secret_file(tmp_path / "token", text)
    with pytest.raises(Misconfigured) as caught:
        destination(URI, {"MLFERRY_TOKEN_FILE": str(path)})
    assert not text.strip() or text not in caught.value.reason


def test_a_credential_file_that_is_missing_or_binary_is_named(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="nowhere"):
        destination(URI, {"MLFERRY_TOKEN_FILE": str(tmp_path / "nowhere")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(Misconfigured, match="binary"):
        destination(URI, {"MLFERRY_TOKEN_FILE": str(tmp_path / "binary")})


def test_a_user_in_the_tracking_uri_is_cut_out_of_it() -> None:
    found = destination("https://ann:p%40ss@mlflow.example:8443/mlflow/", {})
    assert found.url == URI
    assert found.authorization == Token(basic("ann", "p@ss"))
    assert header({"MLFLOW_TRACKING_TOKEN": "t"}, "https://ann:p@mlflow.example") == "Bearer t"


@pytest.mark.parametrize(
    "uri", ["spool:///x", "file:///x", "sqlite:///x", "databricks", "/tmp/x", "", "http://", "http://["]
)
def test_a_destination_that_is_no_http_server_is_refused_with_advice(uri: str) -> None:
    with pytest.raises(WrongDestination, match="http"):
        destination(uri, {})


@pytest.mark.parametrize("uri", ["http://localhost:5000", "http://127.0.0.1:5000", "http://[::1]:5000", "https://h"])
def test_credentials_may_go_where_nobody_listens(uri: str) -> None:
    assert header({"MLFLOW_TRACKING_TOKEN": "t"}, uri) == "Bearer t"


def test_credentials_cross_a_network_in_clear_only_when_told_to() -> None:
    environ = {"MLFLOW_TRACKING_TOKEN": "s3cret"}
    with pytest.raises(WrongDestination, match="MLFERRY_ALLOW_INSECURE") as caught:
        destination("http://mlflow.example", environ)
    assert "s3cret" not in caught.value.reason
    assert header({**environ, "MLFERRY_ALLOW_INSECURE": "true"}, "http://mlflow.example") == "Bearer s3cret"
    assert destination("http://mlflow.example", {}).authorization is None


def test_tls_variables_are_mlflows_and_then_those_of_requests() -> None:
    assert destination(URI, {}).tls == Tls()
    assert destination(URI, {"MLFLOW_TRACKING_INSECURE_TLS": "true", "CURL_CA_BUNDLE": "c"}).tls == Tls(verify=False)
    environ = {"CURL_CA_BUNDLE": "c", "MLFLOW_TRACKING_CLIENT_CERT_PATH": "me"}
    assert destination(URI, environ).tls == Tls(ca_path="c", client_cert_path="me")
    environ["REQUESTS_CA_BUNDLE"] = "r"
    assert destination(URI, environ).tls.ca_path == "r"
    environ["MLFLOW_TRACKING_SERVER_CERT_PATH"] = "m"
    assert destination(URI, environ).tls.ca_path == "m"


@pytest.mark.parametrize(
    "environ",
    [
        {"MLFLOW_TRACKING_INSECURE_TLS": "true", "MLFLOW_TRACKING_SERVER_CERT_PATH": "x"},
        {"MLFLOW_TRACKING_INSECURE_TLS": "yes"},
        {"MLFLOW_TRACKING_AUTH": "kubernetes"},
        {"MLFLOW_TRACKING_AWS_SIGV4": "true"},
        {"MLFLOW_WORKSPACE": "a\r\nb"},
        {"MLFLOW_HTTP_REQUEST_TIMEOUT": "soon"},
        {"MLFLOW_HTTP_REQUEST_TIMEOUT": "0"},
        {"MLFLOW_HTTP_REQUEST_TIMEOUT": "nan"},
        {"HTTPS_PROXY": "socks5://h:1"},
    ],
)
def test_variables_that_cannot_be_honoured_are_said_so(environ: dict[str, str]) -> None:
    with pytest.raises(Misconfigured):
        destination(URI, environ)


def test_workspace_and_timeout_are_taken_over() -> None:
    found = destination(URI, {"MLFLOW_WORKSPACE": "team-a", "MLFLOW_HTTP_REQUEST_TIMEOUT": "7"})
    assert (found.workspace, found.timeout_s) == ("team-a", 7.0)


def test_the_proxy_for_the_scheme_is_used_and_its_user_split_off() -> None:
    found = destination(URI, {"https_proxy": "http://u:p@proxy:3128/", "HTTP_PROXY": "http://other:1"})
    assert found.proxy == "http://proxy:3128"
    assert found.proxy_authorization == Token(basic("u", "p"))
    assert destination(URI, {"ALL_PROXY": "proxy:3128"}).proxy == "http://proxy:3128"


@pytest.mark.parametrize(
    ("exempt", "uri", "is_direct"),
    [
        ("mlflow.example", URI, True),
        (".example", URI, True),
        ("other, mlflow.example:8443", URI, True),
        ("*", URI, True),
        ("low.example", URI, False),
        ("mlflow.example:1", URI, False),
        ("", URI, False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
    ],
)
def test_no_proxy_is_honoured(exempt: str, uri: str, is_direct: bool) -> None:
    found = destination(uri, {"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": exempt})
    assert (found.proxy is None) is is_direct
