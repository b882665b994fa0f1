"""What the reference libraries give for the texts below. Writes `metrics.json` beside this file.

    python -m venv venv && venv/bin/pip install sacrebleu==2.6.0 rouge-score==0.1.2 nltk==3.10.4 scikit-learn==1.9.1 scipy==1.17.1 \
        jsonschema[format]==4.26.0 numpy==2.4.6
    venv/bin/python make_metrics.py

SQuAD's numbers and those of `numeric` are computed here, from the definitions: SQuAD's scripts are no package.
"""

import json
import math
import random
import re
import string
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import jsonschema
import numpy as np
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

# Expected, written.
PAIRS = [
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("The cat sat on the mat.", "the cat sat on a mat"),
    ("The cat sat on the mat.", "A dog stood under the table!"),
    ("The quick brown fox jumps over the lazy dog.", "The quick brown dog jumps on the log."),
    ("", ""),
    ("", "something"),
    ("something", ""),
    (" ", "\t\n"),
    ("a an the", "the"),
    ("the", "."),
    ("a", "b"),
    ("ab", "ab c"),
    ("yes", "Yes."),
    ("No!", "no"),
    ("U.S.A.", "USA"),
    ("the the the the", "the the"),
    ("la la la la la la", "la la la"),
    ("x", "x x x x x x x x"),
    ("one two three four five", "five four three two one"),
    ("police killed the gunman", "the gunman police killed"),
    ("It costs $1,234.56, i.e. 5% more.", "it costs 1234.56 dollars, i.e., 5 percent more"),
    ("3.14 and 2,718", "3,14 and 2.718"),
    ("1-2-3 go", "1 - 2 - 3 go"),
    ("well-known co-operation", "well known cooperation"),
    ("e-mail me at a.b@example.com/x?y=z#q", "email me at a.b at example.com"),
    ("He said: \"Stop!\" (twice) [sic] {ok} <b>", "He said: 'Stop!' - twice - sic ok b"),
    ("&quot;R&amp;D&quot; &lt;2&gt;", "\"R&D\" <2>"),
    ("soft-\nware line\nbreaks\n", "software line breaks"),
    ("<skipped> words here", "words here"),
    ("trailing spaces   ", "trailing spaces"),
    ("non\u00a0breaking\u2009thin\u3000wide", "non breaking thin wide"),
    ("zero\u200bwidth", "zero width"),
    ("sep\x1carat\x1dors", "sep arat ors"),
    ("Straße und Öl", "STRASSE UND ÖL"),
    ("naïve café", "nai\u0308ve cafe\u0301"),
    ("a\u0301 propos", "propos"),
    ("Ünïcödé ÀÉÎ", "ünïcödé àéî"),
    ("ΟΔΟΣ ΣΟΦΙΑΣ", "οδος σοφιας"),
    ("İstanbul", "istanbul"),
    ("Привет, мир!", "привет мир"),
    ("日本語のテスト。", "日本語のテスト"),
    ("今天天气很好", "今天天氣很好"),
    ("한국어 문장입니다.", "한국어 문장"),
    ("שלום עולם", "שלום, עולם"),
    ("مرحبا بالعالم ١٢٣", "مرحبا بالعالم 123"),
    ("हिन्दी में लिखा", "हिन्दी मे लिखा"),
    ("emoji 👍🏽 ok 🎉", "emoji 👍 ok"),
    ("² ½ Ⅷ ① a²", "2 1/2 8 1 a2"),
    ("“curly” ‘quotes’ — dash…", "\"curly\" 'quotes' - dash..."),
    ("don't won't it's o'clock", "dont wont its oclock"),
    ("snake_case the_end a_b", "snake case the end"),
    ("C++ and C# vs. A* (a.k.a. the star)", "C and C vs A star"),
    ("running runs ran runner", "run running runner ran"),
    ("The national organizations were relational databases", "nationally organized relation database"),
    ("happily flies dying skies generously", "happy fly die sky generous"),
    ("First sentence here.\nSecond sentence there.\nThird.", "Second sentence here.\nFirst one there."),
    ("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5"),
    ("\n\nlines\n\nand gaps\n", "lines\nand\ngaps"),
    ("..., --- !!! ???", "... --- !?"),
    ("1999's 20s 3rd 4G x86", "1999 20s 3 4g x 86"),
    ("{\"name\": \"Ann\", \"age\": 3}", "{\"age\": 3, \"name\": \"Anne\"}"),
    ("patient was given 5 mg of X twice daily for 10 days", "the patient received 5 mg X 2 times daily for ten days"),
    ("word " * 60 + "end", "word " * 45 + "finish"),
    (" ".join(f"t{i % 17}" for i in range(140)), " ".join(f"t{(i * 5) % 17}" for i in range(120))),
]

STEMS = """caresses ponies ties caress cats feed agreed plastered bled motoring sing conflated troubled sized hopping tanned falling
hissing fizzed failing filing happy sky enjoy say by relational conditional rational valenci hesitanci digitizer conformabli radicalli
differentli vileli analogousli vietnamization predication operator feudalism decisiveness hopefulness callousness formaliti sensitiviti
sensibiliti triplicate formative formalize electriciti electrical hopeful goodness revival allowance inference airliner gyroscopic
adjustable defensible irritant replacement adjustment dependent adoption homologou communism activate angulariti homologous effective
bowdlerize probate rate cease controll roll skies dying lying tying news innings inning outings outing cannings canning howe proceed
exceed succeed dies flies died spied tried spy fly try geology theology archaeology logi apologi wonderfulli totalli usefulli abli
terribli 1990s 3rd 4ths s1ing ssss yyyy yyyyyyyy sy ying eed ed ing ion ational ness ement international organizations generalization
oscillators being seeing agreeing bees aies oaten ivy by toy syzygy troubles private orrery banking abies bled wed xed axed bowing
owing eying bbed bbing aabbing izing atted""".split()

NUMBERS = [
    "42", "-42", "the answer is 1,234,567.5 today", "3-5", "COVID-19", "(2)-1", "f(x)-3", "[1]-2", "x -7", "−8", "a−9", "+5", "1e3",
    "1E-2x", "2e", "2e+", "1.5.2", ".5", "5.", "1,2,3", "1,23,456", "1,234", "12,345", "1234,567", "1,234,56", "0,123", "$5.00", "50%",
    "v1.2.3", "1/2", "10:30", "--4", "- 4", "1e400", "00012", "1,234e2", "９", "٣", "three", "", "1..2", "1.,2", "-.5", "5-.5", "1 000",
]

LABELS = ["cat", "dog", "owl", "eel"]
CLASSES = {
    "mixed": (["cat", "dog", "owl", "cat", "dog", "owl", "cat", "dog", "cat", "dog"], ["cat", "owl", "owl", "cat", "dog", "cat", "dog", "dog", "none", ""]),
    "never_predicted": (["cat", "dog", "owl", "owl"], ["cat", "cat", "cat", "cat"]),
    "never_there": (["cat", "cat"], ["dog", "owl"]),
    "all_right": (["cat", "dog", "owl", "eel"], ["cat", "dog", "owl", "eel"]),
    "all_wrong": (["cat", "dog"], ["dog", "cat"]),
    "one_class": (["cat"] * 5, ["cat"] * 4 + ["dog"]),
}

SCHEMAS = [
    {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 0}, "b": {"enum": ["x", "y"]}}, "additionalProperties": False},
    {"type": "array", "items": {"type": "string", "minLength": 2}, "uniqueItems": True, "maxItems": 3},
    {"properties": {"d": {"type": "string", "format": "date"}, "t": {"type": "string", "format": "date-time"}}},
    {"$defs": {"n": {"type": "object", "properties": {"v": {"type": "number"}, "next": {"$ref": "#/$defs/n"}}, "required": ["v"]}}, "$ref": "#/$defs/n"},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[A-Z]+$"}]},
]
INSTANCES = [
    {"a": 1}, {"a": 1.0, "b": "x"}, {"a": -1}, {"a": 1, "c": 2}, {"b": "x"}, {"a": "1"}, {"a": 1, "b": "z"}, [], ["ab", "cd"], ["ab", "ab"],
    ["a"], ["ab", "cd", "ef", "gh"], {"d": "2024-02-29"}, {"d": "2023-02-29"}, {"d": "29.2.2024"}, {"t": "2024-02-29T10:00:00Z"},
    {"t": "2024-02-29 10:00"}, {"v": 1}, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {}}, None, "ABC", "abc", 3, {"v": True},
]


def normalize_answer(text):
    """SQuAD: lower case, no punctuation, no articles, single spaces."""
    bare = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def squad_f1(expected, output, v2):
    wanted, given = normalize_answer(expected).split(), normalize_answer(output).split()
    if v2 and (not wanted or not given):
        return float(wanted == given)
    same = sum((Counter(wanted) & Counter(given)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def rouge(expected, output):
    scores = {}
    for stem in (False, True):
        found = RougeScorer(["rougeL", "rougeLsum"], use_stemmer=stem).score(expected, output)
        for kind, score in found.items():
            scores[f"{kind}{'_stem' if stem else ''}"] = [float(score.precision), float(score.recall), float(score.fmeasure)]
    return scores


NUMBER = re.compile(r"(?:(?<![^\W_])(?<![)\]])[-\u2212])?(?:(?:(?<!\d)\d{1,3}(?:,\d{3}(?!\d))+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?", re.UNICODE)


def numbers(text):
    """By one expression, where the Rust code reads character by character. ASCII digits only."""
    found = [float(m.group().replace(",", "").replace("\u2212", "-")) for m in re.finditer(NUMBER.pattern.replace(r"\d", "[0-9]"), text)]
    return [x for x in found if math.isfinite(x)]


def main():
    bleu, sentence, tokenize = BLEU(), BLEU(effective_order=True), Tokenizer13a()
    chrf, chrf_pp = CHRF(), CHRF(word_order=2)
    out = {"versions": {name: version(name) for name in ["sacrebleu", "rouge-score", "nltk", "scikit-learn", "scipy", "jsonschema", "numpy"]}}
    out["pairs"] = [
        {
            "expected": e,
            "output": o,
            "normalized": normalize_answer(o),
            "match": normalize_answer(e) == normalize_answer(o),
            "f1_v1": squad_f1(e, o, False),
            "f1_v2": squad_f1(e, o, True),
            "tokens_13a": tokenize(o.rstrip()),
            "sentence_bleu": sentence.sentence_score(o, [e]).score,
            "bleu_alone": bleu.corpus_score([o], [[e]]).score,
            "chrf": chrf.sentence_score(o, [e]).score,
            "chrf_pp": chrf_pp.sentence_score(o, [e]).score,
            "rouge": rouge(e, o),
        }
        for e, o in PAIRS
    ]
    # Corpora: all, every third, the short ones, a single one, and one without any match.
    rows = range(len(PAIRS))
    corpora = [list(rows), list(rows)[::3], list(rows)[4:18], [3], [2, 10], [6, 8], list(rows)[33:47]]
    out["corpora"] = []
    for corpus in corpora:
        expected, output = [PAIRS[i][0] for i in corpus], [PAIRS[i][1] for i in corpus]
        out["corpora"].append({
            "rows": corpus,
            "bleu": bleu.corpus_score(output, [expected]).score,
            "chrf": chrf.corpus_score(output, [expected]).score,
            "chrf_pp": chrf_pp.corpus_score(output, [expected]).score,
        })
    out["signatures"] = {"bleu": str(bleu.get_signature()), "sentence_bleu": str(sentence.get_signature()), "chrf": str(chrf.get_signature()), "chrf_pp": str(chrf_pp.get_signature())}
    stemmer = PorterStemmer()
    out["stems"] = {word: stemmer.stem(word) for word in STEMS}
    out["numbers"] = [[text, numbers(text)] for text in NUMBERS]
    out["classes"] = {}
    for name, (expected, predicted) in CLASSES.items():
        case = {"labels": LABELS, "expected": expected, "predicted": predicted, "accuracy": accuracy_score(expected, predicted)}
        case["confusion"] = confusion_matrix(expected, predicted, labels=LABELS).tolist()
        for zero in (0, 1):
            kinds = {"by_class": None, "macro": "macro", "weighted": "weighted"}
            for kind, average in kinds.items():
                p, r, f, s = precision_recall_fscore_support(expected, predicted, labels=LABELS, average=average, zero_division=zero)
                values = [np.asarray(v).tolist() for v in ((p, r, f) if average else (p, r, f, s))]
                case[f"{kind}_{zero}"] = values
        out["classes"][name] = case
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    out["schemas"] = [
        {"schema": schema, "valid": [jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(i) for i in INSTANCES]} for schema in SCHEMAS
    ]
    out["instances"] = INSTANCES
    rng = random.Random(7)
    out["assignments"] = []
    for shape in [(3, 3), (4, 7), (7, 4), (12, 12), (20, 15)]:
        weights = [[rng.randrange(0, 30) for _ in range(shape[1])] for _ in range(shape[0])]
        r, c = linear_sum_assignment(np.array(weights), maximize=True)
        out["assignments"].append({"weights": weights, "sum": int(np.array(weights)[r, c].sum())})
    text = json.dumps(out, ensure_ascii=False, separators=(",", ":"))
    (Path(__file__).parent / "metrics.json").write_text(text.replace('},{"expected"', '},\n{"expected"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
