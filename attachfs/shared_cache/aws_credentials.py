"""AWS credentials and region, found as AWS programs do: variables, profile files, credential_process.

Instance metadata and single sign-on are left out: use `credential_process` for them.
"""

import configparser
import json
import math
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import trio

from attachfs.shared_cache.objects import StoreError
from attachfs.shared_cache.sigv4 import AwsKeys

_EARLY = 300.0  # seconds before their end at which temporary credentials are renewed
_REREAD = 60.0  # seconds for which files' credentials are kept
_PROCESS = 30  # seconds that credential_process may take


class AwsEnvironment:
    """The variables and files that AWS programs share.

    Args:
        environ: variables.
        home: where `~/.aws` is.
        clock: seconds since 1970.
    """

    def __init__(
        self, environ: Mapping[str, str], home: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._profile = environ.get("AWS_PROFILE") or "default"
        self._files = (
            Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws/credentials").expanduser(),
            Path(environ.get("AWS_CONFIG_FILE") or home / ".aws/config").expanduser(),
        )
        self._keys: AwsKeys | None = None
        self._until = -math.inf
        self._lock = trio.Lock()  # one renewal at a time

    @property
    def region(self) -> str:
        """The region: `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's, or us-east-1."""
        found = self._environ.get("AWS_REGION") or self._environ.get("AWS_DEFAULT_REGION")
        return found or self._settings().get("region") or "us-east-1"

    @property
    def endpoint(self) -> str | None:
        """The store's address where it is not Amazon's."""
        found = self._environ.get("AWS_ENDPOINT_URL_S3") or self._environ.get("AWS_ENDPOINT_URL")
        return found or self._settings().get("endpoint_url")

    async def keys(self) -> AwsKeys:
        """Return credentials that are good for some minutes.

        Raises:
            Trouble: there are none; the reason says where they are looked for.
        """
        async with self._lock:
            keys = self._keys
            if keys is None or self._clock() >= self._until:
                found, self._until = await trio.to_thread.run_sync(self._find)
                self._keys = keys = found
            return keys

    def _find(self) -> tuple[AwsKeys, float]:
        environ = self._environ
        if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
            token = environ.get("AWS_SESSION_TOKEN") or None
            return AwsKeys(environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"], token), math.inf
        settings = self._settings()
        if "aws_access_key_id" in settings and "aws_secret_access_key" in settings:
            token = settings.get("aws_session_token") or None
            keys = AwsKeys(settings["aws_access_key_id"], settings["aws_secret_access_key"], token)
            return keys, self._clock() + _REREAD
        if "credential_process" in settings:
            return self._from_process(settings["credential_process"])
        raise StoreError(
            "refused",
            f"no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or fill profile "
            f"{self._profile} of {self._files[0]}",
        )

    def _from_process(self, command: str) -> tuple[AwsKeys, float]:
        try:
            done = subprocess.run(  # noqa: S603 - the user's own configuration names it
                shlex.split(command),
                capture_output=True,
                timeout=_PROCESS,
                check=True,
                stdin=subprocess.DEVNULL,
            )
            said = json.loads(done.stdout)
            keys = AwsKeys(said["AccessKeyId"], said["SecretAccessKey"], said.get("SessionToken"))
            until = math.inf
            if said.get("Expiration"):
                until = datetime.fromisoformat(said["Expiration"]).timestamp() - _EARLY
        except (OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError) as error:
            # Its output may hold the secret: not quoted.
            raise StoreError("refused", f"credential_process failed ({type(error).__name__})") from None
        return keys, max(until, self._clock() + 1)

    def _settings(self) -> dict[str, str]:
        """Return the profile's settings; the credentials file wins over the configuration file."""
        found: dict[str, str] = {}
        in_config = self._profile if self._profile == "default" else f"profile {self._profile}"
        for path, section in ((self._files[1], in_config), (self._files[0], self._profile)):
            parser = configparser.RawConfigParser(strict=False)
            try:
                parser.read_string(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeError, configparser.Error):
                continue
            if parser.has_section(section):
                found.update(parser.items(section))
        return found
