"""The files of deploy/: what the schemas allow, and what the containers' command does."""

import argparse
import functools
import importlib
import re
import signal
import time

import pytest

from torchpipe.serve.command import add_arguments, models

pytest.importorskip("yaml")
pytest.importorskip("uvicorn")
pytest.importorskip("grpc")
import yaml
from images import encoded, noise
from networks import onnx_classifier
from served import ROOT, Process

DEPLOY = ROOT / "deploy"
NAMED = "classify"
MANIFESTS = {
    f"{path.name}-{document['kind']}": document
    for path in sorted(DEPLOY.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
DEPLOYMENT = MANIFESTS["kubernetes.yaml-Deployment"]["spec"]["template"]["spec"]
RUNTIME = MANIFESTS["kserve.yaml-ServingRuntime"]["spec"]
PREDICTOR = MANIFESTS["kserve.yaml-InferenceService"]["spec"]["predictor"]
CONTAINERS = {
    "kubernetes.yaml": (DEPLOYMENT["containers"][0], DEPLOYMENT["terminationGracePeriodSeconds"]),
    "kserve.yaml": (RUNTIME["containers"][0], PREDICTOR["terminationGracePeriodSeconds"]),
}
each_container = pytest.mark.parametrize("name", sorted(CONTAINERS))


def parsed(arguments):
    command = argparse.ArgumentParser()
    add_arguments(command)
    return command.parse_args([str(each).replace("{{.Name}}", NAMED) for each in arguments])


def stages():
    """The instructions of each stage of the Dockerfile, and what comes before the first."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    found = [[]]
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest.strip()))
    return found


@each_container
def test_the_grace_period_is_longer_than_the_end_can_take(name):
    container, period = CONTAINERS[name]
    options = parsed(container["args"])
    ends = container["lifecycle"]["preStop"]["sleep"]["seconds"] + options.grace + 2 * options.drain
    assert ends < period <= ends + 30


@each_container
def test_the_probes_ask_the_port_at_which_the_server_listens(name):
    container, _ = CONTAINERS[name]
    port, *others = container["ports"]
    options = parsed(container["args"])
    assert (options.http, options.host) == (port["containerPort"], "0.0.0.0")
    assert [each["containerPort"] for each in others] == [options.grpc] * len(others)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in (port["containerPort"], port["name"])


@each_container
def test_no_root_and_a_read_only_file_system_but_for_tmp(name):
    container, _ = CONTAINERS[name]
    pod = DEPLOYMENT if name == "kubernetes.yaml" else RUNTIME
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert security["runAsNonRoot"] and security["readOnlyRootFilesystem"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    (user,) = [rest for word, rest in stages()[-1] if word == "USER"]
    assert int(user.split(":")[0]) == security["runAsUser"] > 0
    writable = [each for each in container["volumeMounts"] if not each.get("readOnly")]
    assert [each["mountPath"] for each in writable] == ["/tmp"]


def test_selectors_ports_and_volumes_name_what_there_is():
    labels = MANIFESTS["kubernetes.yaml-Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, path in [
        ("Deployment", "matchLabels"),
        ("Service", None),
        ("PodDisruptionBudget", "matchLabels"),
    ]:
        selector = MANIFESTS[f"kubernetes.yaml-{kind}"]["spec"]["selector"]
        assert (selector[path] if path else selector).items() <= labels.items()
    targets = [each["targetPort"] for each in MANIFESTS["kubernetes.yaml-Service"]["spec"]["ports"]]
    assert targets == [each["name"] for each in DEPLOYMENT["containers"][0]["ports"]]
    for pod in (DEPLOYMENT, RUNTIME):
        mounted = {each["name"] for each in pod["containers"][0]["volumeMounts"]}
        assert mounted == {each["name"] for each in pod["volumes"]}
    config = next(each for each in DEPLOYMENT["volumes"] if each["name"] == "config")
    assert config["configMap"]["name"] == MANIFESTS["kubernetes.yaml-ConfigMap"]["metadata"]["name"]
    formats = {each["name"] for each in RUNTIME["supportedModelFormats"]}
    assert PREDICTOR["model"]["modelFormat"]["name"] in formats
    assert PREDICTOR["model"]["runtime"] == MANIFESTS["kserve.yaml-ServingRuntime"]["metadata"]["name"]
    assert RUNTIME["containers"][0]["name"] == "kserve-container"


@pytest.fixture
def mounted(tmp_path):
    """The folders that a container sees, with the configuration of the ConfigMap in both places."""
    text = MANIFESTS["kubernetes.yaml-ConfigMap"]["data"]["classify.toml"]
    for folder in ("etc/torchpipe", "models", "mnt/models"):
        (tmp_path / folder).mkdir(parents=True)
    onnx_classifier(tmp_path / "models/network.onnx")
    text = text.replace("/models/network.onnx", str(tmp_path / "models" / "network.onnx"))
    (tmp_path / "etc/torchpipe/classify.toml").write_text(text)
    (tmp_path / "mnt/models/model.toml").write_text(text)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(120)
@each_container
def test_the_command_of_the_container_serves_and_ends_as_its_manifest_expects(name, mounted):
    container, period = CONTAINERS[name]
    arguments = [str(each).replace("{{.Name}}", NAMED) for each in container["args"]]
    arguments = ["0" if each == "8001" else each for each in arguments]
    arguments = [re.sub(r"(^|=)/", rf"\1{mounted}/", each) for each in arguments]
    image = encoded(noise(50, 60, 3), ".jpg")
    with Process(*arguments, cwd=mounted) as server:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert server.ask("GET", container[probe]["httpGet"]["path"]).status == 200
        (found,) = server.ask("POST", f"/v2/models/{NAMED}/infer", image).json["result"]
        assert len(found) == 5
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        time.sleep(1)
        assert server.ask("GET", container["readinessProbe"]["httpGet"]["path"]).status == 503
        assert server.ask("POST", f"/v2/models/{NAMED}/infer", image).status == 200
        assert server.process.wait(period) == 0
        assert parsed(container["args"]).grace <= time.monotonic() - began < period


def test_the_dockerfile_copies_and_installs_what_there_is():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    before, build, final = stages()
    for word, rest in build:
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and f"!{source}" in ignored
    project = (ROOT / "pyproject.toml").read_text()
    extras = set(re.findall(r"^(\w+) = \[", project.split("optional-dependencies]\n")[1], re.M))
    named = re.findall(r"EXTRAS=([\w,]+)", (DEPLOY / "Dockerfile").read_text())
    assert len(named) == 2
    assert {extra for each in named for extra in each.split(",")} <= extras
    for file in ("readme", "license-files"):
        assert re.search(rf"^{file} = .*(README.md|LICENSE)", project, re.M)
    said = {word: rest for word, rest in final if word in ("ENTRYPOINT", "CMD", "EXPOSE", "STOPSIGNAL")}
    assert yaml.safe_load(said["ENTRYPOINT"]) == ["python", "-m", "torchpipe", "serve"]
    options = parsed(yaml.safe_load(said["CMD"]))
    assert (models(options.config), options.host) == ({"model": "/models/model.toml"}, "0.0.0.0")
    assert [options.http, options.grpc] == [int(port) for port in said["EXPOSE"].split()]
    assert said["STOPSIGNAL"] == "SIGTERM"
    assert {word for word, _ in before} == {"ARG"}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", [name for name in MANIFESTS if name.startswith("kubernetes")])
def test_a_manifest_fits_the_schema_of_kubernetes(name, version):
    validate = pytest.importorskip("kubernetes_validate").validate
    validate(MANIFESTS[name], version, strict=True)


@functools.cache
def model_of(type_name):
    """KServe's or Kubernetes' class for a type in its Python client; None for what is no class of theirs."""
    for module in ("kserve", "kubernetes.client"):
        found = getattr(importlib.import_module(module), type_name, None)
        if found is not None:
            return found
    return None


def check_fields(type_name, value, where):
    """Every key is a field of its type, and every value is of its field's type."""
    many = re.fullmatch(r"(list|dict)\W(?:str, )?(.*)[\])]", type_name, re.I)
    if many:
        of_all = many[1].lower() == "list"
        assert isinstance(value, list if of_all else dict), where
        for key, each in enumerate(value) if of_all else value.items():
            check_fields(many[2], each, f"{where}.{key}")
        return
    plain = {"str": str, "int": int, "bool": bool, "float": float}
    model = model_of(type_name) if type_name not in plain else None
    if model is None:
        expected = plain.get(type_name, (str, int, dict))  # dict: metav1.Time and such, quantities
        assert isinstance(value, expected), f"{where}: {type_name}, not {value!r}"
        return
    fields = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
    for key, each in value.items():
        assert key in fields, f"{where}: {type_name} has no field {key}"
        check_fields(fields[key], each, f"{where}.{key}")


@pytest.mark.parametrize(
    ("kind", "type_name"),
    [("ServingRuntime", "V1alpha1ServingRuntime"), ("InferenceService", "V1beta1InferenceService")],
)
def test_a_manifest_fits_the_types_of_kserve(kind, type_name):
    pytest.importorskip("kserve")
    document = MANIFESTS[f"kserve.yaml-{kind}"]
    check_fields(type_name, document, kind)
    wrong = {**document, "spec": {**document["spec"], "containres": []}}
    with pytest.raises(AssertionError, match="has no field containres"):
        check_fields(type_name, wrong, kind)
