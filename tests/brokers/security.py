"""Passwords, users and certificates of the servers of a test."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode


@dataclass(frozen=True, slots=True)
class Security:
    """The login that the servers require, and their TLS.

    ``users`` are further lines of an ACL file ("user name on >password ..."). If ``username`` is not "default", the
    user "default" is switched off. ``client_certificates`` makes the servers refuse clients without a certificate.
    """

    username: str = "default"
    password: str = ""
    users: tuple[str, ...] = ()
    tls: bool = False
    client_certificates: bool = False

    def lines(self) -> list[str]:
        """Return the configuration lines for the users of a server or sentinel."""
        lines = list(self.users)
        if self.username != "default":
            lines += [f"user {self.username} on >{self.password} ~* &* +@all", "user default off"]
        elif self.password:
            lines.append(f"requirepass {self.password}")
        return lines

    def login_to(self, user_word: str, password_word: str) -> list[str]:
        """Return configuration lines for a login elsewhere, for example with ``masteruser`` and ``masterauth``."""
        if not self.password:
            return []
        user = [f"{user_word} {self.username}"] if self.username != "default" else []
        return [*user, f"{password_word} {self.password}"]

    def login(self) -> dict[str, str]:
        """Return the options of redis-py for the login."""
        return {"username": self.username, "password": self.password} if self.password else {}

    def userinfo(self) -> str:
        """Return the part of a URL that stands before the host."""
        if not self.password:
            return ""
        user = "" if self.username == "default" else quote(self.username, safe="")
        return f"{user}:{quote(self.password, safe='')}@"


class Certificates:
    """A certificate authority of its own, a certificate for the servers and one for clients, as PEM files."""

    def __init__(self, folder: Path, addresses: list[str]) -> None:
        """Make the files. The certificate of the servers is valid for these IP addresses and for localhost."""
        self.ca = folder / "ca.pem"
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.client_certificate, self.client_key = folder / "client.pem", folder / "client.key"
        authority = folder / "ca.key"
        _make(self.ca, authority, "/CN=test-authority", "basicConstraints=critical,CA:TRUE")
        names = ",".join(["DNS:localhost", *(f"IP:{address}" for address in addresses)])
        signed = ("-CA", str(self.ca), "-CAkey", str(authority))
        leaf = "basicConstraints=critical,CA:FALSE"
        _make(self.certificate, self.key, "/CN=server", f"subjectAltName={names}", leaf, signed=signed)
        _make(self.client_certificate, self.client_key, "/CN=client", leaf, signed=signed)

    def lines(self, port: int, *, client_certificates: bool) -> list[str]:
        """Return the configuration lines for a server that speaks only TLS."""
        return [
            "port 0",
            f"tls-port {port}",
            f'tls-cert-file "{self.certificate}"',
            f'tls-key-file "{self.key}"',
            f'tls-ca-cert-file "{self.ca}"',
            f"tls-auth-clients {'yes' if client_certificates else 'no'}",
            "tls-replication yes",
        ]

    def options(self, *, client_certificates: bool) -> dict[str, Any]:
        """Return the options of redis-py, which are also the options of a URL."""
        client = {"ssl_certfile": str(self.client_certificate), "ssl_keyfile": str(self.client_key)}
        return {"ssl_ca_certs": str(self.ca)} | (client if client_certificates else {})

    def query(self, *, client_certificates: bool) -> str:
        """Return the query of a URL."""
        return urlencode(self.options(client_certificates=client_certificates))


def has_tls(executable: Path) -> bool:
    """Return whether a server was built with TLS. The bundled server was not."""
    answer = subprocess.run(
        [executable, "--port", "0", "--tls-port", "1", "--save", ""],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return "tls-cert-file" in answer.stdout


def _make(certificate: Path, key: Path, subject: str, *extensions: str, signed: tuple[str, ...] = ()) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        message = "certificates are made with openssl, which is not on PATH"
        raise RuntimeError(message)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    added = [word for extension in extensions for word in ("-addext", extension)]
    files = ["-keyout", str(key), "-out", str(certificate)]
    empty = certificate.with_suffix(".conf")  # the system's configuration may add extensions
    empty.touch()
    config = ["-config", str(empty)]
    command = [openssl, "req", "-x509", *config, *curve, "-subj", subject, *added, *signed, *files]
    subprocess.run(command, check=True, capture_output=True, timeout=10)
