"""Whether a download can work, asked before one is tried.

Download libraries retry for most of a minute before they admit that there is no network; a short
probe of the host turns that into one clear error at once.
"""

from __future__ import annotations

import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

PROBE_SECONDS = 3.0


def unreachable_reason(url: str, timeout: float = PROBE_SECONDS) -> str | None:
    """Why a URL's host cannot be reached, or None if a connection opens.

    Parameters
    ----------
    url : str
        Any URL of the host. Where the environment names a proxy for it, the proxy is probed.
    timeout : float
        Seconds, name lookup included.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(host):
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = through.hostname or host, through.port or 80
    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout).close()
        except OSError as error:
            outcome.append(error.strerror or str(error) or type(error).__name__)
        else:
            outcome.append(None)

    # A thread, because the lookup of a name has no timeout of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout)
    reason = outcome[0] if outcome else f"no answer within {timeout:g} s"
    return None if reason is None else f"{host}:{port}: {reason}"
