"""The estimate: what it says of questions whose class their authors would not doubt, and that every point is told."""

from __future__ import annotations

import time

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hookline.builtins.model_selection import words
from hookline.builtins.model_selection.complexity import CLASSES, READ_CHARS, class_of, estimate

TOOL = {"type": "function", "function": {"name": "f"}}

LABELLED = [
    ("simple", "Hi!"),
    ("simple", "What is the capital of France?"),
    ("simple", "Translate to German: good morning, how are you today?"),
    ("simple", "Give me a synonym for happy."),
    ("simple", "Wie spät ist es in Tokio, wenn es in Berlin 9 Uhr ist?"),
    ("simple", "Summarize this in one sentence: The meeting was moved from Tuesday to Thursday at 3 pm."),
    ("simple", "Is 97 a prime number?"),
    ("medium", "Compare PostgreSQL and SQLite for a small web shop and explain how they differ in concurrency."),
    ("medium", "Why does this fail?\n```python\nprint(x)\n```"),
    ("medium", "Write a regular expression:\nimport re\nwhich matches ISO dates."),
    ("medium", "Plan a three-day trip to Rome:\n- museums\n- food\n- walks"),
    ("medium", "Summarize the following report.\n" + "The committee met again to discuss the budget. " * 150),
    (
        "complex",
        "Prove step by step that the algorithm terminates, analyze its complexity and compare it with:\n```python\nwhile x: x = f(x)\n```",
    ),
    (
        "complex",
        "Design a distributed rate limiter, evaluate the trade-offs between token bucket and sliding window, and justify the choice.\n"
        "1. state\n2. failures\n3. latency\n```go\nfunc Allow() bool {\n```",
    ),
    (
        "complex",
        "Refactor this module, debug the race and explain how you found the root cause.\n```python\n"
        + "x = 1\n" * 300
        + "```",
    ),
]


CODE = "\n```python\ndef f(items, seen=[]):\n    for item in items:\n        seen.append(item)\n    return seen\n```"
ASKED_IN_MANY_LANGUAGES = {
    "simple": [
        "hi", "Hallo!", "Salut, ça va ?", "¿Cuál es la capital de Francia?", "Oi, tudo bem?", "Che ore sono?", "Hoe laat is het?", "Jaka jest stolica Francji?",
        "Привет!", "Яка столиця Франції?", "Merhaba, nasılsın?", "ما هي عاصمة فرنسا؟", "फ्रांस की राजधानी क्या है?", "法国的首都是哪里？", "フランスの首都はどこですか？", "프랑스의 수도는 어디인가요?",
    ],
    "medium": [
        "Vergleiche PostgreSQL und SQLite für einen kleinen Shop und bewerte beide.", "Compare PostgreSQL et SQLite pour une petite boutique et justifie ton choix.",
        "Compara PostgreSQL y SQLite para una tienda pequeña y justifica la elección.", "Compare PostgreSQL e SQLite e justifique a escolha.",
        "Confronta PostgreSQL e SQLite e giustifica la scelta.", "Vergelijk PostgreSQL met SQLite en leg uit hoe ze verschillen.", "Porównaj PostgreSQL i SQLite i uzasadnij wybór.",
        "Сравни PostgreSQL и SQLite для небольшого магазина и обоснуй выбор.", "Порівняй PostgreSQL і SQLite та обґрунтуй вибір.", "PostgreSQL ile SQLite'ı karşılaştır ve değerlendir.",
        "قارن بين PostgreSQL و SQLite و برر اختيارك", "PostgreSQL और SQLite की तुलना और विश्लेषण करें।", "比较 PostgreSQL 和 SQLite 的优缺点。", "PostgreSQLとSQLiteを比較し、評価してください。",
        "PostgreSQL과 SQLite의 장단점을 비교해 주세요.",
    ],
    "complex": [
        "Prove that sqrt(2) is irrational.", "Beweise, dass die Wurzel aus 2 irrational ist.", "Démontre que la racine carrée de 2 est irrationnelle.", "Demuestra que la raíz de 2 es irracional.",
        "Prove que a raiz de 2 é irracional.", "Dimostra che la radice di 2 è irrazionale.", "Bewijs dat de wortel van 2 irrationaal is.", "Udowodnij, że pierwiastek z 2 jest niewymierny.",
        "Докажи, что корень из 2 иррационален.", "Доведи, що корінь з 2 ірраціональний.", "Karekök 2'nin irrasyonel olduğunu kanıtla.", "برهن أن الجذر التربيعي للعدد 2 غير نسبي", "सिद्ध कीजिए कि 2 का वर्गमूल अपरिमेय है।",
        "证明根号2是无理数。", "√2が無理数であることを証明してください。", "루트 2가 무리수임을 증명하시오.",
        f"Review this code for bugs and race conditions.{CODE}", f"Überprüfe diesen Code auf Fehler und Sicherheitslücken.{CODE}", f"Проверь код на ошибки и уязвимости.{CODE}", f"请审查这段代码，分析其中的漏洞。{CODE}",
        f"このコードをレビューして、バグと脆弱性を指摘してください。{CODE}",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "question"), [(name, question) for name, all in ASKED_IN_MANY_LANGUAGES.items() for question in all]
)
def test_a_question_is_as_hard_in_one_language_as_in_another(make_call, expected, question):
    made = estimate(make_call({"messages": [{"role": "user", "content": question}]}))

    assert made.complexity == expected, str(made)


@pytest.mark.parametrize(
    "document",
    ["The committee met again to discuss the budget. " * 600, "委員会は再び予算について話し合った。" * 800, "委员会再次开会讨论预算。" * 800, "Комитет снова обсудил бюджет. " * 800],
)  # fmt: skip
def test_a_long_document_to_summarise_is_medium_in_any_script(make_call, document):
    """Four thousand words: 24,000 letters, a third as many Chinese characters."""
    made = estimate(make_call({"messages": [{"role": "user", "content": f"Summarise:\n{document}"}]}))

    assert made.complexity == "medium", str(made)


def test_the_words_of_a_document_are_not_those_of_the_question(make_call):
    document = "x" * 1_000 + " prove, derive, design, debug, why? " + "y" * 1_000

    assert estimate(make_call({"messages": [{"role": "user", "content": document}]})).points == (("length", 1),)


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_every_language_has_words_of_every_kind(language):
    assert all(column[language] for column in (words.PROOF, words.WORK, words.THOUGHT))


@pytest.mark.parametrize(
    ("question", "points"),
    [
        (r"Simplify \frac{1}{2}", [("formula", 1)]),
        ("x^2 + 1", [("formula", 1)]),
        ("Τι ώρα είναι;", []),
        ("int f() {\n}", [("code", 2)]),
        ("x = 1;", [("code", 2)]),
        ("What does 5$ or 10$ buy?", []),
        ("1. one\n2) two\n- three", [("questions and tasks", 1)]),
        ("1、一\n（2）二\n③三", [("questions and tasks", 1)]),
        ("1.5 million?", []),
        ("Really??? No؟ Sure？", [("questions and tasks", 1)]),
        ("De\u0301montre-le.", [("proof", 5)]),
        ("在职证明书", []),
    ],
)
def test_signs_that_need_no_language(make_call, question, points):
    assert list(estimate(make_call({"prompt": question})).points) == points


@pytest.mark.parametrize(("expected", "question"), LABELLED)
def test_the_estimate_agrees_with_people(make_call, expected, question):
    made = estimate(make_call({"messages": [{"role": "user", "content": question}]}))

    assert made.complexity == expected, str(made)


@pytest.mark.parametrize(
    ("payload", "points"),
    [
        ({"tools": [TOOL]}, [("tools", 1)]),
        ({"tools": [TOOL] * 5}, [("tools", 2)]),
        ({"response_format": {"type": "json_schema"}}, [("JSON schema", 1)]),
        ({"reasoning_effort": "high"}, [("reasoning effort", 5)]),
        ({"reasoning": {"effort": "medium"}}, [("reasoning effort", 1)]),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}] * 3}, [("turns", 1)]),
        ({"instructions": "x" * 1_500}, [("length", 1)]),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "why?"}]}]}, [("thought", 1)]),
        ({"prompt": "def f(x):"}, [("code", 2)]),
    ],
)
def test_each_point_has_a_name(make_call, payload, points):
    assert list(estimate(make_call(payload)).points) == points


def test_only_the_last_question_is_judged_by_its_words(make_call):
    hard = {"role": "user", "content": "Prove, derive, analyze and compare it."}
    thanks = {"role": "user", "content": "Thanks!"}

    assert estimate(make_call({"messages": [hard, {"role": "assistant", "content": "..."}, thanks]})).score == 0


@pytest.mark.parametrize(
    ("total", "complexity"),
    [(0, "simple"), (1, "simple"), (2, "medium"), (4, "medium"), (5, "complex"), (99, "complex")],
)
def test_classes_by_score(total, complexity):
    assert class_of(total) == complexity


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "effort"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "input",
                "prompt",
                "instructions",
                "tools",
                "reasoning",
                "reasoning_effort",
                "response_format",
                "text",
            ]
        ),
        json_values,
    )
)
def test_any_shape_has_a_class(payload):
    class Call:
        pass

    call = Call()
    call.payload = orjson.loads(orjson.dumps(payload))

    assert estimate(call).complexity in CLASSES


@pytest.mark.parametrize(
    "text",
    [
        "why? " * 400_000,
        "```" * 600_000,
        "\n- " * 600_000,
        " " * 2_000_000,
        "\n" * 2_000_000,
        "\n " * 1_000_000,
        "\n1" * 1_000_000,
        ";" * 2_000_000,
    ],
)
def test_a_huge_question_costs_no_more_than_a_long_one(make_call, text):
    """What the patterns read is cut to `READ_CHARS`; CPU of this process, so other load does not matter."""
    call = make_call({"messages": [{"role": "user", "content": text}]})
    cut = make_call({"messages": [{"role": "user", "content": text[:READ_CHARS]}]})

    def cpu(of) -> float:
        started = time.process_time()
        estimate(of)
        return time.process_time() - started

    assert min(cpu(call) for _ in range(3)) < 10 * min(cpu(cut) for _ in range(3)) + 0.01
