"""Where to deliver, as whom, and whom to trust: read from MLflow's own variables.

Owns the translation of an environment into a `Destination`. Functions over a mapping: nothing here reads
`os.environ`, opens a connection or keeps a secret in a printable form. Files are read once, so a rotated secret needs a
new `destination()`.

Which credential wins:
1. MLFERRY_TOKEN_FILE, then `$CREDENTIALS_DIRECTORY/mlflow-token` (systemd's LoadCredential=): given to the agent alone.
2. User name and password: `$CREDENTIALS_DIRECTORY/mlflow-username` and `mlflow-password`, else
   MLFLOW_TRACKING_USERNAME and _PASSWORD, each falling back to the `[mlflow]` section of ~/.mlflow/credentials.
3. MLFLOW_TRACKING_TOKEN. Basic beats it as in mlflow/utils/rest_utils.py `http_request`, whatever the docs say.
4. `user:password@` in the tracking URI, which is cut out of it at once.
netrc is never read: `requests` lets it replace an explicit header, which surprises whoever set one.
"""

from __future__ import annotations

import base64
import configparser
import ipaddress
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlferry_agent import encoding
from mlferry_agent.errors import Misconfigured, Unencodable, WrongDestination
from mlferry_spool.blobs import open_regular

DEFAULT_TIMEOUT_S = 120.0
"""MLFLOW_HTTP_REQUEST_TIMEOUT when unset."""

MAX_SECRET_BYTES = 1 << 16
"""Of a file that holds a credential; no header takes more.

Beyond: `Misconfigured`; no more than that is read.
Test: tests/security/test_secrets.py::test_a_credential_without_end_is_not_read_to_its_end
"""


class Token:
    """A secret. Its text is had from `reveal()` alone; printing, formatting, logging and pickling do not show it."""

    __slots__ = ("_secret",)

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def reveal(self) -> str:
        """The secret itself: for a request header and nothing else."""
        return self._secret

    def __repr__(self) -> str:
        return "Token(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and other._secret == self._secret

    def __hash__(self) -> int:
        return hash((Token, self._secret))

    def __reduce__(self) -> str:
        raise TypeError("a Token is not to be stored")


@dataclass(frozen=True, slots=True)
class Tls:
    """How to check the server and how to prove ourselves. `ca_path` is a file or folder of CAs; None: the system's."""

    verify: bool = True
    ca_path: str | None = None
    client_cert_path: str | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """One tracking server. `url` has scheme, host and path prefix, and neither user nor trailing slash.

    `authorization` is the whole header value. `warnings` are sentences for the operator. `stores` are places past the server
    where artifacts may go.
    """

    url: str
    authorization: Token | None = None
    tls: Tls = Tls()
    workspace: str | None = None
    proxy: str | None = None
    proxy_authorization: Token | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    warnings: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()


def destination(tracking_uri: str, environ: Mapping[str, str], origin: str = "") -> Destination:
    """Everything needed to talk to `tracking_uri`, from `environ` and the files that it names.

    `origin` says where the URI was given: what stands on a command line is no secret on this machine.

    Raises:
        WrongDestination: not an http(s) URI; or credentials would cross a network in clear text without
            MLFERRY_ALLOW_INSECURE=true. Misconfigured: variables that contradict each other or cannot be read.
    """
    url, from_url = _split_user(tracking_uri)
    _refuse_foreign_auth(environ)
    authorization, warnings = _authorization(environ)
    authorization = authorization or from_url
    if from_url is not None and origin.startswith("--"):
        warnings += (f"the password in {origin} can be read by every user: set MLFLOW_TRACKING_PASSWORD instead",)
    if authorization and not _is_private(url) and not _flag(environ, "MLFERRY_ALLOW_INSECURE"):
        raise WrongDestination(
            f"{url} would carry the credentials in clear text: use https://, or set MLFERRY_ALLOW_INSECURE=true"
        )
    proxy, proxy_authorization = _proxy(url, environ)
    return Destination(
        url=url,
        authorization=authorization,
        tls=_tls(environ),
        workspace=_workspace(environ),
        proxy=proxy,
        proxy_authorization=proxy_authorization,
        timeout_s=_timeout(environ),
        warnings=warnings,
    )


def _split_user(tracking_uri: str) -> tuple[str, Token | None]:
    try:
        parts = urllib.parse.urlsplit(tracking_uri.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise WrongDestination("the tracking URI is not a URL; set it to http(s)://host:port") from None
    if parts.scheme not in ("http", "https"):
        raise WrongDestination(
            f"the tracking URI begins with {parts.scheme or 'no scheme'}:, and the agent delivers over http:// or https://"
            " only; give it the address of the MLflow server"
        )
    if not host:
        raise WrongDestination("the tracking URI names no host; set it to http(s)://host:port")
    url = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    return url, _basic_of_url(parts)


def _basic_of_url(parts: urllib.parse.SplitResult) -> Token | None:
    if parts.username is None:
        return None
    return _basic(urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or ""))


def _refuse_foreign_auth(environ: Mapping[str, str]) -> None:
    if environ.get("MLFLOW_TRACKING_AUTH"):
        raise Misconfigured("MLFLOW_TRACKING_AUTH plugins run inside mlflow; give the agent a token or a password")
    if _flag(environ, "MLFLOW_TRACKING_AWS_SIGV4"):
        raise Misconfigured("MLFLOW_TRACKING_AWS_SIGV4 is not supported; give the agent a token or a password")


def _authorization(environ: Mapping[str, str]) -> tuple[Token | None, tuple[str, ...]]:
    token_file = environ.get("MLFERRY_TOKEN_FILE")
    if token_file:
        secret, exposed = _read_secret(Path(token_file))
        return _bearer(secret), exposed
    given = _credentials_directory(environ)
    systemd_token = _given(given, "mlflow-token")
    if systemd_token is not None:
        return _bearer(systemd_token), ()
    file_user, file_password, warnings = _mlflow_file(environ)
    user = _given(given, "mlflow-username") or environ.get("MLFLOW_TRACKING_USERNAME") or file_user
    password = _given(given, "mlflow-password") or environ.get("MLFLOW_TRACKING_PASSWORD") or file_password
    if user and password:
        return _basic(user, password), warnings
    token = environ.get("MLFLOW_TRACKING_TOKEN")
    return (_bearer(token) if token else None), ()


def _credentials_directory(environ: Mapping[str, str]) -> Path | None:
    path = environ.get("CREDENTIALS_DIRECTORY")
    return Path(path) if path else None


def _given(directory: Path | None, name: str) -> str | None:
    path = directory / name if directory else None
    return _read_secret(path)[0] if path and _is_there(path) else None


def _is_there(path: Path) -> bool:
    """Raises Misconfigured where nobody can tell: a credential that may be there is not passed over."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise Misconfigured(f"cannot read the credential {path}: {type(error).__name__}") from None
    return True


def _read_secret(path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of `path` less one final newline, and warnings."""
    text, warnings = _read(path)
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise Misconfigured(f"the credential {path} is empty")
    return text, warnings


def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a small plain file, and warnings for whom it is no secret. Whatever it holds, no error shows it."""
    try:
        with open_regular(path) as file:
            status, content = os.fstat(file.fileno()), file.read(MAX_SECRET_BYTES + 1)
        if len(content) > MAX_SECRET_BYTES:
            raise Misconfigured(f"the credential {path} is larger than {MAX_SECRET_BYTES} bytes")
        return content.decode("utf-8"), _exposed(path, status)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"cannot read the credential {path}: {type(error).__name__}") from None


def _exposed(path: Path, status: os.stat_result) -> tuple[str, ...]:
    """A warning when others than we may read `path`, and one when others may write it."""
    found = []
    if status.st_mode & 0o077:
        found.append(f"{path} can be read by other users: chmod 600 {path}")
    if status.st_uid not in (os.geteuid(), 0):
        found.append(f"{path} belongs to user {status.st_uid}, who can exchange it: make it your own")
    return tuple(found)


def _mlflow_file(environ: Mapping[str, str]) -> tuple[str | None, str | None, tuple[str, ...]]:
    home = environ.get("HOME")
    path = Path(home) / ".mlflow" / "credentials" if home else None
    if path is None or not _is_there(path):
        return None, None, ()
    ini = configparser.ConfigParser()
    text, warnings = _read(path)
    try:
        ini.read_string(text)
    except configparser.Error as error:  # whose words quote the line
        raise Misconfigured(f"cannot read {path}: {type(error).__name__}") from None
    if "mlflow" not in ini:
        return None, None, ()
    user, password = (_ini_value(ini, f"mlflow_tracking_{name}") for name in ("username", "password"))
    return user, password, warnings


def _ini_value(ini: configparser.ConfigParser, name: str) -> str | None:
    """As mlflow reads it, where `%%` is a percent sign; but a lone `%`, on which mlflow fails, is taken as it stands."""
    try:
        return ini.get("mlflow", name, fallback=None)
    except configparser.InterpolationError:
        return ini.get("mlflow", name, fallback=None, raw=True)


def _bearer(token: str) -> Token:
    # Whatever a header cannot hold would be cut, refused by the HTTP library, or become a second header.
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Misconfigured("the token holds spaces, line breaks or characters beyond ASCII")
    return Token(f"Bearer {token}")


def _basic(user: str, password: str) -> Token:
    try:
        return Token("Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    except UnicodeEncodeError:  # whose words hold both
        raise Misconfigured("the user name or the password is not Unicode text") from None


def _is_private(url: str) -> bool:
    """Whether what is sent to `url` stays unread on the way: TLS, or this machine."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _tls(environ: Mapping[str, str]) -> Tls:
    insecure = _flag(environ, "MLFLOW_TRACKING_INSECURE_TLS")
    server_cert = environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None
    if insecure and server_cert:
        raise Misconfigured("MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH exclude each other")
    bundle = server_cert or environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE") or None
    client_cert = environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None
    return Tls(verify=not insecure, ca_path=None if insecure else bundle, client_cert_path=client_cert)


def _proxy(url: str, environ: Mapping[str, str]) -> tuple[str | None, Token | None]:
    """The proxy for `url` by the usual variables (lower case wins), its user split off; (None, None) for none."""
    parts = urllib.parse.urlsplit(url)
    exempt = _either_case(environ, "no_proxy")
    if exempt and any(_is_exempt(parts, entry.strip()) for entry in exempt.split(",")):
        return None, None
    proxy = _either_case(environ, f"{parts.scheme}_proxy") or _either_case(environ, "all_proxy")
    if not proxy:
        return None, None
    try:
        proxy_parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        usable = proxy_parts.scheme in ("http", "https") and proxy_parts.hostname and proxy_parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Misconfigured(f"the {parts.scheme} proxy is not an http:// or https:// URL")
    bare = urllib.parse.urlunsplit((proxy_parts.scheme, proxy_parts.netloc.rpartition("@")[2], "", "", ""))
    return bare, _basic_of_url(proxy_parts)


def _is_exempt(parts: urllib.parse.SplitResult, entry: str) -> bool:
    """Whether one entry of NO_PROXY covers the host: `*`, a domain and what is below it, `host:port`, or a network."""
    host = (parts.hostname or "").lower()
    suffix = entry.lower().lstrip(".")
    if entry == "*" or (suffix and (host == suffix or host.endswith(f".{suffix}") or parts.netloc.lower() == suffix)):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(suffix, strict=False)
    except ValueError:
        return False


def _either_case(environ: Mapping[str, str], name: str) -> str | None:
    return environ.get(name) or environ.get(name.upper()) or None


def _flag(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "").lower()
    if value not in ("", "true", "false", "1", "0"):
        raise Misconfigured(f"{name} must be true, false, 1 or 0")
    return value in ("true", "1")


def _workspace(environ: Mapping[str, str]) -> str | None:
    name = environ.get("MLFLOW_WORKSPACE")
    try:
        return encoding.workspace(name) if name else None
    except Unencodable as error:
        raise Misconfigured(f"MLFLOW_WORKSPACE: {error.reason}") from None


def _timeout(environ: Mapping[str, str]) -> float:
    value = environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") or str(DEFAULT_TIMEOUT_S)
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise Misconfigured("MLFLOW_HTTP_REQUEST_TIMEOUT must be a number of seconds above 0")
    return seconds
