"""Runs a build on a Ray cluster through Ray Jobs: submit, follow, stop, and resume under the same job id.

Ray refuses a submission id that it has seen, so each try of a job is an attempt, `JOB-1`, `JOB-2`, ...; the index's
lease and commits carry the job's own id, and the next attempt goes on where the last one stopped. Ray's HTTP interface
needs neither a matching Python nor an open GCS port on this side; the price is that logs arrive as text.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from actors.extras import require_extra
from pipelines.cluster.package import CONFIG, write_package
from pipelines.config import BuildConfig, ConfigError

try:
    import aiohttp
except ModuleNotFoundError:
    require_extra("submit", "submitting a job")
    raise

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
STOP_SECONDS = 120
"""Time to commit what is finished after a stop, before Ray kills the driver (its own default is 3 seconds)."""
POLL_SECONDS = 1.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")

RUN = 'exec "$p" -c "from pipelines.cli import main; main()" build ' + CONFIG
FIND = (
    f'for p in python python3; do "$p" -c "import ray, lance, torch" 2>/dev/null && {RUN}; done; '
    'echo "tridex: neither python nor python3 of the cluster can import ray, lance and torch; name one" >&2; exit 127'
)
"""On a head node `python` need not be the interpreter that Ray runs on: the first one that can run the job does."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Describes one submission of a job. `status` is Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""

    job: str
    number: int
    submission_id: str
    address: str
    status: str
    message: str = ""
    seconds: float | None = None
    """Time since it started, or that it took."""

    @property
    def is_over(self) -> bool:
        return bool(JobStatus(self.status).is_terminal())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        took = "" if self.seconds is None else f", {self.seconds:,.0f} s"
        return f"{self.submission_id}: {self.status}{took}. {self.message}".rstrip(". ")


def submit_job(
    config: BuildConfig,
    *,
    address: str | None = None,
    job_id: str | None = None,
    detach: bool = False,
    python: str | None = None,
    env: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> Attempt:
    """Starts the build on a cluster, follows its log to `stream` (stderr) unless `detach`, and returns its attempt.

    address: of the cluster's dashboard; None takes `RAY_API_SERVER_ADDRESS`, or this machine's. job_id: None takes
    `job.id`; one that ran before is resumed. python: interpreter on the cluster's head; None finds one. env: variables
    of the job, which everyone who can see the job can read. Raises ConfigError if the cluster cannot be reached, if an
    attempt of this job still runs, or if the config holds secrets.
    """
    address = resolve_address(address)
    job = _check_job_id(job_id or config.job.id)
    client = connect(address)
    before = attempts(job, address, client)
    if before and not before[-1].is_over:
        raise ConfigError(f"job {job!r} runs already as {before[-1].submission_id}; stop it first, or follow it")
    number = before[-1].number + 1 if before else 1
    with tempfile.TemporaryDirectory(prefix="tridex-") as folder:
        write_package(Path(folder), config, job)
        client.submit_job(
            submission_id=f"{job}-{number}",
            entrypoint=_entrypoint(address, python),
            runtime_env={"working_dir": folder, "env_vars": _environment(env)},
            metadata={"tridex_job": job, "tridex_attempt": str(number)},
        )
    attempt = job_status(job, address)
    return attempt if detach else follow(attempt, stream)


def resolve_address(address: str | None) -> str:
    """Resolves a dashboard's address, with or without a scheme, to `http://host:port`."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if "://" not in address:
        address = f"http://{address}"
    if urlsplit(address).scheme not in ("http", "https"):
        raise ConfigError(f"address {address!r}: expected http://HOST:PORT of the cluster's dashboard (port 8265)")
    return address.rstrip("/")


def _check_job_id(job: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", job):
        raise ConfigError(f"job.id: {job!r} must be letters, digits, '_', '.', '-', as Ray needs it")
    return job


def _entrypoint(address: str, python: str | None) -> str:
    if python is None and urlsplit(address).hostname in LOOPBACK:
        python = sys.executable
    return FIND if python is None else f'p="{python}"; {RUN}'


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), **(env or {})}


def connect(address: str) -> JobSubmissionClient:
    """Returns a client with the token that a cluster requires; ConfigError names what is wrong."""
    from ray.exceptions import AuthenticationError

    try:
        return JobSubmissionClient(address, headers=auth_headers())
    except AuthenticationError as error:
        raise ConfigError(
            f"{address} requires a token that is missing or wrong; `ray get-auth-token` on the head prints it, "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH gives it to this command"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(f"no Ray dashboard answers at {address}: {error}") from error


def auth_headers() -> dict[str, str]:
    """Reads the token where Ray reads it, unless RAY_AUTH_MODE is `disabled`.

    Ray's client sends one only if RAY_AUTH_MODE is `token`, while its clusters ask for one by default since 2.59.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        token = path.read_text().strip()
    return {"authorization": f"Bearer {token}"} if token else {}


def attempts(job: str, address: str | None = None, client: JobSubmissionClient | None = None) -> list[Attempt]:
    """Returns all attempts of a job that the cluster still lists, oldest first."""
    address = resolve_address(address)
    found = [_attempt(d, address) for d in (client or connect(address)).list_jobs() if _job_of(d) == job]
    return sorted(found, key=lambda a: a.number)


def _job_of(details: JobDetails) -> str | None:
    return (details.metadata or {}).get("tridex_job")


def _attempt(details: JobDetails, address: str) -> Attempt:
    metadata = details.metadata or {}
    end = details.end_time or time.time() * 1000
    return Attempt(
        job=metadata["tridex_job"],
        number=int(metadata["tridex_attempt"]),
        submission_id=str(details.submission_id),
        address=address,
        status=str(details.status.value),
        message=(details.message or "").strip(),
        seconds=None if not details.start_time else (end - details.start_time) / 1000,
    )


def job_status(job: str, address: str | None = None) -> Attempt:
    """Returns the last attempt of a job; ConfigError if the cluster has none."""
    found = attempts(job, address)
    if not found:
        raise ConfigError(f"job {job!r} is not known at {resolve_address(address)}")
    return found[-1]


def follow_job(job: str, address: str | None = None, stream: TextIO | None = None) -> Attempt:
    """Follows the last attempt of a job, as `follow` does."""
    return follow(job_status(job, address), stream)


def stop_job(job: str, address: str | None = None, timeout: float = STOP_SECONDS + 30) -> Attempt:
    """Stops the running attempt and waits for its end; committed work is kept."""
    attempt = job_status(job, address)
    if not attempt.is_over:
        connect(attempt.address).stop_job(attempt.submission_id)
    return _wait(attempt, timeout)


def _wait(attempt: Attempt, timeout: float) -> Attempt:
    deadline = time.monotonic() + timeout
    while not attempt.is_over:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{attempt.submission_id} is still {attempt.status} after {timeout:.0f} s")
        time.sleep(POLL_SECONDS)
        attempt = job_status(attempt.job, attempt.address)
    return attempt


def follow(attempt: Attempt, stream: TextIO | None = None) -> Attempt:
    """Copies the attempt's log to `stream` until it ends; after a lost connection, resumes at the same character.

    Ctrl-C ends the following, not the job: then the attempt comes back as it stands.
    """
    stream = stream or sys.stderr
    shown = 0

    def write(text: str) -> None:
        nonlocal shown
        shown += len(text)
        stream.write(text)
        stream.flush()

    try:
        while not attempt.is_over:
            asyncio.run(_tail(attempt, shown, write))
            time.sleep(POLL_SECONDS)
            attempt = job_status(attempt.job, attempt.address)
        write(connect(attempt.address).get_job_logs(attempt.submission_id)[shown:])
    except KeyboardInterrupt:
        stream.write(f"\n{attempt.submission_id} goes on; stop it or follow it under its id {attempt.job!r}\n")
        return job_status(attempt.job, attempt.address)
    return attempt


async def _tail(attempt: Attempt, skip: int, write: Callable[[str], None]) -> None:
    """Writes the log from character `skip` on until the connection ends for any reason."""
    client = connect(attempt.address)
    try:
        async for text in client.tail_job_logs(attempt.submission_id):
            if len(text) > skip:
                write(text[skip:])
            skip = max(0, skip - len(text))
    except (aiohttp.ClientError, RuntimeError):
        return
