"""Figures as OpenMetrics, scraped by a real Prometheus, with the alert rules that are documented."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from attachfs.demo.spawn import DemoServer
from attachfs.mount.metrics import exposition
from attachfs.mount.mountinfo import mount_at
from tests.mount.conftest import Mount

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "attachfs.rules.yml"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def ask(prometheus: str, query: str) -> list[dict[str, Any]]:
    found = json.loads(get(f"{prometheus}/api/v1/query?query={urllib.parse.quote(query)}"))
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def test_a_real_prometheus_scrapes_a_mount_and_sees_a_mismatch(mount: Mount, tmp_path: Path) -> None:
    port, own = free_port(), free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{RULES}]\nscrape_configs:\n"
        f"  - job_name: attachfs\n    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    )
    with mount(f"--metrics={port}") as mounted:
        mounted.sh("cat assets/*/* >/dev/null; cat assets/*/events/*/* >/dev/null", check=False)
        assert mounted.status()["errors"]["mismatch"] > 0
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{own}",
        ]
        with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as prometheus:
            try:
                address, found = f"http://127.0.0.1:{own}", list[dict[str, Any]]()
                deadline = time.monotonic() + 60
                while not found and time.monotonic() < deadline:
                    try:
                        found = ask(address, 'attachfs_refused_total{reason="mismatch"} > 0')
                    except OSError:  # it is starting
                        time.sleep(0.2)
                assert found, (tmp_path / "log").read_text()
                assert found[0]["metric"]["mountpoint"] == str(mounted.point)
                assert ask(address, 'up{job="attachfs"} == 1')
                assert ask(address, 'attachfs_requests_total{kind="info",status="200"} > 0')
                assert ask(address, "attachfs_request_duration_seconds_bucket{le='+Inf',kind='info'} > 0")
                assert ask(address, "attachfs_cache_used_bytes < attachfs_cache_size_bytes")
                assert ask(address, "attachfs_ledger_reachable == 1")
            finally:
                prometheus.send_signal(signal.SIGTERM)
        printed = subprocess.run(
            [sys.executable, "-m", "attachfs", "status", "--openmetrics", mounted.point],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        served = get(f"http://127.0.0.1:{port}/metrics")
        names = re.compile(r"^# TYPE (\S+ \S+)", re.MULTILINE)
        assert names.findall(printed) == names.findall(served)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"http://127.0.0.1:{port}/")


def test_a_port_that_is_taken_is_told_before_anything_is_mounted(tmp_path: Path, ledger: DemoServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, point = taken.getsockname()[1], tmp_path / "mnt"
        point.mkdir()
        options = [f"--url={ledger.url}", f"--token-file={ledger.token_file}", f"--cache-dir={tmp_path}/c"]
        done = subprocess.run(
            [sys.executable, "-m", "attachfs", "mount", *options, f"--metrics={port}", point],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        )
    assert done.returncode == 2
    assert f"--metrics: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert mount_at(point) is None


def test_the_documented_rules_are_good_and_fire_when_they_should(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", RULES], check=True, capture_output=True)
    cases = tmp_path / "cases.yml"
    cases.write_text(
        f"""
rule_files: [{RULES}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - series: 'attachfs_refused_total{{mountpoint="/m",instance="i",reason="mismatch"}}'
        values: '0x10 1x100'
      - series: 'attachfs_up{{mountpoint="/m",instance="i"}}'
        values: '1x20 0x100'
      - series: 'attachfs_ledger_unreachable_seconds{{mountpoint="/m",instance="i"}}'
        values: '0x30 60+60x20'
      - series: 'attachfs_cache_writable{{mountpoint="/m",instance="i"}}'
        values: '1x20 0x100'
    alert_rule_test:
      - {{eval_time: 5m, alertname: AttachfsMismatch, exp_alerts: []}}
      - eval_time: 15m
        alertname: AttachfsMismatch
        exp_alerts:
          - exp_labels: {{severity: critical, mountpoint: /m, instance: i, reason: mismatch}}
            exp_annotations:
              summary: Bytes differ from what the ledger records (/m on i)
              description: They were not served; the cache's quarantine has them. See attachfs logs.
      - {{eval_time: 19m, alertname: AttachfsDown, exp_alerts: []}}
      - eval_time: 30m
        alertname: AttachfsDown
        exp_alerts:
          - exp_labels: {{severity: critical, mountpoint: /m, instance: i}}
            exp_annotations: {{summary: A mount does not answer (/m on i)}}
      - {{eval_time: 30m, alertname: AttachfsLedgerUnreachable, exp_alerts: []}}
      - eval_time: 50m
        alertname: AttachfsCacheFull
        exp_alerts:
          - exp_labels: {{severity: warning, mountpoint: /m, instance: i}}
            exp_annotations:
              summary: The cache keeps nothing more (/m on i)
              description: Make room on its disk, or raise --cache-size. Files are fetched anew each time.
"""
    )
    done = subprocess.run(["promtool", "test", "rules", cases], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_is_documented_and_every_rule_is_about_one(mount: Mount) -> None:
    with mount() as mounted:
        mounted.sh("ls -l assets/*", check=False)
        text = exposition([mounted.status()]).decode()
    types = dict(re.findall(r"^# TYPE (attachfs_\w+) (\w+)", text, re.MULTILINE))
    names = {name + {"counter": "_total", "info": "_info"}.get(kind, "") for name, kind in types.items()}
    documented = set(re.findall(r"`(attachfs_\w+)(?:\{[^}]*\})?`", (DOCS / "metrics.md").read_text()))
    assert names == documented
    assert set(re.findall(r"attachfs_\w+", RULES.read_text())) <= names | {"attachfs_rules"}
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    assert alerts == re.findall(r"^\| `(Attachfs\w+)`", (DOCS / "metrics.md").read_text(), re.MULTILINE)
