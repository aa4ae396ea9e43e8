"""A guarded MLflow server: TLS with certificates on both sides, users, workspaces. MLflow's own variables open it.

One real server has all three, as a company's has.
"""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.servers import MlflowServer, self_signed
from tests.spooling import Ferry, SpooledRun, a_bit_of_everything, differences, on_server, unique

ALL, FAILURE, PENDING = 0, 1, 4
USER, PASSWORD = "admin", "a long enough password"
HERE, THERE = "team-here", "team-there"

#: MLflow's defaults, but for the cache: without it the server hashes the password for a third of a second a request.
_USERS = f"""[mlflow]
default_permission = READ
database_uri = sqlite:///users.db
admin_username = {USER}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 600
"""


@dataclass(frozen=True, slots=True)
class Guarded:
    """A server, and the variables that open it."""

    server: MlflowServer
    environ: Mapping[str, str]

    def ferry(self, folder: Path, **changed: str | None) -> Ferry:
        """The command with the right variables, but for those that are changed or, with None, left out."""
        told = {name: value for name, value in {**self.environ, **changed}.items() if value is not None}
        return Ferry(folder / "spool", folder / "state", self.server.url, told)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    pytest.importorskip("flask_wtf", reason="mlflow's users need Flask-WTF: pip install 'mlflow[auth]'")
    root = tmp_path_factory.mktemp("guarded")
    certificate = self_signed(root / "both.pem")
    users = root / "users.ini"
    users.write_text(_USERS)
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "of the test"}
    secrets["MLFLOW_AUTH_CONFIG_PATH"] = str(users)
    arguments = ("--app-name", "basic-auth", "--enable-workspaces")
    with MlflowServer(root, extra_args=arguments, extra_env=secrets, certificate=certificate) as server:
        for name in (HERE, THERE):
            make_workspace(server, name)
        environ = {
            "MLFLOW_TRACKING_SERVER_CERT_PATH": str(certificate),
            "MLFLOW_TRACKING_CLIENT_CERT_PATH": str(certificate),
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "MLFLOW_WORKSPACE": HERE,
        }
        yield Guarded(server, environ)


def make_workspace(server: MlflowServer, name: str) -> None:
    user = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    request = urllib.request.Request(
        f"{server.url}/api/3.0/mlflow/workspaces",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Basic {user}"},
    )
    with urllib.request.urlopen(request, timeout=30, context=server.tls) as answer:
        assert answer.status == 201


def workspace_of(server: MlflowServer, run: SpooledRun) -> str:
    sql = "SELECT workspace FROM experiments JOIN runs USING (experiment_id) WHERE run_uuid = ?"
    [(workspace,)] = server.query(sql, on_server(server, run))
    return str(workspace)


def test_mlflows_variables_open_the_server_and_each_run_goes_to_its_workspace(guarded: Guarded, tmp_path: Path) -> None:
    ferry = guarded.ferry(tmp_path)
    name = unique("the same name in both")
    here = a_bit_of_everything(ferry.spool, name, points=3, files=1)
    there = a_bit_of_everything(ferry.spool, name, points=3, files=1, workspace=THERE)
    done = ferry("sync")
    assert done.returncode == ALL, done.stdout + done.stderr
    for run, workspace in ((here, HERE), (there, THERE)):
        assert differences(guarded.server, run.logged) == []
        assert workspace_of(guarded.server, run) == workspace
    done = ferry("verify")
    assert done.returncode == ALL, done.stdout + done.stderr


#: What is wrong, the variables that make it so, and what the command must say.
WRONG: dict[str, tuple[dict[str, str | None], tuple[str, ...]]] = {
    "no authority to trust": ({"MLFLOW_TRACKING_SERVER_CERT_PATH": None}, ("certificate", "self-signed")),
    "no user": ({"MLFLOW_TRACKING_USERNAME": None, "MLFLOW_TRACKING_PASSWORD": None}, ("HTTP 401", "credentials")),
    "wrong password": ({"MLFLOW_TRACKING_PASSWORD": "not the password"}, ("HTTP 401", "credentials")),
    "unknown workspace": ({"MLFLOW_WORKSPACE": "team-nowhere"}, ("team-nowhere",)),
}


def not_delivered(guarded: Guarded, folder: Path, wrong: Mapping[str, str | None]) -> tuple[int, str]:
    """Exit code and words of a delivery of which nothing may arrive and for which no record may be blamed."""
    run = a_bit_of_everything(folder / "spool", unique("wrong"), points=2, files=1)
    done = guarded.ferry(folder, **wrong)("sync")
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert PASSWORD not in said and "not the password" not in said
    told = guarded.ferry(folder).statuses()[run.run_id]
    assert (told["acknowledged"], told["quarantined"], told["parked"]) == (0, [], None)
    return done.returncode, said


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_and_nothing_is_blamed_on_a_run(guarded: Guarded, tmp_path: Path, what: str) -> None:
    wrong, says = WRONG[what]
    code, said = not_delivered(guarded, tmp_path, wrong)
    assert code == FAILURE, said
    assert all(words in said for words in says), said


def test_a_server_that_hangs_up_on_whoever_shows_no_certificate_gets_nothing(guarded: Guarded, tmp_path: Path) -> None:
    wrong = {"MLFLOW_TRACKING_CLIENT_CERT_PATH": None, "MLFERRY_GIVE_UP_AFTER_S": "1"}
    code, said = not_delivered(guarded, tmp_path, wrong)
    # Whether the alert that says why comes before the reset is chance; both must leave everything as it is.
    assert code in (FAILURE, PENDING), said


def test_the_file_of_credentials_and_unverified_tls_work_as_in_mlflow(guarded: Guarded, tmp_path: Path) -> None:
    ferry = guarded.ferry(
        tmp_path,
        MLFLOW_TRACKING_USERNAME=None,
        MLFLOW_TRACKING_PASSWORD=None,
        MLFLOW_TRACKING_SERVER_CERT_PATH=None,
        MLFLOW_TRACKING_INSECURE_TLS="true",
    )
    run = a_bit_of_everything(ferry.spool, unique("file"), points=2, files=1)
    credentials = ferry.state / ".mlflow" / "credentials"  # the state directory is this command's home
    credentials.parent.mkdir(parents=True)
    credentials.write_text(f"[mlflow]\nmlflow_tracking_username = {USER}\nmlflow_tracking_password = {PASSWORD}\n")
    credentials.chmod(0o600)
    done = ferry("sync")
    assert done.returncode == ALL, done.stdout + done.stderr
    assert differences(guarded.server, run.logged) == []
