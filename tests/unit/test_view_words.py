"""The words of the page: texts of tokens, out of a tokenizer that knows whole texts alone."""

import json
import threading
import time
import urllib.error
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raas_sglang.view.server import WatchedServer
from raas_sglang.view.words import Dictionary

TEXTS = {1: "a", 2: " b", 3: "\ufffd", 4: "\ufffd"}


def decode(lists):
    """Drops the first space, has a character of two tokens, and knows five tokens."""
    found = []
    for ids in lists:
        if any(token > 5 for token in ids):
            raise urllib.error.HTTPError("", 400, "", {}, None)
        text = "".join(TEXTS.get(token, "?") for token in ids).replace("\ufffd\ufffd", "é")
        found.append(text.removeprefix(" "))
    return found


def learned_words(token_ids):
    """The words, once the dictionary has learned all that there is to learn."""
    dictionary = Dictionary(decode)
    for _ in range(1000):
        if len(found := dictionary.words(token_ids, 0)) == len(token_ids):
            return found
        with dictionary._lock:
            dictionary._lock.wait(0.01)
    raise AssertionError(found)


def test_words_are_as_they_stand_in_the_text():
    assert learned_words([1, 2, 3, 4, 1]) == ["a", " b", "é", "", "a"]


def test_a_token_beyond_the_vocabulary_shows_its_number():
    assert learned_words([1, 999_999, 2]) == ["a", "⟨999999⟩", " b"]


class Server:
    """Answers as SGLang's HTTP server would, or as it would not."""

    def __init__(self, answers):
        self.answers, self.asked = list(answers), []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                server.asked.append(self.headers.get("Authorization"))
                status, body = server.answers.pop(0) if server.answers else (200, None)
                body = json.dumps({"text": ["a", "aa"]}).encode() if body is None else body
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) + 9 * (status == 206)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.mark.parametrize(
    "answer",
    [
        *((503, b"restarting"), (401, b""), (500, b"a fault, once")),
        *((200, b"<html>"), (200, b"[]"), (200, b"{}"), (206, b"{")),
    ],
)
def test_words_come_once_the_server_answers_as_it_should(answer, monkeypatch):
    """Nothing else is taken for a text, and nothing of it ends the thread."""
    monkeypatch.setattr("raas_sglang.view.words._PATIENCE_S", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the key is not for it
    times = 1 if answer[0] == 500 else 2
    with closing(Server([answer] * times)) as server:
        dictionary, learned = Dictionary(WatchedServer(server.url, "key").detokenize), []
        dictionary.want([1])
        for _ in range(500):
            if learned := dictionary.words([1], 0):
                break
            time.sleep(0.01)
        assert learned == ["a"]
        assert server.asked == ["Bearer key"] * (times + 1)
