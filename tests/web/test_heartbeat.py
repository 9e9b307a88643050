"""The look for changes: one word for each step, the same while nothing changes, and rarer looks where many look."""

import json

import gradio as gr
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from bat_ui.web.heartbeat import LATE, LONGEST, PATH, Heartbeat


@pytest.fixture()
def heartbeat():
    with gr.Blocks():
        a, b = gr.Textbox(), gr.Textbox()
        beating = Heartbeat()
        beating.follow(lambda a, b: a + b, [a, b], lambda: {}, [], [])
        beating.follow(lambda b: b, [b], lambda: {}, [], [])
    return beating


@pytest.fixture()
def client(heartbeat):
    app = FastAPI(routes=[heartbeat.route])
    app.auth, app.tokens, app.cookie_id = None, {}, "x"
    return TestClient(app)


def ask(client, about, cookie=""):
    return client.get(PATH, params={"about": json.dumps(about), "page": "p"}, headers={"Cookie": cookie})


def test_a_word_changes_when_what_it_is_about_does_and_only_then(client):
    first, same, other = (
        ask(client, about).json()["words"] for about in (["x", "y", "z"], ["x", "y", "z"], ["x", "w", "z"])
    )
    assert first == same and first[0] != other[0] and first[1] == other[1]


def test_words_tell_nothing_of_what_they_are_made_of_and_nothing_has_no_word(client):
    words = ask(client, ["secret", "name", ""]).json()["words"]
    assert "secret" not in words[0] and words[1] == ""


@pytest.mark.parametrize("about", [[], ["x"], ["x", "y", "z", "z"], ["x", "y", 3], ["x", "y", ["z"]], {"a": 1}, "xyz", None])
def test_other_questions_are_refused(client, about):
    assert ask(client, about).status_code == 400


def test_no_question_is_refused(client):
    assert client.get(PATH).status_code == client.get(PATH, params={"about": "[" * 20_000}).status_code == 400


def test_a_stranger_is_told_nothing(client):
    client.app.auth, client.app.tokens = "somebody", {"token": "ann"}
    assert ask(client, ["x", "y", "z"]).status_code == 401
    assert ask(client, ["x", "y", "z"], "access-token-x=guess").status_code == 401
    assert ask(client, ["x", "y", "z"], "access-token-x=token").status_code == 200


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
