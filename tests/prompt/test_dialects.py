"""What each dialect makes of a prompt: fragments, weights, schedules, AND, tags, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcore.errors import UsageError
from sdcore.prompt.dialects import DIALECTS, parse_prompt
from sdcore.prompt.text import Clauses, Excerpt, Fragment, LoraTag, Steps, Timeline

PAGE = Path(__file__).parents[2] / "docs" / "prompts.md"
READ = "a1111", "comfy", "compel"
MARKED = st.lists(
    st.sampled_from(
        [
            *("a", "cat", "1.3", "0.5", "3", "BREAK", " AND ", "++", "(x:1.2)", "[a:b:0.5]", "é🦊"),
            *("[a|b]", "(x y)1.3", "<lora:x:1>", '("a", "b")', ".and(", ".blend("),
            *'()[]:|\\"+-.,<> \n',
        ]
    ),
    max_size=25,
).map("".join)
ANYTHING = st.one_of(MARKED, st.text(max_size=60))


def clauses_of(prompt: str, dialect: str, step: int = 0, steps: int = 1, part: int = 0) -> Clauses:
    return parse_prompt(prompt, dialect).parts[part].timeline(Steps(steps)).at(step)


def fragments_of(prompt: str, dialect: str, **when: int) -> tuple[Fragment, ...]:
    (clause,) = clauses_of(prompt, dialect, **when)
    (passage,) = clause.passages
    return passage


def weights_of(prompt: str, dialect: str, **when: int) -> list[tuple[str, float]]:
    read = [(f.text.text.strip(), f.weight) for f in fragments_of(prompt, dialect, **when)]
    return [(text, round(weight, 4)) for text, weight in read if text]


def table_rows() -> list[tuple[str, str, str]]:
    """(prompt, dialect, reading) of the page's table of the same text in three dialects."""
    section = PAGE.read_text("utf-8").split("## The same text")[1].split("##")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert len(rows) > 10
    return [(row[0], name, said) for row in rows for name, said in zip(READ, row[1:], strict=True)]


@pytest.mark.parametrize(("prompt", "dialect", "said"), table_rows())
def test_the_table_of_the_page(prompt: str, dialect: str, said: str) -> None:
    read = weights_of(prompt, dialect)
    if all(weight == 1 for _, weight in read):
        letters = "".join(text for text, _ in read).replace(" ", "")
        assert letters == (prompt if said == "text" else said).replace(" ", "")
    else:
        shown = [text if weight == 1 else f"{text} {weight:g}" for text, weight in read]
        assert ", ".join(shown) == said


WEB_UI = {
    "normal text": [("normal text", 1)],
    "an (important) word": [("an", 1), ("important", 1.1), ("word", 1)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        *(("a", 1), ("house", 1.573), ("on", 1), ("a", 1.1), ("hill", 0.55)),
        *((", sun,", 1.1), ("sky", 1.4641), (".", 1.1)),
    ],
    "(a [b) c]": [("a", 1.1), ("b", 1), ("c", 0.9091)],
    "(x: 1.3 )": [("x", 1.3)],
    "a) b:1.3)": [("a) b:1.3)", 1)],
    "(x:-0.5)": [("x", -0.5)],
}


@pytest.mark.parametrize("prompt", WEB_UI)
def test_weights_of_the_web_ui(prompt: str) -> None:
    assert weights_of(prompt, "a1111") == WEB_UI[prompt]
    assert weights_of(prompt, "a1111-nonorm") == WEB_UI[prompt]


COMFY = {
    "a) (b) (c)": [("a) (b) (c)", 1)],
    "(a (b:1.3) c": [("(a (b:1.3) c", 1)],
    "((a)": [("(a", 1.1)],
    "(a:b)": [("a:b", 1.1)],
    "(:1.3)": [(":1.3", 1.1)],
    "(a:1:1.5)": [("a:1", 1.5)],
    r"(a\):1.5)": [("a)", 1.5)],
    "a BREAK [b:c:0.5] AND <lora:x:1>": [("a BREAK [b:c:0.5] AND <lora:x:1>", 1)],
}


@pytest.mark.parametrize("prompt", COMFY)
def test_weights_of_comfyui(prompt: str) -> None:
    assert weights_of(prompt, "comfy") == COMFY[prompt]


COMPEL = {
    "a cat+ and (a dog)1.3": [("a", 1), ("cat", 1.1), ("and", 1), ("a dog", 1.3)],
    'a "red cat"++, b': [("a", 1), ("red cat", 1.21), (", b", 1)],
    "cat.attend(1.4) b": [("cat", 1.4), ("b", 1)],
    "an ice-cream, C++": [("an ice-cream,", 1), ("C", 1.21)],
    "(a - b)": [("(a - b)", 1)],
    "(a, b.)-": [("a", 0.9), (", b", 0.9), (".", 0.9)],
    ",(x)+": [(",", 1), ("x", 1.1)],
    "x+y well - done": [("x+y well - done", 1)],
}


@pytest.mark.parametrize("prompt", COMPEL)
def test_weights_of_compel(prompt: str) -> None:
    assert weights_of(prompt, "compel") == COMPEL[prompt]


def test_compel_joins_and_blends() -> None:
    first, second = clauses_of('("a b", "c+").and(1, 0.5)', "compel")
    assert (first.weight, second.weight) == (1, 0.5)
    assert [f.weight for f in second.passages[0]] == [1.1]
    (mixed,) = clauses_of('("a", "b", (c d)).blend(1, 2, 1)', "compel")
    assert mixed.shares == (0.25, 0.5, 0.25) and len(mixed.passages) == 3
    (raw,) = clauses_of('("a", "b").blend(1, -0.5, no_normalize)', "compel")
    assert raw.shares == (1, -0.5)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a cat.swap(dog)", ".swap()"),
        ('("a", "b").and(1) c', ".and()"),
        ('c ("a", "b").blend(1, 1)', ".blend()"),
        ('("a", "b").blend(1)', ".blend()"),
        ('("a", "b").blend(1, -1)', ".blend()"),
        ('("a", "b").and(1, x)', ".and()"),
        ("(" * 200 + "a" + ")" * 200, "nesting"),
    ],
)
def test_what_compel_knows_and_we_do_not_is_refused_by_name(prompt: str, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)) as error:
        parse_prompt(prompt, "compel")
    assert error.value.why and error.value.hint


def texts_over_time(prompt: str, steps: int, before: int = 0) -> list[tuple[int, str]]:
    timeline = parse_prompt(prompt, "a1111").parts[0].timeline(Steps(steps, before))
    texts = timeline.map(lambda clauses: "".join(f.text.text for f in clauses[0].passages[0]))
    return list(zip(texts.last_steps, texts.items, strict=True))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a"), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a"), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a"), (10, "a b")]),
        ("[(a:2):3]", [(3, ""), (10, "a")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("a [b::0.4] c", [(4, "a b c"), (10, "a  c")]),
        ("a [b:c:d:0.4]", [(10, "a b:c:d:0.4")]),
        ("[a:b:3] | c", [(10, "a:b:3 | c")]),  # a stray | leaves no schedules
        ("[a:b:3] \\", [(10, "a:b:3 ")]),
        ("[a:b:20]", [(10, "a")]),
        ("[a:b:0]", [(10, "b")]),
        (r"[a\]:b:3]", [(3, "a]"), (10, "b")]),
    ],
)
def test_schedules(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert [(end, text.rstrip()) for end, text in texts_over_time(prompt, 10)] == [
        (end, text.rstrip()) for end, text in expected
    ]


def test_turns() -> None:
    assert [text for _, text in texts_over_time("[fe|]male", 4)] == ["female", "male"] * 2
    assert [text for _, text in texts_over_time("[a|b|c]", 5)] == ["a", "b", "c", "a", "b"]


def test_a_second_pass_goes_on_where_the_first_ended() -> None:
    assert texts_over_time("a [b:.5] c", 10, before=10) == [(10, "a b c")]
    assert texts_over_time("[a:b:1.5]", 10, before=10) == [(5, "a"), (10, "b")]
    assert texts_over_time("[a:b:14]", 10, before=10) == [(4, "a"), (10, "b")]


def test_and_has_parts_with_weights() -> None:
    parsed = parse_prompt("a cat AND (a dog:1.2) :0.7 AND c:-1", "a1111")
    assert [part.weight for part in parsed.parts] == [1, 0.7, -1]
    assert weights_of("a AND (b c:1.2) :0.7", "a1111", part=1) == [("b c", 1.2)]
    assert len(parse_prompt("a cat AND a dog", "a1111", negative=True).parts) == 1
    assert len(parse_prompt("BRAND ANDES", "a1111").parts) == 1
    assert parse_prompt("a\nb :0.5", "a1111").parts[0].weight == 1


def test_break_starts_a_chunk() -> None:
    fragments = fragments_of("a BREAK b BREAKS (c BREAK d:1.2)", "a1111")
    read = [(f.text.text.strip(), f.starts_chunk) for f in fragments if f.text.text.strip()]
    assert read == [("a", False), ("b BREAKS", True), ("c", False), ("d", True)]


def test_lora_tags_are_taken_out() -> None:
    parsed = parse_prompt(
        "a <lora:x:0.5>cat <lora:y> <lora:z:0.3:0.2> <lora:w:te=0:unet=1>", "a1111"
    )
    assert parsed.loras == (
        LoraTag("x", 0.5, 0.5),
        LoraTag("y", 1, 1),
        LoraTag("z", 0.3, 0.2),
        LoraTag("w", 0, 1),
    )
    assert weights_of("a <lora:x:0.5>cat", "a1111") == [("a cat", 1)]
    with pytest.raises(UsageError, match="<lora:x:big>"):
        parse_prompt("<lora:x:big>", "a1111")
    assert parse_prompt("withLora(foo, 0.5) a", "compel").loras == (LoraTag("foo", 0.5, 0.5),)
    negative = parse_prompt("a <lora:x:1>", "a1111", negative=True)
    assert negative.loras == () and "no effect" in negative.notes[0]


@pytest.mark.parametrize(
    ("prompt", "note"),
    [
        ("[fire:1.1]", "no weight"),
        ("at 12:30", "weight 30"),
        ("a <hypernet:x:1>", "dropped"),
    ],
)
def test_readings_that_surprise_are_noted(prompt: str, note: str) -> None:
    assert note in parse_prompt(prompt, "a1111").notes[0]
    assert not parse_prompt("a (cat:1.2) [b:c:0.4]", "a1111").notes


@pytest.mark.parametrize("weight", ["(a:1.2.3)", "(a:...)"])
def test_a_number_that_is_none_is_refused(weight: str) -> None:
    with pytest.raises(UsageError, match="not a number"):
        parse_prompt(weight, "a1111").parts[0].timeline(Steps(1))


def test_a_weight_with_a_comma_is_to_be_written_with_a_point() -> None:
    with pytest.raises(UsageError) as caught:
        parse_prompt("a cat <lora:ink:0,8>", "a1111")
    assert caught.value.hint == "Write it with a point: 0.8."


def test_an_unknown_dialect_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"a1112.*\n.*\n.*'a1111'"):
        parse_prompt("a", "a1112")


@settings(max_examples=150, deadline=None)
@given(ANYTHING, st.sampled_from(sorted(DIALECTS)), st.booleans(), st.integers(1, 8))
def test_every_text_is_read_or_refused(prompt: str, dialect: str, negative: bool, steps) -> None:
    try:
        parsed = parse_prompt(prompt, dialect, negative)
    except UsageError:
        assert dialect != "plain"
        return
    for part in parsed.parts:
        timeline = part.timeline(Steps(steps))
        assert list(timeline.last_steps) == sorted(set(timeline.last_steps))
        assert timeline.last_steps[-1] == steps
        for clauses in timeline.items:
            for clause in clauses:
                check_offsets(prompt, [f for passage in clause.passages for f in passage])


def check_offsets(prompt: str, fragments: list[Fragment]) -> None:
    """What is kept is what stands in the prompt, in its order."""
    last = 0
    for fragment in fragments:
        for start, end in fragment.text.slices:
            assert last <= start < end <= len(prompt)
            last = end
        text = fragment.text.text
        for i, letter in enumerate(text):
            start, end = fragment.text.origin(i, i + 1)
            assert prompt[start:end] == letter


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_plain_leaves_every_text_as_it_is(prompt: str) -> None:
    assert weights_of(prompt, "plain") == ([(prompt.strip(), 1)] if prompt.strip() else [])
    assert fragments_of(prompt, "plain")[0].text.text == prompt


@settings(max_examples=100, deadline=None)
@given(st.text("ab cé", min_size=1).filter(str.strip), st.sampled_from(READ))
def test_text_without_marks_is_the_same_in_all_dialects(prompt: str, dialect: str) -> None:
    joined = " ".join(text for text, weight in weights_of(prompt, dialect) if weight == 1)
    assert joined.split() == prompt.split()


@given(st.lists(st.sampled_from([None, 0.5, 1.3, -2.0]), min_size=1, max_size=8))
def test_brackets_in_brackets_multiply(numbers: list[float | None]) -> None:
    prompt, weight = "x", 1.0
    for number in numbers:
        prompt = f"({prompt})" if number is None else f"({prompt}:{number})"
        weight *= 1.1 if number is None else number
    assert fragments_of(prompt, "a1111")[0].weight == pytest.approx(weight)
    # in ComfyUI the innermost number counts, and what is inside of it
    innermost = next((i for i, n in enumerate(numbers) if n is not None), None)
    plain = len(numbers) if innermost is None else innermost
    expected = 1.1**plain * (1 if innermost is None else numbers[innermost])
    assert fragments_of(prompt, "comfy")[0].weight == pytest.approx(expected)


@pytest.mark.parametrize(
    "prompt",
    [
        "(" * 10_000 + "a" + ")" * 10_000,
        "[" * 10_000 + "a" + "]" * 10_000,
        "[a:" * 10_000 + "b" + ":3]" * 10_000,
        "(" * 10_000,
        "(a:" * 10_000,
        "<lora:" * 10_000,
        " " * 100_000,
        '"a" ' * 10_000,
        "word " * 50_000,
    ],
    ids=lambda prompt: prompt[:8],
)
@pytest.mark.parametrize("dialect", READ)
def test_deep_and_long_prompts(prompt: str, dialect: str) -> None:
    try:
        parsed = parse_prompt(prompt, dialect)
    except UsageError as error:
        assert dialect == "compel" and "deep" in error.why
        return
    for part in parsed.parts:
        part.timeline(Steps(10))


def test_pieces_of_pieces() -> None:
    excerpt = Excerpt("0123456789", ((1, 3), (5, 9)))
    assert excerpt.text == "125678" and excerpt.origin(1, 3) == (2, 6)
    assert excerpt.pick([(1, 3), (4, 6)]) == Excerpt("0123456789", ((2, 3), (5, 6), (7, 9)))


def test_a_timeline_says_what_is_read_at_each_step() -> None:
    timeline = Timeline(("a", "b", "c"), (1, 2, 5))
    assert [timeline.at(step) for step in range(7)] == ["a", "a", "b", "c", "c", "c", "c"]
    assert timeline.map(str.upper) == Timeline(("A", "B", "C"), (1, 2, 5))
