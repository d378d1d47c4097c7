"""What a visitor of the served page may do, decided once at the start, and said."""

import ipaddress
import os
from pathlib import Path
from typing import NamedTuple

ACCOUNTS = "SIMCLR_AUTH"  # the environment variable with accounts, as in a file for --auth


class Access(NamedTuple):
    """What is open to whom.

    ``edits``: adding, deleting and labelling pictures, and reading folders of the server. ``public``: strangers are
    expected, so the gallery is read-only and nothing tells where it lies. ``password``: visitors sign in.
    """

    edits: bool
    public: bool
    password: bool


def access_for(host: str, *, public: bool = False, auth: bool = False) -> Access:
    """Edits where only this machine can reach the page, or where a password is asked for; never with ``public``.

    Another machine's visitors without a password are strangers: the page behaves as with ``public``.
    """
    edits = not public and (auth or is_loopback(host))
    return Access(edits=edits, public=not edits, password=auth)


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is this machine's own: 127.0.0.0/8, ::1 or localhost."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def told(access: Access, host: str, port: int) -> list[str]:
    """What is open to whom, in lines for the terminal."""
    who = "Only this machine" if is_loopback(host) else f"Every machine that reaches port {port} of this one"
    lines = [f"{who} can open this page{' with a password' if access.password else ''}."]
    if access.edits:
        lines.append("Open: everything, also adding, labelling and deleting pictures, and folders of this machine.")
    else:
        lines.append(
            "Open: classify, search and about; the gallery is read-only, and what is taught stays with its visitor."
        )
    if access.password and not is_loopback(host):
        lines.append("Passwords travel unencrypted; put a proxy with TLS in front (docs/serving.md).")
    return lines


def accounts(file: Path | None) -> list[tuple[str, str]]:
    """The accounts (user, password) of a file with a line ``user:password`` each, and of $SIMCLR_AUTH.

    Blank lines and those that start with # are skipped. Raises ValueError, in one line, for a file that cannot be
    read, a line of another form (the line's number is named, its content is not), or a file without accounts.
    """
    sources = [(f"${ACCOUNTS}", os.environ[ACCOUNTS])] if os.environ.get(ACCOUNTS) else []
    if file is not None:
        try:
            sources.append((str(file), file.read_text(encoding="utf-8-sig")))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise ValueError(
                f"{file}: cannot be read ({reason}); --auth takes a file with lines user:password."
            ) from None
    found: dict[str, str] = {}
    for source, text in sources:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            user, colon, password = line.partition(":")
            if not (user.strip() and colon and password):
                raise ValueError(f"{source}: line {number} is not of the form user:password.")
            found[user.strip()] = password
    if file is not None and not found:
        raise ValueError(f"{file}: no accounts in it; --auth takes a file with lines user:password.")
    return list(found.items())
