"""The proxy of docs/metrics.md: a real nginx with those lines, in front of a real daemon."""

import base64
import contextlib
import http.client
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator

import pytest

from tests.hygiene import tree
from tests.real import daemons, scraping, sockets

DOCUMENTED = re.search(
    r"^```nginx\n(.*?)^```", (tree.ROOT / "docs/metrics.md").read_text(), re.DOTALL | re.MULTILINE
)
PASSWORD = "a tide that comes in"


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def configure(root: pathlib.Path, behind: int, port: int) -> pathlib.Path:
    """The documented lines, with the places and ports of this test."""
    assert DOCUMENTED is not None
    text = DOCUMENTED[1]
    for old, new in (
        ("listen 9820", f"listen 127.0.0.1:{port}"),
        ("http://127.0.0.1:9819", f"http://127.0.0.1:{behind}"),
        ("/etc/nginx/", f"{root}/"),
    ):
        assert old in text
        text = text.replace(old, new)
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"    {place}_temp_path {root}/{place};\n" for place in places)
    file = root / "nginx.conf"
    # As whoever runs the test: the workers' own user may not see its directory.
    file.write_text(
        f"daemon off;\nmaster_process off;\npid {root}/nginx.pid;\nerror_log {root}/error.log;\n"
        f"events {{}}\nhttp {{\n    access_log off;\n{temporary}{text}}}\n"
    )
    run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(root / "swaptide.key"), "-out", str(root / "swaptide.pem")),
    )
    (root / "swaptide.passwd").write_text(f"prometheus:{run('openssl', 'passwd', '-6', PASSWORD)}")
    return file


@contextlib.contextmanager
def proxy(root: pathlib.Path, behind: int) -> Iterator[int]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None or shutil.which("openssl") is None:
        pytest.skip("nginx or openssl is missing")
    port = sockets.free_port()
    command = [
        nginx,
        "-c",
        str(configure(root, behind, port)),
        "-p",
        str(root),
        "-e",
        str(root / "error.log"),
    ]
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def is_up() -> bool:
        assert running.poll() is None, (root / "error.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
        return False

    try:
        daemons.wait_for(is_up)
        yield port
    finally:
        running.terminate()
        running.wait(daemons.WAIT_SECONDS)


def ask(port: int, trusted: pathlib.Path, password: str | None) -> tuple[int, bytes]:
    context = ssl.create_default_context(cafile=str(trusted))
    connection = http.client.HTTPConnection("localhost", port)
    # By its address, since not every machine knows the name that the certificate is for.
    plain = socket.create_connection(("127.0.0.1", port), timeout=daemons.WAIT_SECONDS)
    connection.sock = context.wrap_socket(plain, server_hostname="localhost")
    headers = {}
    if password is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(f'prometheus:{password}'.encode()).decode()}"
    try:
        connection.request("GET", "/metrics", headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_tls_and_a_password_by_the_documented_proxy() -> None:
    with daemons.directory() as root, daemons.serving(root, metrics="127.0.0.1:0") as daemon:
        daemon.add()
        with proxy(root, scraping.port_in(daemon.log)) as port:
            trusted = root / "swaptide.pem"
            assert ask(port, trusted, None)[0] == 401
            assert ask(port, trusted, "wrong")[0] == 401
            status, body = ask(port, trusted, PASSWORD)
            assert status == 200 and b'swaptide_disk_readable{disk="g1"} 1\n' in body
            assert scraping.ask(port)[0].status == 400, "in clear"
