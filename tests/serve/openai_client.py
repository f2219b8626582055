"""The Python package `openai` against a server of the demo model: python3 openai_client.py ADDRESS PICTURE RESULT.

RESULT is what the command line makes of PICTURE. Pixels are compared, and read without another package.
"""

import base64
import struct
import sys
import time
import zlib

import openai


def pixels(png):
    """Width, height and RGB rows of an 8-bit PNG without interlacing."""
    at, data = 8, b""
    while at < len(png):
        (length,), kind = struct.unpack(">I", png[at : at + 4]), png[at + 4 : at + 8]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", png[at + 8 : at + 21])
            assert (depth, colour, interlace) == (8, 2, 0), (depth, colour, interlace)
        if kind == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    raw, stride, rows, before = zlib.decompress(data), 3 * width, [], bytes(3 * width)
    for y in range(height):
        rule, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for x in range(stride):
            a, b, c = (line[x - 3] if x > 2 else 0), before[x], (before[x - 3] if x > 2 else 0)
            paeth = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            line[x] = (line[x] + [0, a, b, (a + b) // 2, paeth][rule]) & 255
        before = bytes(line)
        rows.append(before)
    return width, height, b"".join(rows)


def refused(kind, code, param, call):
    try:
        call()
    except kind as error:
        assert (error.code, error.param) == (code, param), (error.code, error.param, error)
        assert error.request_id.startswith("req_"), error.request_id
        return error
    raise AssertionError(f"not refused: {code}")


def main(address, picture, result):
    client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)
    image, expected = open(picture, "rb").read(), pixels(open(result, "rb").read())
    prompt, seed = "make the circle blue", {"seed": 42}
    of = lambda data: pixels(base64.b64decode(data.b64_json))

    # A file, bytes, a list; several pictures.
    for one in (open(picture, "rb"), image, [image], [("photo.png", image, "image/png")]):
        answer = client.images.edit(image=one, prompt=prompt, extra_body=seed)
        assert of(answer.data[0]) == expected
    assert answer.seed == 42 and answer.usage.total_tokens > 20 and answer.size == "128x128", answer
    several = client.images.edit(image=image, prompt=prompt, n=2, size="256x256", extra_body=seed)
    assert len(several.data) == 2 and of(several.data[0])[:2] == (256, 256)
    assert client.images.edit(image=image, prompt=prompt, output_format="jpeg", quality="high", extra_body=seed).ignored == ["quality"]

    # Events.
    events = list(client.images.edit(image=image, prompt=prompt, stream=True, partial_images=1, extra_body=seed))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"], events
    assert of(events[-1]) == expected and events[-1].usage.output_tokens == 0 and events[0].partial_image_index == 0

    # Models.
    assert [model.id for model in client.models.list()] == ["step1x-edit-demo", "step1x-edit"]
    assert client.models.retrieve("step1x-edit").object == "model"

    # Errors keep code and field.
    edit = client.images.edit
    refused(openai.NotFoundError, "model_not_found", "model", lambda: edit(image=image, prompt=prompt, model="gpt-image-1"))
    refused(openai.BadRequestError, "invalid_value", "n", lambda: edit(image=image, prompt=prompt, n=11))
    refused(openai.BadRequestError, "invalid_image", "image", lambda: edit(image=b"nonsense", prompt=prompt))
    refused(openai.BadRequestError, "unsupported_parameter", "mask", lambda: edit(image=image, prompt=prompt, mask=image))
    refused(openai.BadRequestError, "invalid_value", "prompt", lambda: edit(image=image, prompt=" "))
    refused(openai.BadRequestError, "unsupported_operation", None, lambda: client.images.generate(prompt="a cat"))
    refused(openai.APIStatusError, "request_too_large", None, lambda: edit(image=image + bytes(64 << 20), prompt=prompt))

    # What would fail again is not tried again; a full queue is, after the time that the answer says.
    patient = client.with_options(max_retries=2)
    since = time.monotonic()
    late = refused(
        openai.InternalServerError,
        "timeout",
        None,
        lambda: patient.images.edit(image=image, prompt=prompt, extra_body={"steps": 1000, "deadline_ms": 500}),
    )
    assert late.status_code == 504 and time.monotonic() - since < 1.5, time.monotonic() - since
    print("openai", openai.__version__, "is served")


if __name__ == "__main__":
    main(*sys.argv[1:])
