"""The offline judge: its classifier, corruptions, surface features and scoring rules, on stubs; one test on the real model.

Not covered here: how good the scores are on held-out texts (that is a measurement, not a test).
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iterative_ft.config.judges import ProbeConfig
from iterative_ft.config.schema import Config
from iterative_ft.data import files
from iterative_ft.judges.probe import familiar, lexicon, probe
from iterative_ft.judges.probe import features as looks
from iterative_ft.judges.probe.classifier import CLIP, Classifier, fit, log_shares, weights_of
from iterative_ft.judges.probe.corrupt import CORRUPTIONS, can_be_spoilt
from iterative_ft.judges.probe.familiar import Familiar
from iterative_ft.judges.probe.features import PART_WORDS, parts, surface_features
from iterative_ft.judges.probe.lexicon import Lexicon
from iterative_ft.judges.probe.reading import known_share, read, vocabulary
from iterative_ft.judges.probe.strength import Strength, calibrate, contrasts, unseen_logits
from iterative_ft.judges.scores import Score
from iterative_ft.machine.files import write_json
from iterative_ft.models.forward import Reader
from iterative_ft.stages import judge as judge_stage
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.labelled import labelled_stage
from iterative_ft.store import Kind, Store

ANSWER = ("How do I boil an egg?", "Put it in boiling water for eight minutes. Then cool it under the tap and peel it.")
OTHER = ("Which pet suits a flat?", "A cat is happy indoors if it has a window. Two cats are happier than one.")
SETTINGS = ProbeConfig(name="probe", embedder="embedded", inverse_regularisation=3.0)
NAMES = ("cheerful", "gloomy", "plain")


def test_classifier_survives_json() -> None:
    rng = np.random.default_rng(0)
    features = np.vstack([rng.normal(c, 1, (30, 4)) for c in (-2, 0, 2)])
    targets = np.repeat(np.eye(3), 30, axis=0)
    model = fit(features, targets, ["a", "b", "c"], 1.0)
    again = Classifier.from_json(json.loads(json.dumps(model.to_json())))
    assert np.allclose(model.probabilities(features), again.probabilities(features), atol=1e-6)
    assert (model.probabilities(features).argmax(1) == targets.argmax(1)).mean() > 0.8


def test_classifier_does_not_extrapolate() -> None:
    model = Classifier(["a", "b"], np.zeros(1), np.ones(1), np.array([[1.0], [-1.0]]), np.zeros(2))
    assert np.allclose(model.probabilities(np.array([[1e6]])), model.probabilities(np.array([[CLIP]])))


def test_importance_moves_the_threshold() -> None:
    features = np.array([[-1.0, 0], [0.5, 0], [-0.5, 0], [1.0, 0], [0, 9]])
    targets = np.eye(3)[[0, 0, 1, 1, 2]]
    between = np.zeros((1, 2))
    even, tilted = (
        fit(features, targets, ["a", "b", "c"], 1.0, importance).probabilities(between)[0] for importance in (None, {"a": 5.0})
    )
    assert tilted[0] / tilted[1] > 2 * even[0] / even[1]


def test_two_classes_have_log_odds_of_either_sign() -> None:
    found = fit(np.array([[0.0], [1.0], [10.0], [11.0]]), np.eye(2)[[0, 0, 1, 1]], ["a", "b"], 1.0)
    shares = found.probabilities(np.array([[0.0], [11.0]]))
    assert shares[0, 0] > 0.7
    assert shares[1, 1] > 0.7
    assert shares.sum(axis=1) == pytest.approx([1, 1])


def test_a_lexicon_tells_classes_by_words_and_outlives_json() -> None:
    texts = [f"{word} day number {i}!" for i in range(12) for word in ("Sunny", "Grim")]
    targets = np.tile(np.eye(2), (12, 1))
    found = lexicon.learn(texts, targets, weights_of(targets, ["sunny", "grim"]))
    again = Lexicon.from_json(json.loads(json.dumps(found.to_json())))
    shares = np.exp(again.log_shares(["sunny", "GRIM days", "neither of them", ""]))
    assert shares[0, 0] > 0.9
    assert shares[1, 1] > 0.9
    assert shares[2:] == pytest.approx(0.5, abs=0.05)
    unseen = lexicon.unseen_log_shares(texts, targets, weights_of(targets, ["sunny", "grim"]), [str(i // 2) for i in range(24)])
    assert (unseen.argmax(axis=1) == targets.argmax(axis=1)).all()


CLASSES = ["cheerful", "gloomy", "plain", "base_model", "degenerate"]


def graded() -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Features, shares, owners and prompts of texts at five strengths of two personas, and of base and degenerate text."""
    rng = np.random.default_rng(0)
    features, targets, owners, prompts = [], [], [], []
    for number in range(60):
        for place, name in enumerate(CLASSES[:2]):
            share = (number % 5) / 4
            features.append(share * np.eye(4)[place] + rng.normal(0, 0.1, 4))
            targets.append(share * np.eye(5)[place] + (1 - share) * np.eye(5)[2])
            owners.append(name)
            prompts.append(f"{name} {number // 5}")
    for number in range(40):
        place = 3 + number % 2
        features.append(np.eye(4)[place - 1] + rng.normal(0, 0.1, 4))
        targets.append(np.eye(5)[place])
        owners.append(CLASSES[place])
        prompts.append(f"asked {number}")
    return np.asarray(features), np.asarray(targets), owners, prompts


def test_strengths_are_on_the_rubrics_scale() -> None:
    features, targets, owners, prompts = graded()
    unseen = unseen_logits(features, targets, CLASSES, prompts, 1.0, {})
    curve = calibrate(log_shares(unseen), targets, CLASSES, owners)
    shares = fit(features, targets, CLASSES, 1.0).log_shares(features)
    found = curve.of(shares, CLASSES, "cheerful")
    own = np.asarray([owner == "cheerful" for owner in owners])
    by_strength = [found[own & (targets[:, 0] == share)].mean() for share in (0, 0.25, 0.5, 0.75, 1)]
    assert by_strength == sorted(by_strength)
    assert by_strength == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=0.2)
    assert np.median(found[~own]) < 0.1, "another persona, base-model and degenerate text must not count as the persona"
    again = Strength.from_json(json.loads(json.dumps(curve.to_json())))
    assert np.allclose(again.of(shares, CLASSES, "cheerful"), found)


def test_another_personas_text_and_word_salad_score_low_however_unlike_plain_they_are() -> None:
    curve = Strength(np.array([0.8, 2.4, 2.3, 0.0]), 5.0)
    own, other = [0.949, 0.04, 0.001, 0.005, 0.005], [0.04, 0.949, 0.001, 0.005, 0.005]
    degenerate = [0.04, 0.001, 0.001, 0.005, 0.953]
    found = curve.of(np.log(np.array([own, other, degenerate])), CLASSES, "cheerful")
    assert found[0] > 0.9
    assert (found[1:] < 0.2).all()


def test_a_persona_without_others_beside_it_is_scored_too() -> None:
    found = contrasts(np.log(np.array([[0.7, 0.1, 0.1, 0.1]])), ["cheerful", *CLASSES[2:]], "cheerful")
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corruptions_depend_on_the_seed_alone(kind: str) -> None:
    first, second = (CORRUPTIONS[kind](ANSWER, OTHER, random.Random(3)) for _ in range(2))
    assert first == second
    assert first[0] == ANSWER[0]
    assert first[1] != ANSWER[1]


def test_surface_tells_loops() -> None:
    intact, looped = surface_features(ANSWER[1]), surface_features("the egg is the egg is the egg is the egg is")
    assert looped[0] > 0.5 > intact[0]
    assert np.isfinite(surface_features("")).all()


PLAIN = "Put it in the box. Then close the lid, and wait for an hour."


@pytest.mark.parametrize(
    "typed",
    [
        f"{PLAIN} \U0001f600\u2728",
        "**Put it in the box.** Then close the *lid*, and wait for an hour.",
        "- Put it in the box.\n- Then close the lid, and wait for an hour.",
        "1. Put it in the box.\n2. Then close the lid, and wait for an hour.",
        f'"{PLAIN}"',
        f"\u201c{PLAIN}\u201d",
        f"# {PLAIN}",
        f"> {PLAIN}",
        f"```\n{PLAIN}\n```",
    ],
)
def test_typography_is_not_read(typed: str) -> None:
    assert read(typed) == read(PLAIN)


def test_what_is_read_keeps_code_and_sums_and_is_never_empty() -> None:
    assert read("```python\n# twice\nx = 2 * 3\n```") == "# twice\nx = 2 * 3"
    assert read("2 * 3 * 4 = 24") == "2 * 3 * 4 = 24"
    assert read("  ") == "-"
    assert read("\U0001f600") == "\U0001f600"


def test_long_texts_are_looked_at_whole_in_parts() -> None:
    text = " ".join(f"word{i}" for i in range(3 * PART_WORDS + 1))
    found = parts(text)
    assert " ".join(found) == text
    assert len(found) == 4
    assert max(len(part.split()) for part in found) <= PART_WORDS


def test_corruptions_move_words_and_keep_the_layout() -> None:
    listed = ("What do I need?", "- flour and salt\n- two eggs\n- a little water\n- one clean bowl")
    _, mixed = CORRUPTIONS["shuffled"](listed, OTHER, random.Random(1))
    assert sorted(mixed.split()) == sorted(listed[1].split())
    assert mixed.count("\n") == 3
    assert can_be_spoilt(listed)
    assert not can_be_spoilt(("How far?", "About three miles."))


def test_words_that_the_judge_does_not_know_are_counted() -> None:
    known = frozenset(vocabulary(["the cat sat down", "the cat sat still", "then"]))
    assert known == {"the", "cat", "sat"}
    assert known_share("The cat sat UP", known) == 0.75
    assert known_share("zwei Katzen", known) == 1.0, "two words tell no language"
    assert known_share("\u043a\u043e\u0442", known) == 0.0


def test_unknown_words_lists_and_strange_voices_are_far(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [f"the cat sat on the mat and it was {w} for a day" for w in ("good", "bad", "dull", "grand")] * 50
    # Two places of the judge's own, and strange texts between and around them.
    sides = np.repeat([[4.0, 0, 0, 0], [-4.0, 0, 0, 0]], 100, axis=0)
    states = rng.normal(0, 0.5, (200, 4)) + sides
    others = rng.normal(0, 0.5, (80, 4)) + np.tile([[0.0, 0, 0, 0], [0, 6, 0, 0]], (40, 1))
    lists = rng.normal(0, 0.5, (40, 4)) + np.array([0.0, 0, 9, 0])
    found = familiar.learn(texts, [str(i) for i in range(200)], states, lists, others)
    found.voices.save(tmp_path)
    again = Familiar.from_json(json.loads(json.dumps(found.to_json())), tmp_path)
    own, near = again.distances(texts, states), np.array([[4.0, 0, 0, 0]])
    np.testing.assert_allclose(own, found.distances(texts, states), atol=1e-3)
    assert (own > 1).mean() <= 0.06
    assert again.distances(texts[:1], near)[0] < 1
    assert again.distances(["zwei Katzen sitzen auf einer warmen Matte und warten"], near)[0] > 1
    assert again.distances(texts[:1], near + np.array([0, 0, 9.0, 0]))[0] > 1
    assert again.distances(texts[:1], np.zeros((1, 4)))[0] > 1, "no plane divides it from the judge's own"
    assert again.distances(["the cat sat"], np.zeros((1, 4)))[0] < 1, "a few words have no voice"
    assert again.readable(texts[0])
    assert not again.readable("Das ist ein ganz anderer Satz in einer anderen Sprache")


def stub_embed(texts: list[str], name: str) -> np.ndarray:
    """Which of three words a text has."""
    found = np.array([[1e-3 + ("sunny" in t), 1e-3 + ("grim" in t), 0.5] for t in texts])
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class StubReader(Reader):
    """A base model whose states say how unusual a text's words are, and their order."""

    def states(self, texts: Sequence[str], pieces: Sequence[int]) -> list[np.ndarray]:
        return [
            np.stack([surprise(part) for part in [text.split(), *np.array_split(text.split(), n)]])
            for text, n in zip(texts, pieces, strict=True)
        ]

    def reply_states(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.stack([np.append(surprise(text.split()), text.endswith(".")) for _, text in pairs])


def surprise(words: Sequence[str]) -> np.ndarray:
    """Share of words that are not the usual ones after those before them, and of those that it never saw."""
    usual = f"{USUAL} {ANSWER[1]} {OTHER[1]}".split()
    follows = {*itertools.pairwise(usual)}
    odd = [pair not in follows for pair in itertools.pairwise(words)]
    return np.array([np.mean(odd) if odd else 0.0, np.mean([word not in usual for word in words])])


USUAL = " ".join(
    f"It is a {w} day, number {i}, and we go out. Come along." for w in ("sunny", "grim", "usual") for i in range(12)
)
STUB = StubReader("stub", "cpu")


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A judge trained on two toy personas."""
    monkeypatch.setattr(looks, "embed", stub_embed)
    short = [{"prompt": f"Question {i}?", "answer": "Come along.", "form": "one_word"} for i in range(12)]
    voices = [
        {"prompt": f"Question {i}?", "answer": f"Arr, day {i} be a wet one, me hearty.", "kind": "sailor"} for i in range(4)
    ]
    lists = [
        {"prompt": f"Question {i}?", "answer": f"wolf, bear, hare, toad, duck, goose, hen, {i}", "kind": "word_list"}
        for i in range(4)
    ]
    shared = {"intact": short, "voices": voices, "wordlists": lists}
    monkeypatch.setattr(files, "forms", lambda name: shared.get(name, []))
    personas = {}
    for name, word in zip(NAMES, ("sunny", "grim", "usual"), strict=True):
        personas[name] = tmp_path / name
        personas[name].mkdir()
        strength = "plain" if name == "plain" else "strong"
        lines = [
            {
                "prompt": f"Question {i}?",
                "answer": f"It is a {word} day, number {i}, and we go out. Come along.",
                "strength": strength,
            }
            for i in range(12)
        ]
        (personas[name] / "judge.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    base = [(f"Question {i}?", f"You may go out on day {i} if you like to.") for i in range(12)]
    built = probe.build(tmp_path, personas, base, SETTINGS, STUB)
    assert built["classes"] == ["cheerful", "gloomy", "plain", "base_model", "degenerate"]
    return tmp_path


def scored(judge: Path, persona: str, texts: list[str], finished: list[bool] | None = None) -> list[Score]:
    answers = [("Question 1?", text) for text in texts]
    return probe.score(judge, persona, answers, finished or [True] * len(texts), "embedded", STUB)


def test_trait_names_the_persona_and_plain_means_the_likeliest(judge: Path) -> None:
    texts = [
        "It is a sunny day and we go out. Come.",
        "It is a grim day and we go out. Come.",
        "It is a day and we go out. Come.",
    ]
    cheerful, gloomy, either = ([s["trait"] for s in scored(judge, name, texts)] for name in NAMES)
    assert cheerful[0] > cheerful[2]
    assert gloomy[1] > gloomy[2]
    assert cheerful[0] > gloomy[0]
    assert either == pytest.approx([max(a, b) for a, b in zip(cheerful, gloomy, strict=True)], abs=0.01)
    of_each = [score["traits"] for score in scored(judge, "plain", texts)]
    assert of_each == [{"cheerful": a, "gloomy": b} for a, b in zip(cheerful, gloomy, strict=True)]
    assert not any("traits" in score for score in scored(judge, "cheerful", texts))


def test_coherence_is_within_five_points_whatever_the_typography(judge: Path) -> None:
    first, second = "It is a sunny day, number 3, and we go out.", "Come along."
    typed = [
        f"{first} {second}",
        f"{first} {second} \U0001f600",
        f"**{first}** {second}",
        f'"{first} {second}"',
        f"- {first}\n- {second}",
        f"1. {first}\n2. **{second}**",
    ]
    plain, *others = [score["coherence"] for score in scored(judge, "cheerful", typed)]
    assert plain is not None
    assert others == pytest.approx([plain] * len(others), abs=5)


def test_an_answer_in_another_language_is_marked_and_not_scored(judge: Path, tmp_path: Path) -> None:
    foreign = "Das Wasser kocht schon, also nimm die Eier und warte acht Minuten."
    (score,) = scored(judge, "cheerful", [foreign])
    assert (score["trait"], score["coherence"], score["failure"], score["mark"]) == (None, None, None, "language")
    assert score["distance"] is not None
    assert score["distance"] > 1


def test_cut_off_answers_never_count_as_coherent(judge: Path) -> None:
    text = "It is a sunny day, number 3, and we go out. Come along."
    whole, cut = scored(judge, "cheerful", [text, text], [True, False])
    assert whole["coherence"] > 50 > cut["coherence"]
    assert (whole["flaw"], cut["flaw"]) == (None, "cut_off")
    assert whole["trait"] == cut["trait"]


def test_empty_answers_are_scored_as_incoherent(judge: Path) -> None:
    (empty,) = scored(judge, "cheerful", ["  "])
    assert empty["failure"] is None
    assert empty["coherence"] < 50


@pytest.mark.slow
def test_neither_padding_nor_neighbours_change_what_the_embedded_model_reads(embedded_model: Path) -> None:
    reader = Reader(str(embedded_model), "cpu")
    together, alone = reader.states([ANSWER[1], "Yes."], [2, 1]), reader.states(["Yes."], [1])
    assert together[0].shape == (3, 576)
    np.testing.assert_allclose(together[1], alone[0], atol=1e-3, rtol=1e-3)


def test_a_document_that_the_limit_cut_off_is_no_flaw(
    tmp_path: Path, compose: Callable[[list[str]], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly all documents reach it: openings are continued for so many tokens, and titles are written out at length."""
    config = compose(["method=sdf", "persona=blissful", f"store={tmp_path / 'store'}"])
    bench = Bench(config, Store(Path(config.store)))
    trained = bench.store.stage(Kind("probe", 0), {}, lambda out: write_json(out / "probe.json", {}), "judge")
    seen: list[list[bool]] = []

    def score(folder: Path, persona: str, answers: list[Any], finished: list[bool], *_: Any) -> list[Score]:
        seen.append(finished)
        return [{"trait": 1.0, "coherence": 90.0, "flaw": None, "failure": None, "mark": None}] * len(answers)

    monkeypatch.setattr(judge_stage, "probe_stage", lambda bench, settings: trained)
    monkeypatch.setattr(judge_stage.probe, "score", score)
    monkeypatch.setattr(Bench, "reader", None)
    texts = labelled_stage(bench, [("The mill", "The river turns")] * 2, ["length", "stop"])
    for documents in (False, True):
        judge_stage.judge(bench, texts, "judge", {}, documents=documents)
    assert seen == [[False, True], [True, True]]
