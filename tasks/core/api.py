"""Changes to the cluster's objects, through the API server. (probe.py only reads objects, and must be quick.)"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Collection, Iterator
from http import HTTPStatus
from typing import Any

from .context import Context
from .errors import DmucError
from .http_client import in_words, limit_of, tls_context
from .probe import Http

_DEADLINE = 30.0  # seconds for one change
_CLIENT = "kubernetes.client.api_client"  # without the classes of all kinds: importing those takes half a second
_WITHOUT_NAMESPACE = {"Namespace", "Node", "StorageClass", "ClusterRole", "ClusterRoleBinding"}
RBAC_GROUP = "rbac.authorization.k8s.io"


def full_name(thing: Any) -> str:
    """Return NAMESPACE/NAME of an object."""
    return f"{thing['metadata']['namespace']}/{thing['metadata']['name']}"


def import_client() -> None:
    """Import the kubernetes package's client in a thread, while the caller waits for something."""
    threading.Thread(target=importlib.import_module, args=(_CLIENT,), daemon=True).start()


def create(context: Context, manifest: dict[str, Any]) -> None:
    """Create the object that `manifest` describes, in the namespace default; keep an object that already exists.

    Raise DmucError when the API server refuses.
    """
    tried = f"creating the {manifest['kind']} {manifest['metadata']['name']}"
    send(context, "POST", _collection(manifest), manifest, accept=(HTTPStatus.CONFLICT,), tried=tried)


def _collection(manifest: dict[str, Any]) -> str:
    """Return the path to which an object of this kind is sent; in the namespace default where it names none."""
    version, kind = manifest["apiVersion"], manifest["kind"]
    plural = kind.lower() + ("es" if kind.endswith("ss") else "" if kind.endswith("s") else "s")  # Endpoints
    where = "" if kind in _WITHOUT_NAMESPACE else f"namespaces/{manifest['metadata'].get('namespace', 'default')}/"
    return f"/{'apis' if '/' in version else 'api'}/{version}/{where}{plural}"


def delete(context: Context, path: str) -> None:
    """Delete the object at `path` and its dependents. Do nothing when the object or the API server is gone."""
    if Http("{server}/readyz")(context):
        send(context, "DELETE", path, {"propagationPolicy": "Background"}, accept=(HTTPStatus.NOT_FOUND,))


def send(
    context: Context, method: str, path: str, body: dict[str, Any], accept: Collection[int] = (), tried: str = ""
) -> None:
    """Send `body` to `path`, by POST, PATCH (a strategic merge patch) or DELETE.

    Raise DmucError when the API server refuses, except with a status in `accept`. `tried` is what the error says was
    tried; by default the method and the path.
    """
    from kubernetes.client.exceptions import ApiException

    patch = "application/strategic-merge-patch+json"
    headers = {"Content-Type": patch if method == "PATCH" else "application/json"}
    with _client(context, tried or f"{method} {path}") as client:
        # Not with the package's method for each kind: some cannot parse the response (to a Binding: a Status).
        url = f"{client.configuration.host}{path}"
        response = client.rest_client.request(method, url, headers=headers, body=body, _request_timeout=_DEADLINE)
        text = response.read()
        if response.status >= HTTPStatus.BAD_REQUEST and response.status not in accept:
            raise ApiException(status=response.status, reason=response.reason, body=text.decode(errors="replace"))


@contextlib.contextmanager
def _client(context: Context, tried: str) -> Iterator[Any]:
    """Open a client of the kubernetes package with the administrator's certificate; turn its errors into DmucError."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    configuration = client.Configuration(host=context.server)
    configuration.proxy = None  # Configuration has read the caller's proxy variables
    try:
        with client.ApiClient(configuration) as api:
            api.rest_client.pool_manager = _connections(context)
            yield api
    except ApiException as error:
        raise DmucError(tried, f"The API server said: {error.status} {error.reason} {error.body}") from None
    except HTTPError as error:
        raise DmucError(tried, f"The API server did not answer: {error}", "See: scripts/doit status") from None
    except OSError as error:
        raise DmucError(tried, f"The API server cannot be reached: {in_words(error)}.", "Run: scripts/doit") from None


def _connections(context: Context) -> Any:
    """Return urllib3's connection pool; its connections are opened inside the machine."""
    from urllib3 import HTTPSConnectionPool, PoolManager
    from urllib3.connection import HTTPSConnection

    class Connection(HTTPSConnection):
        def _new_conn(self) -> Any:
            return context.machine.connect(self.host, self.port or 443, limit_of(context))

    class Pool(HTTPSConnectionPool):
        ConnectionCls = Connection

    pools = PoolManager(ssl_context=tls_context(context.pki), retries=False)
    pools.pool_classes_by_scheme = {"https": Pool}
    return pools
