"""scripts/new-release says which flags came and went, and which of those dmuc uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.new_release import compare, recorded
from tasks.core.errors import DmucError
from tests.unit.support import a_program


def test_flags_that_came_and_went_are_listed(tmp_path: Path) -> None:
    last, before = recorded()
    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"):
        flags = sorted((before[name] | {"--brand-new"}) - {"--kubeconfig", "--v"})
        usage = f"Usage:\\n  {name} [flags]\\n" + "\\n".join(f"      {flag} string   text" for flag in flags)
        a_program(tmp_path / name, f"case $1 in --help) printf '{usage}\\n';; *) echo Kubernetes v1.99.0;; esac")
    said = list(compare(tmp_path))
    assert f"kubelet v1.99.0, compared with {last}" in said
    assert said.count("  + --brand-new") == 5
    assert "  - --kubeconfig   dmuc uses it" in said


def test_a_directory_without_the_programs_is_said(tmp_path: Path) -> None:
    with pytest.raises(DmucError, match="five servers"):
        list(compare(tmp_path))
