"""The links of `doit why` about APIs that are served, although this cluster does nothing with some of their objects.

README, "Limits, and what to do", has the list.
"""

from __future__ import annotations

from ..core.api import full_name
from ..core.context import Context
from ..core.probe import objects
from .diagnosis import Finding, Link, State, broken, waits, works

_POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
_CLAIMS = "/api/v1/persistentvolumeclaims"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
_TRIED = "looking for what has no effect here"


def links(context: Context) -> dict[str, Link]:
    """Return the links by name: about NetworkPolicies, and about PersistentVolumeClaims."""
    about = {"network_policies": _policies, "volumes": _volumes}
    return {
        name: Link(name, lambda check=check: check(context), "scripts/doit", asks=("objects",), quiet=True)  # type: ignore[misc]
        for name, check in about.items()
    }


def _policies(context: Context) -> Finding:
    names = ", ".join(map(full_name, objects(context, _POLICIES, _TRIED)))
    return Finding(State.LIMIT, f"{names}: without effect, as nothing here enforces them") if names else works("")


def _volumes(context: Context) -> Finding:
    """Return whether each claim has its volume; one whose class waits for its first Pod needs none before."""
    pending = [one for one in objects(context, _CLAIMS, _TRIED) if one["status"].get("phase") == "Pending"]
    if not pending:
        return works("")
    classes = {one["metadata"]["name"]: one for one in objects(context, _CLASSES, _TRIED)}
    for claim in pending:
        name, wanted = full_name(claim), claim["spec"].get("storageClassName") or ""
        space = claim["metadata"]["namespace"]
        if wanted not in classes:
            seen = f"the StorageClass {wanted} does not exist" if wanted else "it names no StorageClass"
            do = f"scripts/doit shell -- kubectl -n {space} describe pvc {claim['metadata']['name']}"
            there = ", ".join(classes) or "none"
            return broken(f"{name} is Pending: {seen}; there are: {there}", do, stays=True)
        if classes[wanted].get("volumeBindingMode") != "WaitForFirstConsumer":
            return waits(f"{name} is Pending", because=("controller_manager",))
    return works("")
