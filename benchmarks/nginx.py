"""nginx as the yardstick: one worker, keep-alive on both sides, nothing buffered."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.backend import listening
from devtools.processes import Process, free_port, wait_until

_CONFIG = """\
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
    tcp_nodelay on;
    upstream backend {{
        server 127.0.0.1:{backend};
        keepalive 256;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


class NginxProcess(Process):
    """nginx in front of the backend."""

    def __init__(self, program: str, folder: Path, *, backend: int) -> None:
        self.port = free_port()
        config = folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",
                folder=folder,
                backend=backend,
                port=self.port,
            )
        )
        command = [program, "-p", str(folder), "-c", str(config)]
        command += ["-e", str(folder / "nginx-error.log")]
        super().__init__("nginx", command, folder=folder)

    def wait_ready(self) -> None:
        """Return when it listens."""

        def listens() -> bool:
            self.check()
            return listening(self.port)

        wait_until(listens, "nginx")


def find_nginx() -> str | None:
    """Return the program; installs Debian's package if it is missing and this may be done."""
    found = _program()
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        print("installing nginx-light")
        subprocess.run(["apt-get", "install", "-y", "-qq", "nginx-light"], check=False)
        found = _program()
    return found


def version(program: str) -> str:
    """Return what it calls itself, such as `nginx/1.22.1`."""
    told = subprocess.run([program, "-v"], check=False, capture_output=True, text=True)
    return told.stderr.strip().removeprefix("nginx version: ")


def _program() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
