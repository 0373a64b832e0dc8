"""Who may do what: bearer tokens with roles, from a TOML file.

```toml
[[token]]
name = "rack1-node0"          # who it is, for logs and audit
role = "agent"                # agent | operator | viewer
secret = "…"                  # or sha256 = "hex digest of the secret"
nodes = ["rack1-node0"]       # agent only; ["*"] for a rack proxy
```
"""

import hashlib
import hmac
import os
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..fleet.errors import BadInput

ROLES = ("agent", "operator", "viewer")
MIN_SECRET_CHARS = 16


@dataclass(frozen=True)
class Principal:
    """Who sent a request.

    Attributes:
        nodes: Nodes that an agent may speak for; ("*",) for all of them.
    """

    name: str
    role: str
    nodes: tuple[str, ...] = ()

    def may_speak_for(self, node: str) -> bool:
        """Whether this principal may post as the given node: an operator's word is not telemetry."""
        return self.role == "agent" and ("*" in self.nodes or node in self.nodes)

    @property
    def may_operate(self) -> bool:
        return self.role == "operator"

    @property
    def may_view(self) -> bool:
        return self.role in ("operator", "viewer")


@dataclass(frozen=True)
class Auth:
    """Digests and principals by the SHA-256 of the secret.

    Attributes:
        anonymous: Who a request without a token is; None refuses it.
        source: Where the tokens came from, for the message at start.
    """

    principals: dict[bytes, tuple[bytes, Principal]]
    anonymous: Principal | None = None
    source: str = ""

    def identify(self, header: str | None) -> Principal | None:
        """The principal of an Authorization header, None if there is none or the token is wrong.

        The look-up is by digest, whose bytes a caller cannot steer, and ends in a constant-time compare.
        """
        if header is None:
            return self.anonymous
        scheme, _, secret = header.partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
        known, principal = self.principals.get(digest, (b"", None))
        return principal if hmac.compare_digest(known, digest) else None


def load_tokens(path: str | Path, anonymous_viewer: bool = False) -> Auth:
    """Read a token file.

    Raises:
        BadInput: naming the file and the entry at fault.
    """
    try:
        with open(path, "rb") as f:
            content = tomllib.load(f)
    except FileNotFoundError:
        raise BadInput(f"no token file {path}; create one or start without --tokens to get one") from None
    except OSError as error:
        raise BadInput(f"token file {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"token file {path}: {error}") from None
    principals: dict[bytes, tuple[bytes, Principal]] = {}
    for i, entry in enumerate(content.get("token", [])):
        digest, principal = _entry(path, i, entry)
        if digest in principals:
            raise BadInput(
                f"token file {path}: entries {principals[digest][1].name!r} and {principal.name!r} "
                "have the same secret; make a new one for each"
            )
        principals[digest] = (digest, principal)
    if not principals:
        raise BadInput(f"token file {path} has no [[token]] entry; declare at least one")
    anonymous = Principal("anonymous", "viewer") if anonymous_viewer else None
    return Auth(principals, anonymous, str(path))


def _entry(path: str | Path, i: int, entry: dict) -> tuple[bytes, Principal]:
    name = str(entry.get("name", f"#{i + 1}"))
    where = f"token file {path}: token {name!r}"
    role = entry.get("role")
    if role not in ROLES:
        raise BadInput(f"{where}: role is {role!r}; use one of {', '.join(ROLES)}")
    if "secret" in entry:
        secret = str(entry["secret"])
        if len(secret) < MIN_SECRET_CHARS:
            raise BadInput(f"{where}: secret is shorter than {MIN_SECRET_CHARS} characters; make a longer one")
        digest = hashlib.sha256(secret.encode()).digest()
    else:
        try:
            digest = bytes.fromhex(str(entry.get("sha256", "")))
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise BadInput(f"{where}: give secret, or sha256 as 64 hex digits")
    nodes = tuple(str(n) for n in entry.get("nodes", ()))
    if role == "agent" and not nodes:
        raise BadInput(f'{where}: an agent needs nodes = ["its node"]')
    return digest, Principal(name, role, nodes)


def dev_token_file(path: str | Path, nodes: Sequence[str]) -> Path:
    """Write a token file for trying things out, readable by its owner alone; an existing one is kept.

    It holds one token per role and one agent token per node.
    """
    path = Path(path)
    if path.exists():
        return path
    entries = [("operator", "operator", ()), ("viewer", "viewer", ()), ("emulation", "agent", ("*",))]
    entries += [(node, "agent", (node,)) for node in nodes]
    lines = ["# Generated for this machine; delete it to get new secrets.\n"]
    for name, role, scope in entries:
        lines.append(f'[[token]]\nname = "{name}"\nrole = "{role}"\nsecret = "{secrets.token_urlsafe(24)}"\n')
        if scope:
            lines.append(f'nodes = ["{scope[0]}"]\n')
        lines.append("\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as f:
        f.writelines(lines)
    return path


def read_secrets(path: str | Path) -> dict[str, str]:
    """Secrets by token name, for clients on the same machine; entries with a hash are skipped."""
    with open(path, "rb") as f:
        return {str(t["name"]): str(t["secret"]) for t in tomllib.load(f).get("token", []) if "secret" in t}
