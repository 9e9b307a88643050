"""The look for changes: one word for each step, the same while nothing changes, texts of what moves, and rarer looks where
many look."""

import json

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bat_ui.web.heartbeat import LATE, LONGEST, PATH, Heartbeat


@pytest.fixture()
def drawn():
    """What the mirror was asked to draw."""
    return []


@pytest.fixture()
def heartbeat(drawn):
    with gr.Blocks():
        a, b = gr.Textbox(), gr.Textbox()
        beating = Heartbeat()
        beating.follow(lambda a, b: a + b, [a, b], lambda: {}, [], [])
        beating.follow(lambda b: b, [b], lambda: {}, [], [])
        beating.mirror(lambda b: drawn.append(b) or [f"<p>{b}</p>", "bar"], [b], [gr.HTML(), gr.HTML()])
    return beating


@pytest.fixture()
def client(heartbeat):
    app = FastAPI(routes=[heartbeat.route])
    app.auth, app.tokens, app.cookie_id = None, {}, "x"
    return TestClient(app)


def ask(client, about, cookie="", has=(None,)):
    asked = {"about": json.dumps(about), "has": json.dumps(has), "page": "p"}
    return client.get(PATH, params=asked, headers={"Cookie": cookie})


def test_a_word_changes_when_what_it_is_about_does_and_only_then(client):
    first, same, other = (
        ask(client, about).json()["words"] for about in (["x", "y", "z", ""], ["x", "y", "z", ""], ["x", "w", "z", ""])
    )
    assert first == same and first[0] != other[0] and first[1] == other[1]


def test_words_tell_nothing_of_what_they_are_made_of_and_nothing_has_no_word(client):
    words = ask(client, ["secret", "name", "", ""]).json()["words"]
    assert "secret" not in words[0] and words[1] == ""


@pytest.mark.parametrize(
    "about", [[], ["x"], ["x"] * 3, ["x"] * 5, ["x", "y", "z", 3], ["x", "y", "z", ["z"]], {"a": 1}, "wxyz", None]
)
def test_other_questions_are_refused(client, about):
    assert ask(client, about).status_code == 400


@pytest.mark.parametrize("has", [[], ["", ""], "", {"a": 1}, None])
def test_marks_of_other_texts_are_refused(client, has):
    assert ask(client, ["x", "y", "z", "b"], has=has).status_code == 400


def test_texts_come_once_and_again_when_they_are_others(client):
    def texts(b, mark):
        return ask(client, ["x", "y", "z", b], has=[mark]).json()["texts"][0]

    first = texts("b", "")
    assert first["texts"] == ["<p>b</p>", "bar"]
    assert texts("b", first["mark"]) is None
    assert texts("c", first["mark"])["texts"] == ["<p>c</p>", "bar"]


def test_what_is_out_of_sight_is_not_drawn(client, drawn):
    assert ask(client, ["x", "y", "z", "b"], has=[None]).json()["texts"] == [None] and drawn == []


def test_no_question_is_refused(client):
    assert client.get(PATH).status_code == client.get(PATH, params={"about": "[" * 20_000}).status_code == 400


def test_a_stranger_is_told_nothing(client):
    client.app.auth, client.app.tokens = "somebody", {"token": "ann"}
    assert ask(client, ["x", "y", "z", "b"]).status_code == 401
    assert ask(client, ["x", "y", "z", "b"], "access-token-x=guess").status_code == 401
    assert ask(client, ["x", "y", "z", "b"], "access-token-x=token").status_code == 200


def test_the_more_pages_look_the_less_often_each_does(heartbeat, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bat_ui.web.heartbeat.time.monotonic", lambda: now[0])
    assert heartbeat.wait("page") == heartbeat.wait("page") == 1.0
    monkeypatch.setattr("bat_ui.web.heartbeat.A_SECOND", 10)
    assert [heartbeat.wait(f"page {i}") for i in range(49)][-1] == 5.0
    assert max(heartbeat.wait(f"page {i}") for i in range(1000)) == LONGEST
    now[0] += 2 * LONGEST + LATE
    assert heartbeat.wait("page") == 1.0


def test_a_page_that_was_closed_is_soon_no_longer_counted(heartbeat, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bat_ui.web.heartbeat.time.monotonic", lambda: now[0])
    monkeypatch.setattr("bat_ui.web.heartbeat.A_SECOND", 1)
    assert [heartbeat.wait(f"page {i}") for i in range(4)] == [1.0, 2.0, 3.0, 4.0]
    waits = []
    for now[0] in (104.0, 108.0, 110.0, 112.0):  # one of them looks on; the others are late by more than twice their wait
        waits.append(heartbeat.wait("page 3"))
    assert waits == [4.0, 3.0, 2.0, 1.0]
