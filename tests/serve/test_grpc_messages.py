"""The messages of gRPC: the same as its clients have, from the file that says so, and in nobody's way."""

import re
import subprocess
import sys

import pytest

pytest.importorskip("grpc")
service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
from google.protobuf import descriptor_pb2, descriptor_pool  # noqa: E402
from served import ROOT  # noqa: E402

from torchpipe.serve import messages  # noqa: E402

FOLDER = ROOT / "torchpipe" / "serve"
KINDS = {
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
}


def known():
    """Every message of the protocol that this server has, and those inside it."""
    found = descriptor_pb2.FileDescriptorSet.FromString((FOLDER / "messages.binpb").read_bytes())
    (file,) = [file for file in found.file if file.package == "inference"]
    waiting = [f"inference.{each.name}" for each in file.message_type]
    for name in waiting:
        descriptor = messages.POOL.FindMessageTypeByName(name)
        waiting += [nested.full_name for nested in descriptor.nested_types]
    return waiting


@pytest.mark.parametrize("name", known())
def test_every_field_is_that_of_tritons_client(name):
    ours = messages.POOL.FindMessageTypeByName(name)
    theirs = descriptor_pool.Default().FindMessageTypeByName(name)
    assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry
    for field in ours.fields:
        other = theirs.fields_by_number[field.number]
        assert (field.name, field.type, field.is_repeated) == (other.name, other.type, other.is_repeated)
        for kind in ("message_type", "enum_type", "containing_oneof"):
            mine, its = getattr(field, kind), getattr(other, kind)
            assert (mine and mine.full_name) == (its and its.full_name)


def test_every_method_takes_and_gives_what_tritons_does():
    ours = messages.POOL.FindServiceByName(messages.SERVICE)
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert theirs.full_name == messages.SERVICE

    def told(service):
        return {
            method.name: (
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            )
            for method in service.methods
        }

    assert told(ours) == told(theirs)


def test_every_value_of_an_enum_is_that_of_tritons_client():
    ours = messages.POOL.FindEnumTypeByName("inference.DataType")
    theirs = descriptor_pool.Default().FindEnumTypeByName("inference.DataType")
    assert {value.name: value.number for value in ours.values} == {
        value.name: value.number for value in theirs.values
    }


def written():
    """Fields by message, as the .proto files have them: name, number, type, and whether there are several."""
    found = {}
    for file in ("open_inference.proto", "grpc_details.proto"):
        inside = []
        for line in (FOLDER / file).read_text().splitlines():
            line = line.split("//")[0].strip()
            if start := re.fullmatch(r"(message|enum|oneof|service) (\w+) \{(\})?", line):
                if start[1] == "message":
                    found[".".join([*inside, start[2]])] = []
                if not start[3]:
                    inside.append(start[2] if start[1] == "message" else None)
            elif line == "}":
                inside.pop()
            elif field := re.fullmatch(r"(repeated )?(map<string, \w+>|[\w]+) (\w+) = (\d+);", line):
                message = ".".join(each for each in inside if each)
                several = bool(field[1]) or field[2].startswith("map<")
                found[message].append((field[3], int(field[4]), KINDS.get(field[2]), several))
    return found


def test_the_descriptors_are_those_of_the_proto_files():
    found = descriptor_pb2.FileDescriptorSet.FromString((FOLDER / "messages.binpb").read_bytes())
    made = {}

    def take(prefix, message):
        if not message.options.map_entry:
            made[prefix + message.name] = [
                (
                    field.name,
                    field.number,
                    field.type if field.type in KINDS.values() else None,
                    field.label == 3,
                )
                for field in message.field
            ]
            for nested in message.nested_type:
                take(f"{prefix}{message.name}.", nested)

    for file in found.file:
        for message in file.message_type:
            take("", message)
    assert made == written()


def test_the_script_makes_the_same_file(tmp_path):
    pytest.importorskip("grpc_tools")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import messages as script
    finally:
        sys.path.pop(0)
    script.write(tmp_path / "made")
    made, kept = (
        descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        for path in (tmp_path / "made", FOLDER / "messages.binpb")
    )
    assert made == kept


@pytest.mark.parametrize("first", ["torchpipe.serve.messages", "tritonclient.grpc"])
def test_one_process_may_import_the_server_and_its_client_in_either_order(first):
    second = {"torchpipe.serve.messages": "tritonclient.grpc"}.get(first, "torchpipe.serve.messages")
    code = f"import {first}, {second}; print(torchpipe.serve.messages.InferRequest.DESCRIPTOR.full_name)"
    code = f"import torchpipe.serve; {code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "inference.ModelInferRequest\n"), done.stderr
