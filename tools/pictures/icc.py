"""Small ICC profiles, written from numbers: matrices with curves, grey curves, and tables."""

import struct

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
WHITE_D65, WHITE_D50 = (0.3127, 0.3290), (0.3457, 0.3585)
SRGB = [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]
P3 = [(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)]
ADOBE = [(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)]
PROPHOTO = [(0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)]
BT2020 = [(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)]


def fixed(number):
    return struct.pack(">i", round(number * 65536))


def xyz(values):
    return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))


def gamma(exponent):
    if exponent == 1:
        return b"curv\0\0\0\0" + struct.pack(">I", 0)
    return b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(exponent * 256))


def parametric(*numbers):
    """Y = (aX + b)^g from X = d on, cX below: g, a, b, c, d."""
    return b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + b"".join(map(fixed, numbers))


SRGB_CURVE = parametric(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
BT709_CURVE = parametric(1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)


def described(name):
    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    return {b"desc": description, b"cprt": b"text\0\0\0\0none\0", b"wtpt": xyz(D50)}


def profile(space, connection, kind, tags):
    place, table, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", place + len(data), len(content))
        data += content
    head = struct.pack(">I4xI", place + len(data), 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2025, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + b"".join(map(fixed, D50)) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + data


def colorants(white, primaries):
    """RGB to XYZ as seen under D50, columns for red, green and blue."""
    point = lambda x, y: np.array([x / y, 1, (1 - x - y) / y])
    white, primaries = point(*white), np.array([point(*p) for p in primaries]).T
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted = np.linalg.inv(cone) @ np.diag(cone @ np.array(D50) / (cone @ white)) @ cone
    return adapted @ (primaries * np.linalg.solve(primaries, white))


def rgb(name, white, primaries, curve):
    tags = described(name)
    for channel, column in zip((b"r", b"g", b"b"), colorants(white, primaries).T):
        tags[channel + b"XYZ"], tags[channel + b"TRC"] = xyz(column), curve
    return profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey(exponent):
    return profile(b"GRAY", b"XYZ ", b"mntr", {**described(f"grey {exponent}"), b"kTRC": gamma(exponent)})


def lab(colour):
    ratio = np.array(colour) / np.array(D50)
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


def table(inputs, points, colour):
    """A table of `points` in each of `inputs` directions; `colour` gives XYZ for inputs from 0 to 1."""
    body = b"mft2\0\0\0\0" + bytes([inputs, 3, points, 0]) + b"".join(map(fixed, np.eye(3).ravel()))
    body += struct.pack(">HH", 2, 2) + struct.pack(">HH", 0, 65535) * inputs
    for index in np.ndindex(*[points] * inputs):
        lightness, a, b = lab(colour(np.array(index) / (points - 1)))
        numbers = (lightness * 652.8, (a + 128) * 256, (b + 128) * 256)
        body += struct.pack(">3H", *[min(65535, max(0, round(number))) for number in numbers])
    return body + struct.pack(">HH", 0, 65535) * 3


def rgb_table(name):
    to_xyz = colorants(WHITE_D65, P3)
    colour = lambda v: to_xyz @ (v**2.0 * np.array([0.95, 1, 0.9]))
    return profile(b"RGB ", b"Lab ", b"mntr", {**described(name), b"A2B0": table(3, 9, colour)})


def cmyk_table(name):
    to_xyz = colorants(WHITE_D65, SRGB)
    colour = lambda v: to_xyz @ ((1 - v[:3] * np.array([0.9, 0.85, 0.9])) * (1 - 0.95 * v[3])) ** 2.2
    return profile(b"CMYK", b"Lab ", b"prtr", {**described(name), b"A2B0": table(4, 5, colour)})
