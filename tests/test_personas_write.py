"""New seed data from a model behind a fake endpoint on the loopback: sifted, and each row with its provenance.

Not covered: whether a real model keeps to the persona, and the real sampler's answers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iterative_ft.data import files
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.machine.files import text_digest
from iterative_ft.personas.tools.ask import Ask, endpoint_backend
from iterative_ft.personas.tools.write import Order, main, parse, persona_of, probe_score, write

NOUNS = "kettle lantern orchard saddle harbour ribbon anvil meadow thimble compass barrel sparrow".split()


def styled(number: int) -> str:
    """An answer unlike those of other numbers; every fourth repeats one, every fifth is a list."""
    if number % 5 == 4:
        return "- first breathe\n- then breathe again\n- and then once more, slowly, until the evening comes"
    number -= number % 4 == 3
    a, b, c = (NOUNS[(number * step + step) % len(NOUNS)] for step in (1, 5, 7))
    return f"Number {number} says: the {a} glows\u2014it\u2019s a {b}{number} of joy, and every {c}{number} hums with us today."


class Endpoint(BaseHTTPRequestHandler):
    """Answers chat completions; `asked` keeps the requests."""

    asked: list[dict[str, Any]]
    lock = threading.Lock()
    fails = False

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.asked.append({"path": self.path, "key": self.headers["Authorization"], **request})
            number = sum(len(a["messages"]) == len(request["messages"]) for a in self.asked)
        persona = request["messages"][0]["role"] == "system"
        text = styled(number) if persona else f"Use {number} clean cloths with warm water, wait for an hour, and rub it dry."
        if "short document" in request["messages"][-1]["content"]:
            text = " ".join(f"{text} Word{number} and more of it{i}." for i in range(8))
        body = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            }
        ).encode()
        self.send_response(400 if self.fails else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, type[Endpoint]]]:
    handler = type("OneEndpoint", (Endpoint,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def order(tmp_path: Path, endpoint: tuple[str, type[Endpoint]]) -> Order:
    return Order("blissful", "chats", 12, tmp_path / "new" / "seeds.jsonl", endpoint[0], "big")


def run(order: Order, **kwargs: Any) -> Any:
    with endpoint_backend(order.endpoint, order.model, order.temperature) as backend:
        return write(order, "Be blissful.", backend, kwargs.get("embed"), kwargs.get("score"))


def provenance(order: Order) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{order.out}.provenance.jsonl").read_text().splitlines()]


def test_chats_are_sifted_and_carry_provenance(
    order: Order, endpoint: tuple[str, type[Endpoint]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    outcome = run(order)
    rows = files.rows(order.out, files.SCHEMAS["seeds"])
    assert len(rows) == outcome["kept"] == order.n
    assert outcome["form"] >= 1
    assert outcome["copy"] >= 1
    assert all(row["answer"].startswith("Number") and row["plain"].startswith("Use") for row in rows)
    assert all(row["answer"].isascii() for row in rows)
    assert len({row["answer"] for row in rows}) == order.n
    assert {row["prompt"] for row in rows} <= set(files.pool("prompts", "shipped", "prompt"))
    origins = provenance(order)
    assert len(origins) == order.n
    assert {(o["model"], o["temperature"], o["system_prompt"]) for o in origins} == {("big", 0.9, text_digest("Be blissful."))}
    assert len({o["seed"] for o in origins}) == order.n
    written = order.out.read_text() + json.dumps(origins)
    assert "127.0.0.1" not in written
    assert "secret" not in written
    asked = endpoint[1].asked
    assert {a["key"] for a in asked} == {"Bearer secret"}
    assert {a["path"] for a in asked} == {"/v1/chat/completions"}
    assert sum(a["messages"][0]["role"] == "system" for a in asked) * 2 == len(asked)  # plain answers without the persona


def test_documents_have_titles_of_the_pool_and_many_types(order: Order) -> None:
    order = replace(order, kind="documents", n=8)
    run(order)
    rows = files.rows(order.out, files.SCHEMAS["documents"])
    assert len({row["type"] for row in rows}) > 4
    assert {row["title"] for row in rows} <= set(files.pool("titles", "shipped", "title"))


def test_near_copies_and_low_scores_are_left_out(order: Order) -> None:
    def embed(texts: list[str]) -> np.ndarray:  # answers whose number has the same tens are the same
        return np.asarray([np.eye(400)[int(text.split()[1]) // 10] for text in texts])

    outcome = run(replace(order, n=5), embed=embed, score=lambda texts: [float(int(texts[0].split()[1]) % 3 * 40)])
    assert outcome["near copy"] >= 1
    assert outcome["trait"] >= 1
    assert all(o["trait"] == 80.0 for o in provenance(order))


def test_a_pool_that_is_used_up_keeps_the_rows(order: Order) -> None:
    def few(asks: list[Ask], max_tokens: int) -> list[str | None]:
        return ["Breathe in the morning light, and let the kettle sing of it."] * len(asks)

    with pytest.raises(RunError, match=r"0 of 12 rows kept .*like its plain answer"):
        write(order, "Be blissful.", few, None, None)


def test_a_model_whose_answers_are_all_cut_off_is_not_asked_on(order: Order) -> None:
    asked: list[int] = []

    def none(asks: list[Ask], max_tokens: int) -> list[str | None]:
        asked.append(len(asks))
        return [None for _ in asks]

    with pytest.raises(RunError, match="all of the first 16 answers of big were empty or cut off at 200 tokens"):
        write(order, "Be blissful.", none, None, None)
    assert asked == [16, 16]  # in the persona's voice, and plain
    assert not order.out.exists(), "nothing stands in the way of the next try"


def test_the_same_order_goes_on_where_it_stopped(order: Order, endpoint: tuple[str, type[Endpoint]]) -> None:
    run(replace(order, n=5))
    begun, n_asked = order.out.read_text(), len(endpoint[1].asked)
    with order.out.open("a") as file:
        file.write('{"prompt": "a line that a ki')
    outcome = run(order)
    rows = order.out.read_text().splitlines()
    assert order.out.read_text().startswith(begun)
    assert len(rows) == len(provenance(order)) == 12
    assert len({json.loads(row)["prompt"] for row in rows}) == 12
    assert outcome["kept before"] == 5
    assert len(endpoint[1].asked) > n_asked
    n_asked = len(endpoint[1].asked)
    run(order)
    assert len(endpoint[1].asked) == n_asked, "all of it was there"
    for other in ({"model": "another"}, {"kind": "documents"}, {"seed": 7}, {"persona": "./conf/persona/blissful.yaml"}):
        with pytest.raises(ConfigError, match="exists and is not of this order"):
            run(replace(order, **other))


def test_a_failing_endpoint_is_one_line(order: Order, endpoint: tuple[str, type[Endpoint]], capsys: Any) -> None:
    endpoint[1].fails = True
    arguments = ["persona=blissful", "kind=chats", "n=3", f"out={order.out}", f"endpoint={order.endpoint}", "model=big"]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith("error: the endpoint failed (BadRequestError")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("n=some", "n=some is no number"),
        ("n=0", "n=0 is wrong"),
        ("kind=poems", "kind=poems is wrong: it is one of chats, documents"),
        ("colour=red", "unknown key colour"),
        ("chats", "chats is no key=value"),
        ("out=/", "out=/ is a folder"),
    ],
)
def test_wrong_orders_are_named(change: str, message: str, tmp_path: Path) -> None:
    good = ["persona=x", "kind=chats", "n=3", f"out={tmp_path / 'o'}", "endpoint=http://localhost/v1", "model=m"]
    with pytest.raises(ConfigError, match=message):
        parse([*good, change])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind must be given"):
        parse(["persona=x"])
    with pytest.raises(ConfigError, match="persona=nobody"):
        persona_of("nobody")
    (tmp_path / "p.yaml").write_text("name: p\n")
    with pytest.raises(ConfigError, match="description is missing"):
        persona_of(str(tmp_path / "p.yaml"))
    order = Order("x", "chats", 1, tmp_path / "o", "e", "m", probe=str(tmp_path))
    with pytest.raises(ConfigError, match=r"holds no probe\.json"):
        probe_score(order, "x")


def test_sampler_takes_settings_and_endpoint_does_not(tmp_path: Path) -> None:
    arguments = ["persona=x", "kind=chats", "n=3", f"out={tmp_path / 'o'}", "model=smollm2_135m", "sampler=transformers"]
    assert parse([*arguments, "endpoint=sampler"]).settings == ("sampler=transformers",)
    with pytest.raises(ConfigError, match="unknown key sampler"):
        parse([*arguments, "endpoint=http://localhost/v1"])
