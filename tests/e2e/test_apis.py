"""APIs that the API server has always served do something now, or `why` says that they do not."""

from __future__ import annotations

import base64
import http.server
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tasks.core.certificates import Certificate, make
from tests.e2e.conftest import KUBECONFIG, STATE, doit, executed, kubectl, nothing_left, shell, within

HOST = "10.98.0.1"  # the host's end of the link


@pytest.fixture(scope="module", autouse=True, params=["docker", "containerd"])
def engine(prepared: None, request: pytest.FixtureRequest) -> Iterator[str]:
    with nothing_left():
        doit(f"engine={request.param}", "service_reachable")
        yield request.param
        doit("clean")


def given(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run kubectl with this input."""
    return subprocess.run(
        [str(STATE / "bin" / "kubectl"), "--kubeconfig", str(KUBECONFIG), *arguments, "--validate=false", "-f", "-"],
        env={**os.environ, "HOME": str(STATE / "home")},  # it keeps a cache there
        input=text,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def apply(*objects: dict[str, Any]) -> None:
    """Create objects, as `kubectl apply -f -` does."""
    done = given(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}), "apply")
    assert done.returncode == 0, done.stderr


def eventually(wanted: str, *arguments: str) -> str:
    """Wait until `kubectl ARGUMENTS` prints what is wanted; return all that it prints."""

    @within(90)
    def look() -> str:
        text = kubectl(*arguments)
        assert wanted in text, f"{text}\n{kubectl('get', 'events')}"
        return text

    return look()


def a_pod(name: str, script: str, **more: Any) -> dict[str, Any]:
    container = {"name": "one", "image": "nginx", "command": ["sh", "-c", script], **more.pop("container", {})}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1, **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


# Certificates


def test_an_approved_request_gets_its_certificate(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "grace")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    encoded = base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode()
    spec = {"request": encoded, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}
    csr = {"kind": "CertificateSigningRequest", "metadata": {"name": "grace"}, "spec": spec}
    apply({"apiVersion": "certificates.k8s.io/v1", **csr})
    kubectl("certificate", "approve", "grace")
    eventually("Approved,Issued", "get", "csr", "grace")
    certificate = base64.b64decode(kubectl("get", "csr", "grace", "-o", "jsonpath={.status.certificate}"))
    (tmp_path / "grace.crt").write_bytes(certificate)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "grace.key").write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    tls = ssl.create_default_context(cafile=str(STATE / "pki" / "ca.crt"))
    tls.load_cert_chain(tmp_path / "grace.crt", tmp_path / "grace.key")
    from urllib.error import HTTPError
    from urllib.request import HTTPSHandler, ProxyHandler, build_opener

    opener = build_opener(ProxyHandler({}), HTTPSHandler(context=tls))
    with pytest.raises(HTTPError) as refused:
        opener.open("https://10.98.0.2:6443/api/v1/nodes", timeout=10)
    assert 'User \\"grace\\" cannot list resource' in refused.value.read().decode()


# Other API servers, and webhooks, on the host


class Asked(http.server.BaseHTTPRequestHandler):
    """An API server and a webhook: remembers who has asked."""

    requests: list[tuple[str, str, str]]  # path, the client certificate's name, the user

    def do_GET(self) -> None:
        self._note()
        group = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "host.example/v1", "resources": []}
        self._answer(group)

    def do_POST(self) -> None:
        self._note()
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response = {"uid": review["request"]["uid"], "allowed": False, "status": {"message": "the host says no"}}
        self._answer({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})

    def _note(self) -> None:
        peer = self.connection.getpeercert() or {}
        named = {key: value for part in peer.get("subject", ()) for key, value in part}
        self.requests.append((self.path, named.get("commonName", ""), self.headers.get("X-Remote-User", "")))

    def _answer(self, content: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def on_the_host(tmp_path: Path) -> Iterator[tuple[int, str, type[Asked]]]:
    """Serve HTTPS at the host's end of the link; yield the port, the CA in base64, and who has asked."""
    make(
        tmp_path,
        [Certificate("ca", "ca", "test"), Certificate("server", "ca", "server", server=[HOST, "own.apart.svc"])],
    )
    handler = type("Handler", (Asked,), {"requests": []})
    site = http.server.ThreadingHTTPServer((HOST, 0), handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    # The CA with which a real one checks its clients.
    client_ca = kubectl(
        *("-n", "kube-system", "get", "configmap", "extension-apiserver-authentication"),
        *("-o", r"jsonpath={.data.requestheader-client-ca-file}"),
    )
    tls.load_verify_locations(cadata=client_ca)
    tls.verify_mode = ssl.CERT_OPTIONAL  # a webhook gets no certificate
    site.socket = tls.wrap_socket(site.socket, server_side=True)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield site.server_address[1], base64.b64encode((tmp_path / "ca.crt").read_bytes()).decode(), handler
    site.shutdown()
    site.server_close()


def test_an_api_server_on_the_host_is_asked_with_the_users_name(on_the_host: tuple[int, str, type[Asked]]) -> None:
    port, ca, asked = on_the_host
    service = {"name": "own", "namespace": "apart"}
    apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "apart"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": service, "spec": {"ports": [{"port": 443}]}},
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": service,
            "subsets": [{"addresses": [{"ip": HOST}], "ports": [{"port": port}]}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1.host.example"},
            "spec": {
                "group": "host.example",
                "version": "v1",
                "groupPriorityMinimum": 1,
                "versionPriority": 1,
                "caBundle": ca,
                "service": {**service, "port": 443},
            },
        },
    )
    try:
        eventually("True", "get", "apiservice", "v1.host.example")
        eventually("host.example/v1", "get", "--raw", "/apis/host.example/v1")  # found a moment after it is available
        assert ("/apis/host.example/v1", "front-proxy-client", "admin") in asked.requests
    finally:
        kubectl("delete", "apiservice", "v1.host.example")
        kubectl("delete", "namespace", "apart")


def test_a_webhook_on_the_host_is_asked(on_the_host: tuple[int, str, type[Asked]]) -> None:
    port, ca, asked = on_the_host
    rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}
    webhook = {
        "name": "no.host.example",
        "clientConfig": {"url": f"https://{HOST}:{port}/no", "caBundle": ca},
        "rules": [rule],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "objectSelector": {"matchLabels": {"asked": "yes"}},
    }
    kind = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration"}
    apply({**kind, "metadata": {"name": "no"}, "webhooks": [webhook]})
    try:
        thing = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "labels": {"asked": "yes"}}}

        @within(30)
        def is_refused() -> None:
            done = given(json.dumps(thing), "create")
            if not done.returncode:
                kubectl("delete", "configmap", "x")
            assert "the host says no" in done.stderr

        is_refused()
        assert any(path.startswith("/no") for path, _, _ in asked.requests)
    finally:
        kubectl("delete", "validatingwebhookconfiguration", "no")


# Pods


def test_a_privileged_pod_runs_with_all_that_the_machine_has() -> None:
    script = "mkdir -p /mnt/x && mount -t tmpfs x /mnt/x && echo mounted; exec sleep 1000"
    apply(a_pod("mighty", script, container={"securityContext": {"privileged": True}}))
    try:
        eventually("mounted", "logs", "mighty")
        assert "Everything works." in doit("why").stdout
        assert "one" in kubectl("exec", "mighty", "--", "sh", "-c", "echo one")
    finally:
        kubectl("delete", "pod", "mighty")


def test_a_static_pod_comes_and_goes_with_its_file() -> None:
    manifest = json.dumps(a_pod("still", "exec sleep 1000"))
    shell("sh", "-c", f"cat > /etc/kubernetes/manifests/still.yaml << 'END'\n{manifest}\nEND")
    eventually("Running", "get", "pod", "still-e2e")
    assert "Everything works." in doit("why").stdout
    shell("rm", "/etc/kubernetes/manifests/still.yaml")

    @within(60)
    def is_gone() -> None:
        assert "still" not in kubectl("get", "pods")

    is_gone()


def test_a_claim_gets_a_volume_which_outlives_down() -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    apply(
        claim,
        a_pod(
            "writer", "cat /data/kept || echo first > /data/kept; exec sleep 1000", container=mount, volumes=[volume]
        ),
    )
    eventually("Bound", "get", "pvc", "data")
    eventually("Running", "get", "pod", "writer")
    doit("down")
    doit("service_reachable")
    eventually("first", "logs", "writer")
    kubectl("delete", "pod/writer", "pvc/data")
    assert "Everything works." in doit("why").stdout


def test_a_claim_of_a_class_that_does_not_exist_is_said() -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "fast"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "nvme",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }
    apply(claim)
    try:
        said = doit("why", status=1).stdout
        seen = "cause: volumes: default/fast is Pending: the StorageClass nvme does not exist; there are: standard"
        assert seen in " ".join(said.split()), said
    finally:
        kubectl("delete", "pvc", "fast")


def test_that_a_network_policy_has_no_effect_is_said() -> None:
    kind = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny"}}
    apply({**kind, "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}})
    try:
        said = doit("why").stdout
        assert "! network_policies   default/deny: without effect, as nothing here enforces them" in said
        assert said.endswith("Everything works.\n")
        assert executed(doit("service_reachable")) == set()
    finally:
        kubectl("delete", "networkpolicy", "deny")
    assert "network_policies" not in doit("why").stdout
