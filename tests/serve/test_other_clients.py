"""Clients of other projects work as they are: open-inference-openapi, KServe's, MLServer's types and codecs.

Each is skipped where it is not installed.
"""

import asyncio
import base64

import numpy as np
import pytest

import torchpipe

pytest.importorskip("uvicorn")
from served import Served, document

NUMBERS = {
    "max_batch_size": 4,
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [2]}],
    "outputs": [{"name": "result", "datatype": "FP32", "shape": [2]}],
}
X = np.array([[0.5, 1.5], [2.0, -3.0]], np.float32)


@pytest.fixture(scope="module")
def served():
    numbers = torchpipe.pipe({"only": {"backend": "Identity"}, "serve": NUMBERS})
    text = torchpipe.pipe({"backend": "Identity"})
    with numbers, text, Served({"numbers": numbers, "text": text}) as served:
        yield served


def test_open_inference_openapi(served):
    openapi = pytest.importorskip("open_inference.openapi.client")
    types = pytest.importorskip("open_inference.openapi.types")
    from open_inference.openapi.errors import BadRequestError, NotFoundError

    client = openapi.OpenInferenceClient(base_url=f"http://{served.url}")
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("numbers")
    client.check_model_version_readiness("numbers", "1")
    with pytest.raises(NotFoundError):
        client.check_model_readiness("nothing")
    assert client.read_server_metadata().name == "torchpipe"
    assert client.read_model_metadata("numbers").inputs[0].shape == [-1, 2]
    assert client.read_model_version_metadata("numbers", "1").outputs[0].datatype == "FP32"
    x = types.RequestInput(name="x", shape=[2, 2], datatype="FP32", data=X.tolist())
    request = types.InferenceRequest(id="seven", inputs=[x], outputs=[types.RequestOutput(name="result")])
    for answer in [
        client.model_infer("numbers", request=request),
        client.model_version_infer("numbers", "1", request=request),
    ]:
        assert answer.id == "seven"
        assert answer.outputs[0].data.__root__ == X.ravel().tolist()
    text = types.RequestInput(name="data", shape=[1, 1], datatype="BYTES", data=["a"])
    whole = types.RequestInput(name="n", shape=[1, 2], datatype="INT64", data=[5, -6])  # sent as 5.0 and -6.0
    flag = types.RequestInput(name="b", shape=[1, 1], datatype="BOOL", data=[True], parameters=None)
    nothing = {"id": None, "parameters": None, "outputs": None}
    request = types.InferenceRequest(inputs=[text, whole, flag], **nothing)
    assert client.model_infer("text", request=request).outputs[0].data.__root__ == ["a"]
    with pytest.raises(BadRequestError, match="none of this model"):
        client.model_infer("numbers", request=request)

    async def ask():
        client = openapi.AsyncOpenInferenceClient(base_url=f"http://{served.url}")
        return await client.model_infer("text", request=request)

    assert asyncio.run(ask()).outputs[0].data.__root__ == ["a"]


def test_kserve(served):
    kserve = pytest.importorskip("kserve")
    import httpx
    from kserve.protocol.infer_type import RequestedOutput

    url = f"http://{served.url}"

    def data(name, array, datatype, binary):
        one = kserve.InferInput(name, list(array.shape), datatype)
        one.set_data_from_numpy(array, binary_data=binary)
        return one

    async def ask():
        client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", timeout=20))
        assert await client.is_server_live(url)
        assert await client.is_server_ready(url)
        assert await client.is_model_ready(url, "numbers")
        assert not await client.is_model_ready(url, "nothing")
        for there in (True, False):
            for back in (True, False):
                wanted = [RequestedOutput("result", parameters={"binary_data": back})]
                asked = [data("x", X, "FP32", there)]
                request = kserve.InferRequest("numbers", asked, request_id="q", request_outputs=wanted)
                answer = await client.infer(url, request, model_name="numbers")
                assert answer.id == "q"
                np.testing.assert_array_equal(answer.outputs[0].as_numpy(), X)
        asked = [data("data", np.array([["a"], ["ü"]], object), "BYTES", False)]
        answer = await client.infer(url, kserve.InferRequest("text", asked), model_name="text")
        assert answer.outputs[0].data == ["a", "ü"]
        raw = np.array([["ü".encode()], [b"b"]], object)  # it reads answers as text
        request = kserve.InferRequest(
            "text", [data("data", raw, "BYTES", True)], parameters={"binary_data_output": True}
        )
        answer = await client.infer(url, request, model_name="text")
        assert answer.outputs[0].as_numpy().tolist() == ["ü", "b"]
        with pytest.raises(httpx.HTTPStatusError, match="none of this model"):
            await client.infer(url, kserve.InferRequest("numbers", asked), model_name="numbers")
        await client.close()

    asyncio.run(ask())


@pytest.mark.parametrize("nulls", [True, False])
def test_mlserver(served, nulls):
    types = pytest.importorskip("mlserver.types")
    codecs = pytest.importorskip("mlserver.codecs")

    def ask(model, request):
        body = request.model_dump_json(exclude_none=not nulls).encode()
        answer = served.ask("POST", f"/v2/models/{model}/infer", body, content_type="application/json")
        assert answer.status == 200, answer.body
        return types.InferenceResponse.model_validate_json(answer.body)

    request = codecs.NumpyRequestCodec.encode_request(X)
    request.inputs[0].name = "x"
    answer = ask("numbers", request)
    np.testing.assert_array_equal(codecs.NumpyRequestCodec.decode_response(answer), X)
    request = types.InferenceRequest(inputs=[codecs.StringCodec.encode_input("data", ["a", "ü"])])
    answer = ask("text", request)
    assert codecs.StringCodec.decode_output(answer.outputs[0]) == ["a", "ü"]
    request.outputs = [types.RequestOutput(name="result")]
    request.id = "seven"
    assert ask("text", request).id == "seven"
    packed = types.InferenceRequest(inputs=[codecs.Base64Codec.encode_input("data", [b"plain"])])
    assert ask("text", packed).outputs[0].data.root == ["plain"]
    for path, kind in [
        ("/v2", types.MetadataServerResponse),
        ("/v2/models/numbers", types.MetadataModelResponse),
    ]:
        kind.model_validate_json(served.ask("GET", path).body)
    body = types.RepositoryIndexRequest(ready=True).model_dump_json()
    index = served.ask("POST", "/v2/repository/index", body).body
    assert len(types.RepositoryIndexResponse.model_validate_json(index).root) == 2


def test_what_clients_leave_out_may_be_null(served):
    body = document("a", id=None, parameters=None, outputs=None)
    body["inputs"][0]["parameters"] = {"content_type": None, "binary_data_size": None}
    answer = served.infer("text", body)
    assert answer.json["outputs"] == [{"name": "result", "datatype": "BYTES", "shape": [1], "data": ["a"]}]
    body["parameters"] = {"timeout": None, "priority": None, "binary_data_output": None}
    body["outputs"] = [{"name": "result", "parameters": None}]
    assert served.infer("text", body).status == 200
    body["outputs"] = [{"name": "result", "parameters": {"binary_data": None}}]
    assert served.infer("text", body).status == 200
    body["inputs"][0]["data"] = None
    assert served.infer("text", body).status == 400


@pytest.mark.parametrize(
    ("datatype", "value", "right"),
    [
        ("INT64", 5.0, 5),
        ("UINT8", 255.0, 255),
        ("INT64", -0.0, 0),
        ("BOOL", 1.0, True),
        ("INT64", 5.5, None),
        ("UINT8", 256.0, None),
        ("INT64", 1e300, None),
        ("INT64", True, None),
        ("BOOL", 2.0, None),
        ("BOOL", 0.5, None),
    ],
)
def test_a_whole_number_with_a_point_is_a_whole_number(served, datatype, value, right):
    body = document("a")
    body["inputs"].append({"name": "n", "datatype": datatype, "shape": [1, 1], "data": [value]})
    answer = served.infer("text", body)
    assert answer.status == (200 if right is not None else 400)


def test_bytes_in_json_may_come_as_base64(served):
    raw = bytes(range(256))
    body = document(base64.b64encode(raw).decode(), parameters={"binary_data_output": True})
    body["inputs"][0]["parameters"] = {"content_type": "base64"}
    answer = served.infer("text", body)
    assert answer.status == 200
    assert answer.body.endswith(raw)
    for wrong in ("a", "ü", "ab=c", " YQ==", "\ud800"):
        body["inputs"][0]["data"] = [wrong]
        answer = served.infer("text", body)
        assert answer.status == 400
        assert "base64" in answer.error
