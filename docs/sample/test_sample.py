"""A sample of tests on a real API server: a kind of object of one's own (CRD), and a webhook in the test's process."""

import http.server
import json
import ssl
import subprocess
import threading
from base64 import b64encode
from time import monotonic

import pytest

CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "parrots.sample.example"},
    "spec": {
        "group": "sample.example",
        "scope": "Namespaced",
        "names": {"plural": "parrots", "kind": "Parrot"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "properties": {"says": {"type": "string"}}}},
                    }
                },
            }
        ],
    },
}


def parrot(name, says):
    return json.dumps(
        {"apiVersion": "sample.example/v1", "kind": "Parrot", "metadata": {"name": name}, "spec": {"says": says}}
    )


@pytest.fixture
def crd(dmuc_cluster):
    """The kind Parrot, for one test."""
    dmuc_cluster.kubectl("create", "-f", "-", text=json.dumps(CRD))
    dmuc_cluster.kubectl("wait", "--for=condition=Established", "crd/parrots.sample.example", "--timeout=30s")
    yield
    dmuc_cluster.kubectl("delete", "crd", "parrots.sample.example")


class Webhook(http.server.BaseHTTPRequestHandler):
    """Admits a Parrot unless what it says is rude."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        allowed = request["object"]["spec"]["says"] != "damn"
        response = {"uid": request["uid"], "allowed": allowed, "status": {"message": "parrots are polite here"}}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        self.wfile.write(json.dumps(review).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def webhook(dmuc_cluster, crd, tmp_path):
    """The webhook: in this process, at an address that the API server reaches."""
    # machine=host.NAME: the loopback; in a machine of its own: the host's end of the link.
    server = dmuc_cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    address = server.removeprefix("https://").rpartition(":")[0]
    here = (
        address
        if address.startswith("127.")
        else address.rpartition(".")[0] + "." + str(int(address.rpartition(".")[2]) - 1)
    )
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", "/CN=webhook", "-addext", f"subjectAltName=IP:{here}", "-keyout", key, "-out", certificate],
        check=True,
        capture_output=True,
    )
    with http.server.ThreadingHTTPServer((here, 0), Webhook) as site:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        site.socket = tls.wrap_socket(site.socket, server_side=True)
        threading.Thread(target=site.serve_forever, daemon=True).start()
        rule = {
            "operations": ["CREATE"],
            "apiGroups": ["sample.example"],
            "apiVersions": ["v1"],
            "resources": ["parrots"],
        }
        client = {
            "url": f"https://{here}:{site.server_address[1]}/",
            "caBundle": b64encode(certificate.read_bytes()).decode(),
        }
        one = {
            "name": "polite.sample.example",
            "rules": [rule],
            "clientConfig": client,
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        manifest = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "polite"},
            "webhooks": [one],
        }
        dmuc_cluster.kubectl("create", "-f", "-", text=json.dumps(manifest))
        yield
        dmuc_cluster.kubectl("delete", "validatingwebhookconfiguration", "polite")
        site.shutdown()


def test_an_object_of_ones_own_kind_is_kept(dmuc_cluster, crd, dmuc_namespace):
    dmuc_cluster.kubectl("create", "-n", dmuc_namespace, "-f", "-", text=parrot("polly", "hello"))
    assert (
        dmuc_cluster.kubectl("get", "parrot", "polly", "-n", dmuc_namespace, "-o", "jsonpath={.spec.says}") == "hello"
    )


def test_the_webhook_refuses_what_is_rude(dmuc_cluster, webhook, dmuc_namespace):
    end = monotonic() + 30  # the API server reads new webhooks a moment after they are created
    while True:
        try:
            dmuc_cluster.kubectl("create", "-n", dmuc_namespace, "-f", "-", text=parrot("polly", "damn"))
        except pytest.fail.Exception as refused:
            assert "parrots are polite here" in str(refused)
            break
        dmuc_cluster.kubectl("delete", "parrot", "polly", "-n", dmuc_namespace)
        assert monotonic() < end
    dmuc_cluster.kubectl("create", "-n", dmuc_namespace, "-f", "-", text=parrot("polly", "please"))


def test_nothing_of_the_tests_before_is_left(dmuc_reset):
    assert "sample.example" not in dmuc_reset.kubectl("get", "crds", "-o", "name")
    assert "test-" not in dmuc_reset.kubectl("get", "namespaces", "-o", "name")
