"""What a careless or hostile person types, and what ends up in files."""

from __future__ import annotations

import random
from typing import Any

WORDS = (
    *(
        "",
        " ",
        "''",
        '""',
        "'",
        '"',
        "null",
        "true",
        "false",
        "yes",
        "off",
        "None",
        "~",
        "-",
        "--",
        "=",
        "==",
        ",",
        ":",
    ),
    *(
        "0",
        "-1",
        "1",
        "2",
        "7",
        "1.5",
        "1e400",
        "-1e400",
        "1e-400",
        "nan",
        ".nan",
        "inf",
        "-.inf",
        "1_0",
        "0x1F",
        "010",
    ),
    *("12:30", "9223372036854775808", "99999999999999999999999999", "٣", "½", "²", "-0", "0.0", "1e3", "+1", "3.0"),
    *(
        "é",
        "日本語",
        "\u202e\u0000x".replace("\u0000", ""),
        "\x1b[31mred",
        "\x07\x08",
        "a\nb",
        "a\tb",
        "\ufeff",
        "\udcff",
    ),
    *(
        "😀" * 40,
        "a" * 300,
        "a" * 70_000,
        "[" * 900,
        "{" * 40,
        "${" * 30,
        "(" * 60,
        "\\" * 7,
        "'\\",
        "%s%d%n",
        "{0}{x}",
    ),
    *(
        "[]",
        "[1",
        "[1,2]",
        "[1,[2,[3]]]",
        "[null]",
        "[nan]",
        "['a','b']",
        "{}",
        "{a:1}",
        "{a:{b:[1]}}",
        "{a",
        "a}",
        "]",
    ),
    *("$(touch canary)", "`touch canary`", "; touch canary", "| touch canary", "x'; touch canary #", "<b>&amp;</b>"),
    *(
        "../x",
        "../../x",
        "../../../../../../tmp/x",
        "/",
        ".",
        "..",
        "/dev/null",
        "/dev/full",
        "/proc/self/mem",
        "~root/x",
    ),
    *("${oc.env:HOME}", "${oc.env:NOT_THERE}", "${model.name}", "${seed}", "${}", "${nope:1}", "${hydra:run.dir}"),
    *("${run_name:x}", "${job_label:../x}", "${oc.decode:'[1'}", "${..}", "${.name}", "${oc.create:{a:1}}", "\\${x}"),
    *("{_target_:os.system,command:'touch canary'}", "_target_", "os.system", "__class__", "!!python/object:os.system"),
    *(
        "10%",
        "5epochs",
        "1step",
        "101%",
        "-5%",
        "90s",
        "10m",
        "0s",
        "1e9h",
        "9" * 400 + "s",
        "9" * 400 + "epochs",
        "1 s",
    ),
    *("cifar10", "synthetic", "vgg", "resnet", "sgd", "onecycle", "none", "auto", "never", "last20", "test", "val"),
    *("1,2", "a,b", ",", "1,", "choice(1,2)", "range(1,3)", "range(0,0)", "interval(0,1)", "glob(*)", "tag(a,1)"),
    *("sort(2,1)", "shuffle(1,2)", "int(1.5)", "str(1)", "json_str([1])", "bool(x)", "float(nan)", "cast(1)", "x(1)"),
)

NUMBERS = (0, 1, -1, 2, 255, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e-320, 1e300, 1.5)
ODD_NUMBERS = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    *("", " ", "x", "../x", "../../x", "/dev/null", "/etc/passwd", "a" * 5000, "é\x00b", "\x1b[31mred", "a\nb", "NaN"),
    *("<script>alert(1)</script>", "[red]x[/red]", "[/]", "[link=x]", "${oc.env:HOME}", "$(touch canary)", "{0}{x!r}"),
    *("synthetic", "cifar10", "vgg", "os.system", "completed", "running", "failed", "best", "last", "2026-99-99"),
    *("http://example.com/x", "=HYPERLINK(1)", "10%", "90s", "cuda", "bf16", "fp16", "0" * 64),
)


def word(draw: random.Random) -> str:
    """Something to type."""
    return draw.choice(WORDS)


def plain(draw: random.Random, depth: int = 0) -> Any:
    """A value that JSON or YAML can hold, mostly of the wrong type."""
    shape = draw.randrange(9 if depth < 2 else 5)
    if shape == 0:
        return draw.choice((None, True, False))
    if shape < 3:
        return draw.choice((*NUMBERS, *ODD_NUMBERS))
    if shape < 5:
        return draw.choice(TEXTS)
    if shape == 5:
        return draw.choice(([], {}, [[]], {"": {}}))
    if shape < 8:
        return [plain(draw, depth + 1) for _ in range(draw.choice((1, 2, 3, 10)))]
    return {draw.choice(TEXTS): plain(draw, depth + 1) for _ in range(draw.choice((1, 3)))}


def change(draw: random.Random, values: Any) -> Any:
    """A copy of nested dicts and lists in which one place, drawn by chance, is replaced, removed, added or doubled."""
    if not isinstance(values, dict | list) or not values or draw.random() < 0.12:
        return plain(draw)
    places = list(values) if isinstance(values, dict) else list(range(len(values)))
    place = draw.choice(places)
    copied: Any = dict(values) if isinstance(values, dict) else list(values)
    act = draw.random()
    if act < 0.72:
        copied[place] = change(draw, values[place])
    elif act < 0.84:
        del copied[place]
    elif isinstance(copied, dict):
        copied[draw.choice(TEXTS)] = plain(draw)
    else:
        copied.insert(place, draw.choice((plain(draw), copied[place])))
    return copied


def spoil(draw: random.Random, content: bytes) -> bytes:
    """Bytes with a bit flipped, a range cut out, doubled, overwritten or added, or another content altogether."""
    act, size = draw.randrange(8), max(len(content), 1)
    start = draw.randrange(size)
    stop = min(size, start + draw.choice((1, 4, 40, 4000)))
    junk = draw.choice((draw.randbytes(stop - start), b"\x00" * (stop - start), b"\xff" * (stop - start)))
    if act == 0:
        return content[:start] + bytes([content[start] ^ (1 << draw.randrange(8))]) + content[start + 1 :]
    if act == 1:
        return content[:start]
    if act == 2:
        return content[:start] + content[stop:]
    if act == 3:
        return content[:stop] + content[start:]
    if act in (4, 5):
        return content[:start] + junk + content[stop:]
    if act == 6:
        return content + junk
    return draw.choice((b"", b"\x00", b"null", b"[" * 100_000, b"\xff\xfe{", b"PK\x03\x04", b"x" * 70_000, b"<html>"))
